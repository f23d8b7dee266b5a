"""`mass_from_lse` takes FlashInfer's log-sum-exp as it is: both together say what `visual_mass` reads off the keys."""

from __future__ import annotations

import pytest
import torch

from lvspec_kernels import mass_from_lse, visual_mass
from tests.lvspec_kernels.paged_contexts import POISONED, contexts

WIDTH = 11
# FlashInfer adds up weights that are rounded to bfloat16: a sum is off by up to 2 ** -9 of itself, and so is a share.
TOLERANCE = {"rtol": 0, "atol": 2.0**-8}


@pytest.mark.parametrize("kv_lens", [[11], [700, 12, 4097], [64, 65, 128, 640]], ids=str)
@pytest.mark.parametrize(("num_heads", "num_kv_heads"), [(28, 4), (40, 8)])
def test_flashinfers_log_sum_exp_gives_the_share_that_the_keys_give(
    kv_lens: list[int], num_heads: int, num_kv_heads: int
) -> None:
    flashinfer = pytest.importorskip("flashinfer", reason="compares with FlashInfer, which is not installed here")
    if not torch.cuda.is_available():
        pytest.skip("needs a GPU: FlashInfer's kernels run nowhere else")
    rng = torch.Generator().manual_seed(sum(kv_lens))
    context = contexts(kv_lens, rng, visual=0.9)
    rows, scale = len(kv_lens) * WIDTH, 128**-0.5
    query = torch.randn(rows, num_heads, 128, generator=rng).to("cuda", torch.bfloat16)
    keys = context.pool(num_kv_heads, 128, generator=rng).to("cuda", torch.bfloat16)
    slots = torch.tensor([slot for request in range(len(kv_lens)) for slot in context.slots(request)])
    assert POISONED not in slots

    def ends(lengths: list[int]) -> torch.Tensor:
        return torch.tensor([0, *lengths]).cumsum(dim=0).to("cuda", torch.int32)

    workspace = torch.empty(128 << 20, dtype=torch.uint8, device="cuda")
    wrapper = flashinfer.BatchPrefillWithPagedKVCacheWrapper(workspace, "NHD")
    wrapper.plan(
        ends([WIDTH] * len(kv_lens)), ends(kv_lens), slots.to("cuda", torch.int32),
        torch.ones(len(kv_lens), dtype=torch.int32, device="cuda"), num_heads, num_kv_heads, 128, 1,
        causal=True, sm_scale=scale, q_data_type=torch.bfloat16,
    )  # fmt: skip
    pages = keys[:, None]  # [slots, 1, Hk, E]
    _, lse = wrapper.run(query, (pages, torch.zeros_like(pages)), return_lse=True)
    given = {"query": query, "keys": keys, "scale": scale, **context.arguments("cuda")}
    given["heads"] = torch.tensor([0, num_heads // 2, num_heads - 1], device="cuda")
    shares = visual_mass(**given)
    torch.testing.assert_close(mass_from_lse(**given, lse=lse), shares, **TOLERANCE)
    # A log-sum-exp of another base or mask would be off by far more.
    assert ((mass_from_lse(**given, lse=lse * 0.69) - shares).abs() > 2 * TOLERANCE["atol"]).any()
