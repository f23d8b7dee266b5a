"""Attention of query rows over paged keys and values in plain torch: the arithmetic of `lvspec_cpu`.

Knows tensors only, nothing of SGLang. Shapes: B requests, n query rows a request, L longest context, Hq and Hk
query and KV heads, E head width.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch.nn.functional import scaled_dot_product_attention

# Keys that padding may add per request, on average, before a batch runs request by request. On one core of a server CPU
# (AVX-512) a request of its own costs 40 us and a padded key .15 us at 4/2 heads of 64, .6 us at 28/4 of 128: it pays
# up to 270 and 60 keys. A batch of eight is 2.6 and 1.4 times as fast padded as one by one at 100 keys, equal at 2000.
MAX_PADDING = 128


@dataclass(frozen=True, slots=True)
class PagedRows:
    """Query rows of several requests and the slots that they attend to; the last query row sits on the last slot.

    Attributes:
        query_lens: query rows per request.
        kv_lens: context length per request, the request's own query rows included; what `starts` skips is not.
        slots: int64 [B, L], KV slot of every context position; positions past `kv_lens` repeat the request's first
            slot, because a masked key still spoils the row when it is not a number.
        mask: bool [B, n, L], what each row may see when the batch runs as one block; None: request by request.
    """

    query_lens: list[int]
    kv_lens: list[int]
    slots: torch.Tensor
    mask: torch.Tensor | None

    @classmethod
    def of(
        cls,
        req_to_token: torch.Tensor,
        req_pool_indices: torch.Tensor,
        query_lens: list[int],
        kv_lens: list[int],
        starts: list[int] | None = None,
    ) -> PagedRows:
        """Read the requests' slots from SGLang's table.

        Args:
            req_to_token: int32 [R, context], KV slot of every position of every request row.
            req_pool_indices: int [B], the requests' rows.
            starts: positions of each context that are left out at its beginning; none of a query row.
        """
        if starts is not None:
            kv_lens = [kv_len - start for kv_len, start in zip(kv_lens, starts, strict=True)]
        longest = max(kv_lens, default=0)
        positions = torch.arange(longest)
        lens = torch.tensor(kv_lens, dtype=torch.int64)
        is_context = positions < lens[:, None]
        if starts is None:
            table = req_to_token[req_pool_indices.long(), :longest].long()
        else:
            columns = torch.tensor(starts)[:, None] + torch.where(is_context, positions, 0)
            table = req_to_token[req_pool_indices.long()[:, None], columns].long()
        slots = torch.where(is_context, table, table[:, :1])
        num_rows = query_lens[0] if query_lens else 0
        is_even = all(n == num_rows for n in query_lens)
        is_dense = longest * len(kv_lens) - sum(kv_lens) <= MAX_PADDING * len(kv_lens)
        is_prompts = query_lens == kv_lens  # no context before the rows: quicker on their own, see _attend_prompt
        if is_prompts or not (is_even and is_dense):
            return cls(query_lens, kv_lens, slots, None)
        first = lens[:, None] - num_rows  # position of a request's first query row
        last_seen = first + torch.arange(num_rows)
        return cls(query_lens, kv_lens, slots, positions <= last_seen[:, :, None])


def attend(
    query: torch.Tensor, keys: torch.Tensor, values: torch.Tensor, rows: PagedRows, scale: float, causal: bool = True
) -> torch.Tensor:
    """Softmax attention of every query row over its request's slots.

    Args:
        query: [sum(query_lens), Hq, E].
        keys, values: [num_slots, Hk, E], the KV pool of one layer; Hq is a multiple of Hk.
        rows: which slots each query row sees.
        scale: factor on the scores.
        causal: False lets every row of a request see all of its context.

    Returns:
        [sum(query_lens), Hq, E of values], in the query's dtype.
    """
    if rows.mask is not None and causal:
        num_requests, num_rows = rows.mask.shape[:2]
        batched = query.view(num_requests, num_rows, *query.shape[1:])
        return _attend_block(batched, keys, values, rows.slots, rows.mask, scale).flatten(0, 1)
    outputs = []
    for request, part in enumerate(query.split(rows.query_lens)):
        num_rows, kv_len = part.shape[0], rows.kv_lens[request]
        slots = rows.slots[request : request + 1, :kv_len]
        if causal and num_rows == kv_len:
            outputs.append(_attend_prompt(part[None], keys, values, slots, scale)[0])
            continue
        mask = None
        if causal and num_rows > 1:
            last_seen = torch.arange(kv_len - num_rows, kv_len)
            mask = (torch.arange(kv_len) <= last_seen[:, None])[None]
        outputs.append(_attend_block(part[None], keys, values, slots, mask, scale)[0])
    return torch.cat(outputs)


def paged_with_lse(
    query: torch.Tensor, keys: torch.Tensor, values: torch.Tensor, rows: PagedRows, scale: float
) -> tuple[torch.Tensor, torch.Tensor]:
    """Causal `attend` that also returns the log-sum-exp, float32 [sum(query_lens), Hq], base e."""
    if rows.mask is not None:
        batched = query.view(*rows.mask.shape[:2], *query.shape[1:])
        output, lse = attend_with_lse(batched, keys, values, rows.slots, rows.mask, scale)
        return output.flatten(0, 1), lse.flatten(0, 1)
    parts = []
    for request, part in enumerate(query.split(rows.query_lens)):
        num_rows, kv_len = part.shape[0], rows.kv_lens[request]
        mask = torch.arange(kv_len) <= torch.arange(kv_len - num_rows, kv_len)[:, None]
        slots = rows.slots[request : request + 1, :kv_len]
        parts.append(attend_with_lse(part[None], keys, values, slots, mask[None], scale))
    return torch.cat([output[0] for output, _ in parts]), torch.cat([lse[0] for _, lse in parts])


def attend_with_lse(
    query: torch.Tensor,
    keys: torch.Tensor,
    values: torch.Tensor,
    slots: torch.Tensor,
    mask: torch.Tensor | None,
    scale: float,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Attention and its log-sum-exp, by the kernel behind `scaled_dot_product_attention` on CPU.

    Args:
        query: [B, n, Hq, E].
        keys, values: [num_slots, Hk, E], the KV pool of one layer.
        slots: int64 [B, L].
        mask: bool [B, n, L], something seen in every row; None: all.

    Returns:
        ([B, n, Hq, E] in the query's dtype, float32 [B, n, Hq] of the natural logarithm).
    """
    kv_heads = keys.shape[1]
    group = query.shape[2] // kv_heads
    assert values.shape[2] == keys.shape[2], "keys and values are of one width"
    bias = None
    if mask is not None:
        bias = torch.zeros(mask.shape, dtype=query.dtype).masked_fill_(~mask, -torch.inf)
        bias = _mask_of_groups(bias, group)
    output, lse = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu(
        _as_kv_heads(query, kv_heads),
        _gather(keys, slots, query.dtype).transpose(1, 2),
        _gather(values, slots, query.dtype).transpose(1, 2),
        attn_mask=bias,
        scale=scale,
    )
    num_requests, num_rows = query.shape[:2]
    lse = lse.reshape(num_requests, kv_heads, num_rows, group).transpose(1, 2).flatten(2)
    return _as_query_heads(output, num_rows, group), lse


