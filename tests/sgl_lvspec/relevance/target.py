"""A target of a few attention layers over SGLang's own pools, run by `lvspec_cpu` or another backend, and its scores by
definition."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import torch
from sglang.srt.layers.radix_attention import RadixAttention
from sglang.srt.mem_cache.memory_pool import MHATokenToKVPool, ReqToTokenPool
from sglang.srt.model_executor.forward_batch_info import ForwardMode
from sglang.srt.model_executor.forward_context import ForwardContext, forward_context

from sgl_lvspec.attention.cpu_backend import CpuAttnBackend
from sgl_lvspec.relevance.slots import SlotTables

LAYERS, QUERY_HEADS, KV_HEADS, HEAD_WIDTH, HIDDEN = 3, 4, 2, 8, 12
SCALE = 0.4
NUM_SLOTS, NUM_ROWS, CONTEXT = 300, 6, 40
WIDTH = 4  # D: root and three drafted tokens


class LogitsProcessor(torch.nn.Module):
    """Where the target's last states come by."""

    def forward(self, _ids: Any, states: torch.Tensor, _head: Any, _batch: Any, _aux: Any = None) -> torch.Tensor:
        return states


class Model(torch.nn.Module):
    """Attention layers, the last one first: the order of modules is not the order of layers."""

    def __init__(self, query_heads: int, kv_heads: int) -> None:
        super().__init__()
        self.layers = torch.nn.ModuleList(
            RadixAttention(query_heads, HEAD_WIDTH, SCALE, kv_heads, layer_id=layer)
            for layer in reversed(range(LAYERS))
        )
        self.logits_processor = LogitsProcessor()


class Target:
    """One rank's part of a target; keys and queries of all heads are drawn from one seed, then split.

    `keys[layer]` [num_slots, all KV heads, E] and `query[layer]` [R, all query heads, E] are what the last forward
    left, for scores by definition.
    """

    def __init__(self, seed: int = 0, rank: int = 0, num_ranks: int = 1) -> None:
        self.rng = torch.Generator().manual_seed(seed)
        self.rank, self.num_ranks = rank, num_ranks
        self.model = Model(QUERY_HEADS // num_ranks, KV_HEADS // num_ranks)
        self.req_to_token_pool = ReqToTokenPool(NUM_ROWS, CONTEXT, "cpu", enable_memory_saver=False)
        self.token_to_kv_pool = MHATokenToKVPool(
            NUM_SLOTS, 1, torch.float32, KV_HEADS // num_ranks, HEAD_WIDTH, LAYERS, "cpu", enable_memory_saver=False
        )
        self.model_config = SimpleNamespace(hidden_size=HIDDEN)
        order = torch.randperm(NUM_SLOTS, generator=self.rng)[: NUM_ROWS * CONTEXT].view(NUM_ROWS, CONTEXT) + 1
        self.req_to_token_pool.req_to_token[1:] = order.to(torch.int32)
        self.slots = SlotTables(NUM_SLOTS + 1, "cpu", HIDDEN)
        self.slots.is_visual.fill_(True)  # left behind by others: whatever is not a request's own must not count
        self.keys = [torch.zeros(NUM_SLOTS + 1, KV_HEADS, HEAD_WIDTH) for _ in range(LAYERS)]
        self.query: list[torch.Tensor] = [torch.empty(0)] * LAYERS
        self.states = torch.empty(0)
        self.attn_backend: Any = CpuAttnBackend(self)  # type: ignore[arg-type]

    def context(self, row: int, length: int, first: int = 0) -> torch.Tensor:
        return self.req_to_token_pool.req_to_token[row, first:length].long()

    def forward(self, mode: ForwardMode, rows: list[int], seq_lens: list[int], slots: torch.Tensor) -> Any:
        """All layers and the logits processor once, as SGLang's models call them."""
        counts = [len(slots) // len(rows)] * len(rows)
        batch = SimpleNamespace(
            forward_mode=mode,
            batch_size=len(rows),
            req_pool_indices=torch.tensor(rows),
            seq_lens=torch.tensor(seq_lens),
            extend_seq_lens=torch.tensor(counts),
            spec_info=SimpleNamespace(draft_token_num=counts[0]) if mode.is_target_verify() else None,
            out_cache_loc=slots,
            global_num_token_non_padded_cpu=None,
            out_cache_loc_is_physical=False,
            seq_lens_cpu=None,
            seq_lens_sum=None,
            encoder_lens=None,
            kv_loc_plan=None,
            extend_prefix_lens=torch.tensor(seq_lens) - torch.tensor(counts),
            extend_prefix_lens_cpu=None,
            cross_attention_custom_mask=None,
        )
        backend = self.attn_backend
        backend.init_forward_metadata(batch)
        heads, kv_heads = QUERY_HEADS // self.num_ranks, KV_HEADS // self.num_ranks
        with forward_context(ForwardContext(attn_backend=backend)):
            for module in reversed(self.model.layers):
                layer = module.layer_id
                self.query[layer] = torch.randn(len(slots), QUERY_HEADS, HEAD_WIDTH, generator=self.rng)
                k, v = (torch.randn(len(slots), KV_HEADS, HEAD_WIDTH, generator=self.rng) for _ in range(2))
                self.keys[layer][slots] = k
                ours = slice(self.rank * kv_heads, (self.rank + 1) * kv_heads)
                query = self.query[layer][:, self.rank * heads : (self.rank + 1) * heads]
                module(query.flatten(1), k[:, ours].flatten(1), v[:, ours].flatten(1), batch)
            self.states = torch.randn(len(slots), HIDDEN, generator=self.rng) * 3.0
            self.model.logits_processor(None, self.states, None, batch)
        return batch

    def prefill(self, row: int, ids: list[int], first: int = 0) -> torch.Tensor:
        """A prompt (or the chunk of it from `first` on): rows of the tables, then the forward. Its states."""
        slots = self.context(row, first + len(ids), first)
        self.slots.mark_prompt(torch.tensor(ids), slots)
        self.forward(ForwardMode.EXTEND, [row], [first + len(ids)], slots)
        return self.states

    def verify(self, rows: list[int], seq_lens: list[int]) -> torch.Tensor:
        """A round behind contexts of `seq_lens` tokens. States of its nodes, [B * D, hidden]."""
        slots = torch.cat([self.context(row, n + WIDTH, n) for row, n in zip(rows, seq_lens, strict=True)])
        self.slots.mark_drafted(slots)
        self.forward(ForwardMode.TARGET_VERIFY, rows, seq_lens, slots)
        return self.states

    def masses(self, rows: list[int], seq_lens: list[int], is_visual: list[list[bool]]) -> torch.Tensor:
        """Visual shares by definition, float64 [L, B, D, Hq] of the last verify; `is_visual` by request."""
        masses = torch.zeros(LAYERS, len(rows), WIDTH, QUERY_HEADS, dtype=torch.float64)
        for layer in range(LAYERS):
            query = self.query[layer].view(len(rows), WIDTH, QUERY_HEADS, HEAD_WIDTH).double()
            for b, (row, length) in enumerate(zip(rows, seq_lens, strict=True)):
                for node in range(WIDTH):
                    seen = self.context(row, length + node + 1)
                    visual = torch.tensor((is_visual[b] + [False] * WIDTH)[: len(seen)])
                    for head in range(QUERY_HEADS):
                        keys = self.keys[layer][seen, head // (QUERY_HEADS // KV_HEADS)].double()
                        share = torch.softmax(keys @ query[b, node, head] * SCALE, dim=0)
                        masses[layer, b, node, head] = share[visual].sum()
        return masses
