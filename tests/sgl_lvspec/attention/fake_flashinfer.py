"""FlashInfer's paged wrapper in torch, and SGLang's own FlashInfer backend around it, on CPU.

The wrapper does what its documentation says (0.7.2, flashinfer/prefill.py: `plan`, `forward`, `forward_return_lse`):
attention of ragged queries over slots, with a mask of bits a request, and a log-sum-exp in base 2. The backend is an
object of SGLang's class without its constructor, which asks for a GPU; its methods are SGLang's.
"""

from __future__ import annotations

import math
from types import SimpleNamespace
from typing import Any

import torch
from sglang.srt.layers.attention.flashinfer_backend import FlashInferAttnBackend


class FakeWrapper:
    """Attributes: `calls`, the names of what was run."""

    per_nat = math.log2(math.e)  # 1 for a FlashInfer that speaks base e

    def __init__(self, workspace: torch.Tensor, kv_layout: str, *, backend: str) -> None:
        assert (workspace.dtype, kv_layout, backend) == (torch.uint8, "NHD", "fa2")
        self.calls: list[str] = []
        self.is_cuda_graph_enabled = False

    def plan(
        self,
        qo_indptr: torch.Tensor,
        paged_kv_indptr: torch.Tensor,
        paged_kv_indices: torch.Tensor,
        paged_kv_last_page_len: torch.Tensor,
        num_qo_heads: int,
        num_kv_heads: int,
        head_dim_qk: int,
        page_size: int,
        *,
        q_data_type: torch.dtype,
        kv_data_type: torch.dtype,
        custom_mask: torch.Tensor | None = None,
        **_others: Any,
    ) -> None:
        assert page_size == 1
        assert paged_kv_last_page_len.tolist() == [1] * (len(qo_indptr) - 1)
        self._rows, self._keys = qo_indptr.tolist(), paged_kv_indptr.tolist()
        self._slots, self._mask = paged_kv_indices.long(), custom_mask
        self._expected = (num_qo_heads, num_kv_heads, head_dim_qk, q_data_type, kv_data_type)

    begin_forward = plan

    def forward(
        self, q: torch.Tensor, paged_kv_cache: tuple[torch.Tensor, torch.Tensor], **options: Any
    ) -> torch.Tensor:
        self.calls.append("forward")
        return self._run(q, paged_kv_cache, **options)[0]

    def forward_return_lse(
        self, q: torch.Tensor, paged_kv_cache: tuple[torch.Tensor, torch.Tensor], **options: Any
    ) -> tuple[torch.Tensor, torch.Tensor]:
        self.calls.append("forward_return_lse")
        return self._run(q, paged_kv_cache, **options)

    def _run(
        self,
        q: torch.Tensor,
        paged_kv_cache: tuple[torch.Tensor, torch.Tensor],
        causal: bool = False,
        sm_scale: float | None = None,
        window_left: int = -1,
        logits_soft_cap: float | None = None,
        k_scale: float | None = None,
        v_scale: float | None = None,
    ) -> tuple[torch.Tensor, torch.Tensor]:
        keys, values = paged_kv_cache
        assert self._expected == (q.shape[1], keys.shape[1], q.shape[2], q.dtype, keys.dtype)
        assert (window_left, logits_soft_cap or 0.0, k_scale, v_scale) == (-1, 0.0, None, None)
        assert sm_scale is not None
        group, outputs, sums, bit = q.shape[1] // keys.shape[1], [], [], 0
        for request, (first, last) in enumerate(zip(self._rows, self._rows[1:], strict=False)):
            slots = self._slots[self._keys[request] : self._keys[request + 1]]
            num_rows, length = last - first, len(slots)
            if self._mask is not None:
                seen = self._mask[bit : bit + num_rows * length].view(num_rows, length)
                bit += num_rows * length
            else:
                limit = torch.arange(length - num_rows, length)[:, None] if causal else length
                seen = torch.arange(length).expand(num_rows, -1) <= limit
            k, v = (pool[slots].float().repeat_interleave(group, dim=1) for pool in (keys, values))
            scores = torch.einsum("rhe,lhe->rhl", q[first:last].float(), k) * sm_scale
            scores = scores.masked_fill(~seen[:, None], -torch.inf)
            outputs.append(torch.einsum("rhl,lhe->rhe", scores.softmax(dim=2), v))
            sums.append(scores.logsumexp(dim=2) * self.per_nat)
        return torch.cat(outputs).to(q.dtype), torch.cat(sums)


class FakePlanner:
    """Where SGLang has its updater of indices: plans a wrapper of a paged prefill or verify forward."""

    def __init__(self, req_to_token: torch.Tensor, heads: tuple[int, int, int], dtype: torch.dtype) -> None:
        self._req_to_token, self._heads = req_to_token, heads
        self.q_data_type = self.data_type = dtype

    def update(
        self,
        req_pool_indices: torch.Tensor,
        seq_lens: torch.Tensor,
        _seq_lens_cpu: Any,
        _seq_lens_sum: Any,
        prefix_lens: torch.Tensor | None,
        *,
        prefill_wrappers: list[FakeWrapper],
        spec_info: Any,
        **_others: Any,
    ) -> None:
        width = 0 if spec_info is None else spec_info.draft_token_num
        kv_lens = (seq_lens + width).tolist()
        query_lens = (seq_lens - prefix_lens).tolist() if prefix_lens is not None else [width] * len(kv_lens)
        mask = None
        if spec_info is not None:  # a chain, row by row, of each request
            rows = [torch.arange(n) <= n - width + node for n in kv_lens for node in range(width)]
            mask = torch.cat(rows)
        [wrapper] = prefill_wrappers
        wrapper.begin_forward(
            _starts(query_lens),
            _starts(kv_lens),
            torch.cat([self._req_to_token[row, :n] for row, n in zip(req_pool_indices.tolist(), kv_lens, strict=True)]),
            torch.ones(len(kv_lens), dtype=torch.int32),
            *self._heads,
            1,
            q_data_type=self.q_data_type,
            kv_data_type=self.data_type,
            custom_mask=mask,
        )


def make_backend(runner: Any, heads: tuple[int, int, int], dtype: torch.dtype = torch.float32) -> Any:
    """SGLang's backend for a runner with pools, planned by `FakePlanner`; `heads` is (Hq, Hk, E)."""
    backend = object.__new__(FlashInferAttnBackend)
    backend.__dict__.update(
        req_to_token_pool=runner.req_to_token_pool,
        token_to_kv_pool=runner.token_to_kv_pool,
        kv_cache_quant_method=SimpleNamespace(needs_global_scale=lambda: False),
        num_wrappers=1,
        dispatch_reason=None,
        prefill_backend="fa2",
        workspace_buffer=torch.empty(8, dtype=torch.uint8),
        prefill_wrappers_paged=[FakeWrapper(torch.empty(8, dtype=torch.uint8), "NHD", backend="fa2")],
        prefill_wrappers_verify=[FakeWrapper(torch.empty(8, dtype=torch.uint8), "NHD", backend="fa2")],
        indices_updater_prefill=FakePlanner(runner.req_to_token_pool.req_to_token, heads, dtype),
        use_sliding_window_kv_pool=False,
        prefill_uses_dequant_workspace=False,
        is_multimodal=True,
        enable_mis=False,
        prefill_split_tile_size=None,
        dq_page_table=None,
        forward_metadata=None,
    )
    return backend


def _starts(lens: list[int]) -> torch.Tensor:
    return torch.tensor([0, *lens], dtype=torch.int32).cumsum(0, dtype=torch.int32)