def _attend_block(
    query: torch.Tensor,
    keys: torch.Tensor,
    values: torch.Tensor,
    slots: torch.Tensor,
    mask: torch.Tensor | None,
    scale: float,
) -> torch.Tensor:
    """query [B, n, Hq, E], slots [B, L], mask [B, n, L] -> [B, n, Hq, E]; each key is read once for all its heads."""
    kv_heads = keys.shape[1]
    group = query.shape[2] // kv_heads
    output = scaled_dot_product_attention(
        _as_kv_heads(query, kv_heads),
        _gather(keys, slots, query.dtype).transpose(1, 2),
        _gather(values, slots, query.dtype).transpose(1, 2),
        attn_mask=None if mask is None else _mask_of_groups(mask, group),
        scale=scale,
    )
    return _as_query_heads(output, query.shape[1], group)


def _as_kv_heads(query: torch.Tensor, kv_heads: int) -> torch.Tensor:
    """[B, n, Hq, E] -> [B, Hk, n * group, E]: the query heads that share a KV head become rows of that head, so keys
    are not repeated. SDPA's own enable_gqa leaves the fast kernel on CPU: up to 25 times as slow in bfloat16."""
    num_requests, num_rows, query_heads, width = query.shape
    grouped = query.view(num_requests, num_rows, kv_heads, query_heads // kv_heads, width).permute(0, 2, 1, 3, 4)
    return grouped.reshape(num_requests, kv_heads, -1, width)


def _as_query_heads(output: torch.Tensor, num_rows: int, group: int) -> torch.Tensor:
    """[B, Hk, n * group, E] -> [B, n, Hq, E]."""
    num_requests, kv_heads = output.shape[:2]
    output = output.view(num_requests, kv_heads, num_rows, group, -1).permute(0, 2, 1, 3, 4)
    return output.reshape(num_requests, num_rows, kv_heads * group, -1)


def _mask_of_groups(mask: torch.Tensor, group: int) -> torch.Tensor:
    """[B, n, L] -> [B, 1, n * group, L]."""
    num_requests, num_rows, length = mask.shape
    return mask[:, None, :, None].expand(-1, 1, -1, group, -1).reshape(num_requests, 1, num_rows * group, length)


def _attend_prompt(
    query: torch.Tensor, keys: torch.Tensor, values: torch.Tensor, slots: torch.Tensor, scale: float
) -> torch.Tensor:
    """Causal attention of a whole prompt, query [B, L, Hq, E], slots [B, L] -> [B, L, Hq, E].

    Repeats the keys for their heads, because the kernel skips the hidden half only where rows and keys count alike: a
    prompt of 1500 tokens takes half the time.
    """
    group = query.shape[2] // keys.shape[1]
    output = scaled_dot_product_attention(
        query.transpose(1, 2),
        _gather(keys, slots, query.dtype).repeat_interleave(group, dim=2).transpose(1, 2),
        _gather(values, slots, query.dtype).repeat_interleave(group, dim=2).transpose(1, 2),
        is_causal=True,
        scale=scale,
    )
    return output.transpose(1, 2)


def _gather(pool: torch.Tensor, slots: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    """pool [num_slots, Hk, E], slots [B, L] -> [B, L, Hk, E]; twice as fast as `pool[slots]`."""
    return pool.index_select(0, slots.flatten()).view(*slots.shape, *pool.shape[1:]).to(dtype)
