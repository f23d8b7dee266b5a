"""A paged KV pool in which everything that a request must not read is not a number, and attention by definition."""

from __future__ import annotations

from dataclasses import dataclass

import torch

# Outputs are of size 1. float32: sums of a few hundred products in another order. bfloat16: outputs keep 8 bits, and so
# does each softmax weight on the way; for contexts of up to 40 tokens a wrong slot moves an output further than that.
TOLERANCE = {torch.float32: 2e-5, torch.bfloat16: 3e-2}


@dataclass(frozen=True)
class PagedKV:
    """Contexts of B requests at scattered slots; `req_to_token` has rows and columns of other requests too."""

    req_to_token: torch.Tensor  # int32 [R, context]
    req_pool_indices: torch.Tensor  # int64 [B]
    keys: torch.Tensor  # [num_slots, Hk, E]
    values: torch.Tensor
    kv_lens: list[int]

    def context(self, request: int) -> torch.Tensor:
        """Slots of a request's context, in order."""
        return self.req_to_token[self.req_pool_indices[request], : self.kv_lens[request]].long()


def make_kv(
    kv_lens: list[int], kv_heads: int, width: int, dtype: torch.dtype, rng: torch.Generator, v_width: int | None = None
) -> PagedKV:
    """Slots of no context, SGLang's dummy slot 0 among them, hold NaN; table entries behind a context point to them."""
    num_requests, num_used = len(kv_lens), sum(kv_lens)
    num_slots = 2 * num_used + 10
    shuffled = torch.randperm(num_slots - 1, generator=rng) + 1
    used, unused = shuffled[:num_used], shuffled[num_used:]
    rows = torch.randperm(num_requests + 2, generator=rng)[:num_requests] + 1
    table = unused[torch.randint(0, len(unused), (num_requests + 3, max(kv_lens) + 7), generator=rng)]
    table[:, -1] = 0
    start = 0
    for row, kv_len in zip(rows.tolist(), kv_lens, strict=True):
        table[row, :kv_len] = used[start : start + kv_len]
        start += kv_len
    pools = []
    for head_width in (width, v_width or width):
        pool = torch.full((num_slots, kv_heads, head_width), float("nan"))
        pool[used] = torch.randn(num_used, kv_heads, head_width, generator=rng)
        pools.append(pool.to(dtype))
    return PagedKV(table.to(torch.int32), rows, pools[0], pools[1], kv_lens)


def dense_attention(
    query: torch.Tensor, kv: PagedKV, query_lens: list[int], scale: float, causal: bool = True
) -> torch.Tensor:
    """Softmax attention in float64, a request, a row and a head at a time: [sum(query_lens), Hq, E of values]."""
    group = query.shape[1] // kv.keys.shape[1]
    outputs = torch.empty(*query.shape[:2], kv.values.shape[2], dtype=torch.float64)
    row = 0
    for request, num_rows in enumerate(query_lens):
        context = kv.context(request)
        for position in range(len(context) - num_rows, len(context)):
            seen = context[: position + 1] if causal else context
            for head in range(query.shape[1]):
                scores = kv.keys[seen, head // group].double() @ query[row, head].double() * scale
                outputs[row, head] = torch.softmax(scores, dim=0) @ kv.values[seen, head // group].double()
            row += 1
    return outputs
