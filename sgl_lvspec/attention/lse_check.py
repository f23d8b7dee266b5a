"""Is FlashInfer's log-sum-exp what we take it for? Asked once at start-up, with a case whose answer is known.

Base, scale, mask, order of heads: if one of them were another one, relevance would be wrong and nothing would say so.
The case goes through the wrapper class, backend, head shape and dtypes of the target's own verify forward, so its
kernel is the one that will run.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import torch

from sgl_lvspec.attention.flashinfer_backend import NotingWrapper

if TYPE_CHECKING:
    from sglang.srt.layers.radix_attention import RadixAttention

    from sgl_lvspec.attention.flashinfer_backend import LseFlashInferBackend

KV_LENS, WIDTH = (9, 4), 3  # two contexts, with their nodes
# FlashInfer rounds weights to 16 bits before it adds them up: a sum is off by up to 2^-8 of itself, its logarithm by
# .006; in another base the logarithms below would be off by .5 and more, and with another mask or scale by .1.
TOLERANCE = 0.02


def check_lse(backend: LseFlashInferBackend, layer: RadixAttention) -> None:
    """Run the case on the layer's head shape.

    Raises:
        ValueError: in the form *required / found / do this*.
    """
    try:
        found = _run(backend, layer)
    except (AttributeError, TypeError, ValueError, RuntimeError) as error:
        raise _refusal(f"{type(error).__name__}: {error}") from error
    lse, expected = found
    if lse.shape != expected.shape or lse.dtype != torch.float32:
        raise _refusal(f"{lse.dtype} of shape {tuple(lse.shape)} instead of float32 {tuple(expected.shape)}")
    lse = lse.double().cpu()
    if not torch.allclose(lse, expected, rtol=0, atol=TOLERANCE):
        is_natural = torch.allclose(lse * math.log2(math.e), expected, rtol=0, atol=TOLERANCE)
        raise _refusal("base e" if is_natural else f"numbers that are off by up to {(lse - expected).abs().max():.3g}")


def _run(backend: LseFlashInferBackend, layer: RadixAttention) -> tuple[torch.Tensor, torch.Tensor]:
    """(what the wrapper says, what it should say, float64 on the host), both [R, Hq]."""
    heads, kv_heads, width = layer.tp_q_head_num, layer.tp_k_head_num, layer.qk_head_dim
    keys, values = backend.token_to_kv_pool.get_kv_buffer(layer.layer_id)
    device, num_slots = keys.device, sum(KV_LENS) + 1
    planner = backend.indices_updater_prefill
    rng = torch.Generator().manual_seed(0)
    query = torch.randn(WIDTH * len(KV_LENS), heads, width, generator=rng).to(planner.q_data_type)
    known = torch.randn(num_slots, kv_heads, width, generator=rng).to(keys.dtype)
    slots = torch.randperm(num_slots - 1, generator=rng) + 1
    # Scores of about 3 apart from what a context of equal ones has, so that a base, a scale and a mask can be told.
    scale = 3.0 * width**-0.5
    limits = [[n - WIDTH + 1 + node for node in range(WIDTH)] for n in KV_LENS]
    mask = [torch.arange(n) < limit for n, of_request in zip(KV_LENS, limits, strict=True) for limit in of_request]

    def on_device(numbers: Any) -> torch.Tensor:
        return torch.tensor(numbers, dtype=torch.int32, device=device)

    wrapper = type(backend.prefill_wrappers_verify[0])(backend.workspace_buffer, "NHD", backend=backend.prefill_backend)
    wrapper.begin_forward(
        on_device([0, WIDTH, 2 * WIDTH]),
        on_device([0, KV_LENS[0], sum(KV_LENS)]),
        slots.to(device, torch.int32),
        on_device([1, 1]),
        heads,
        kv_heads,
        width,
        1,
        q_data_type=planner.q_data_type,
        kv_data_type=planner.data_type,
        custom_mask=torch.cat(mask).to(device),
    )
    noting = NotingWrapper(wrapper)
    noting.forward(
        query.to(device),
        (known.to(device), torch.zeros_like(values[:1]).expand(num_slots, -1, -1).contiguous()),
        causal=True,
        sm_scale=scale,
        window_left=-1,
        logits_soft_cap=0.0,
    )
    assert noting.lse is not None
    per_slot = known.double().repeat_interleave(heads // kv_heads, dim=1)  # [num_slots, Hq, E]
    rows = []
    for row, sees in enumerate(mask):
        context = slots[: KV_LENS[0]] if row < WIDTH else slots[KV_LENS[0] :]
        scores = (per_slot[context[sees]] * query[row].double()).sum(dim=2) * scale  # [L, Hq]
        rows.append(scores.logsumexp(dim=0) * math.log2(math.e))
    return noting.lse, torch.stack(rows)


def _refusal(found: str) -> ValueError:
    return ValueError(
        "--lvspec-mass auto needs FlashInfer's log-sum-exp of a verify forward as float32 [rows, heads] in base 2, "
        f"over what the mask shows; found {found}. Set --lvspec-mass keys, which reads the keys instead."
    )
