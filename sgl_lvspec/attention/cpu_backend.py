"""`lvspec_cpu`: an SGLang attention backend for CPU that knows decode, extend, target-verify and draft steps.

Created by SGLang's runners (`attention.register`) and, for the draft's steps, by `drafting.chain`. Chains only: a
verify row sees the committed context and the chain before it, so no tree mask is read. Decode and verify forwards read
a video that requests share once, where the worker asks for it (`cascade`).
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from sglang.srt.layers.attention.base_attn_backend import AttentionBackend
from sglang.srt.layers.radix_attention import AttentionType
from sglang.srt.mem_cache.memory_pool import KVWriteLoc

from sgl_lvspec.attention.cascade import Cascade, CascadeRows, attend_cascade
from sgl_lvspec.attention.paged import PagedRows, attend

if TYPE_CHECKING:
    from sglang.srt.layers.radix_attention import RadixAttention
    from sglang.srt.model_executor.forward_batch_info import ForwardBatch
    from sglang.srt.model_executor.model_runner import ModelRunner


class CpuAttnBackend(AttentionBackend):
    """Grouped-query attention over SGLang's paged KV pool, float32 or bfloat16, batched where lengths allow.

    Attributes:
        cascade: finds what requests share; None: every request reads its own context.
    """

    def __init__(self, model_runner: ModelRunner) -> None:
        super().__init__()
        self.req_to_token_pool = model_runner.req_to_token_pool
        self.token_to_kv_pool = model_runner.token_to_kv_pool
        self.cascade: Cascade | None = None
        self.rows: PagedRows | CascadeRows | None = None  # of the forward under way; set by init_forward_metadata

    def init_forward_metadata(self, forward_batch: ForwardBatch) -> None:
        """Plan the forward: which slots each query row reads. Called by SGLang once a forward."""
        mode = forward_batch.forward_mode
        if mode.is_idle():
            self.rows = None
            return
        lens = [int(n) for n in forward_batch.seq_lens.tolist()]
        if mode.is_decode():
            query_lens, kv_lens = [1] * len(lens), lens
        elif mode.is_target_verify():
            width = forward_batch.spec_info.draft_token_num
            query_lens, kv_lens = [width] * len(lens), [n + width for n in lens]
        else:
            query_lens, kv_lens = [int(n) for n in forward_batch.extend_seq_lens.tolist()], lens
        if self.cascade is not None and (mode.is_decode() or mode.is_target_verify()):
            table = self.req_to_token_pool.req_to_token
            self.rows = self.cascade.plan(table, forward_batch.req_pool_indices, query_lens, kv_lens)
        else:
            self.plan(forward_batch.req_pool_indices, query_lens, kv_lens)

    def plan(self, req_pool_indices: torch.Tensor, query_lens: list[int], kv_lens: list[int]) -> None:
        """Set the forward's rows from lengths; `kv_lens` include the query rows."""
        self.rows = PagedRows.of(self.req_to_token_pool.req_to_token, req_pool_indices, query_lens, kv_lens)

    def forward_extend(
        self,
        q: torch.Tensor,
        k: torch.Tensor | None,
        v: torch.Tensor | None,
        layer: RadixAttention,
        forward_batch: ForwardBatch,
        save_kv_cache: bool = True,
        **extras: Any,
    ) -> torch.Tensor:
        """Write the new keys and values, then attend.

        Args:
            q: [tokens, Hq * E]; k, v: [tokens, Hk * E] (None: already in the pool).
            extras: what other kinds of attention need (sinks, an indexer, ...); refused.
        """
        _refuse_unsupported(layer, extras)
        if save_kv_cache and k is not None and v is not None:
            self.token_to_kv_pool.set_kv_buffer(layer, KVWriteLoc(forward_batch.out_cache_loc, None), k, v)
        assert self.rows is not None, "lvspec_cpu: init_forward_metadata must run before the forward"
        query = q.reshape(-1, layer.tp_q_head_num, layer.qk_head_dim)
        keys = self.token_to_kv_pool.get_key_buffer(layer.layer_id)
        values = self.token_to_kv_pool.get_value_buffer(layer.layer_id)
        is_causal = layer.attn_type != AttentionType.ENCODER_ONLY
        if isinstance(self.rows, CascadeRows):
            assert is_causal and self.cascade is not None, "decode and verify rows are causal"
            output = attend_cascade(query, keys, values, self.rows, layer.scaling)
            self.cascade.note(self.rows, keys, values)
        else:
            output = attend(query, keys, values, self.rows, layer.scaling, causal=is_causal)
        return output.reshape(-1, layer.tp_q_head_num * layer.v_head_dim)

    forward_decode = forward_extend

    def support_triton(self) -> bool:
        """SGLang's Triton helpers are for GPUs (base_attn_backend.py: support_triton)."""
        return False


class CpuChainDraftBackend:
    """One backend per draft step; step i sees the committed context and the i + 1 chain tokens up to its own.

    Stands where SGLang has its multi-step draft backends (same attributes, srt/speculative/draft_utils.py), so the
    draft loop is the same on every device.
    """

    def __init__(self, model_runner: ModelRunner, num_steps: int) -> None:
        self.attn_backends = [CpuAttnBackend(model_runner) for _ in range(num_steps)]
        self.topk = 1
        self.speculative_num_steps = num_steps + 1  # SGLang's own have one backend fewer than steps
        self.needs_cpu_seq_lens = True

    def init_forward_metadata(self, forward_batch: ForwardBatch) -> None:
        """Plan every step from the committed lengths (`seq_lens`, the chain excluded)."""
        lens = [int(n) for n in forward_batch.seq_lens.tolist()]
        for step, backend in enumerate(self.attn_backends):
            backend.plan(forward_batch.req_pool_indices, [1] * len(lens), [n + step + 1 for n in lens])


def _refuse_unsupported(layer: RadixAttention, extras: dict[str, Any]) -> None:
    """Attention kinds that no tested architecture uses must not be computed as if they were plain."""
    window = layer.sliding_window_size
    kinds = {
        "cross attention": layer.is_cross_attention,
        "attention in both directions": layer.attn_type == AttentionType.DECODER_BIDIRECTIONAL,
        f"a sliding window ({window})": window is not None and window > -1,
        f"a logit cap ({layer.logit_cap})": layer.logit_cap > 0,
        "a query temperature": layer.xai_temperature_len > 0,
        **{f"the argument {name}": value is not None for name, value in extras.items()},
    }
    found = [kind for kind, is_used in kinds.items() if is_used]
    if found:
        raise NotImplementedError(
            f"--attention-backend lvspec_cpu needs plain grouped-query attention; found {', '.join(found)} in layer "
            f"{layer.layer_id}. Use another model."
        )
