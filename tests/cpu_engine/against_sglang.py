"""Runs SGLang's own Triton kernels in Triton's interpreter and compares the engine's ops with them.

A script, not a test file: `TRITON_INTERPRET=1` has to be set before Triton is first imported. Called by
`test_against_sglang.py`; raises at the first difference. The processor claims AMX meanwhile, to see what SGLang
makes of that claim beside this engine.
"""

from __future__ import annotations

from collections.abc import Callable

import torch

torch.cpu._is_amx_tile_supported = lambda: True

from sglang.kernels.ops.speculative import cache_locs, eagle, multi_layer_eagle, spec_tree  # noqa: E402
from sglang.srt.mem_cache import allocation  # noqa: E402
from sglang.srt.utils import common  # noqa: E402
from test_tree import draft_candidates  # noqa: E402

import sgl_kernel  # noqa: E402

ROWS, POOL_LEN = 9, 48


def agree(name: str, ours: Callable[..., None], theirs: Callable[..., None], *tensors: torch.Tensor) -> None:
    """Run both on copies of `tensors`; whatever either of them writes has to be the same in the end."""
    mine, reference = [t.clone() for t in tensors], [t.clone() for t in tensors]
    ours(*mine)
    theirs(*reference)
    for position, (got, want) in enumerate(zip(mine, reference, strict=True)):
        assert torch.equal(got, want), f"{name}: tensor {position}\n{got}\n{want}"


def main() -> None:
    """Compare every op that has a Triton counterpart, on a few random batches."""
    rng = torch.Generator().manual_seed(1)

    def integers(low: int, high: int, *shape: int, dtype: torch.dtype = torch.int64) -> torch.Tensor:
        return torch.randint(low, high, shape, generator=rng).to(dtype)

    for batch in (1, 3, 5):
        table = integers(0, 999, ROWS, POOL_LEN, dtype=torch.int32)
        rows = torch.randperm(ROWS, generator=rng)[:batch]
        start = integers(0, 9, batch)
        end = start + integers(0, 36, batch)
        total = int((end - start).sum())
        upper = 1 << (batch - 1).bit_length()

        agree(
            "assign_req_to_token_pool",
            lambda *t: sgl_kernel.assign_req_to_token_pool_cpu(*t, POOL_LEN),
            lambda *t, n=batch, u=upper: allocation.assign_req_to_token_pool[(n,)](*t, POOL_LEN, u),
            *(rows, table, start, end, integers(0, 999, total)),
        )
        agree(
            "assign_extend_cache_locs",
            lambda *t: sgl_kernel.assign_extend_cache_locs_cpu(*t, POOL_LEN),
            lambda *t, n=batch, u=upper: cache_locs.assign_extend_cache_locs[(n,)](*t, POOL_LEN, u),
            *(rows, table, start, end, torch.zeros(total, dtype=torch.int64)),
        )
        agree(
            "assign_draft_cache_locs_contiguous",
            lambda *t: sgl_kernel.assign_draft_cache_locs_contiguous_cpu(*t, POOL_LEN, 2, 3),
            lambda *t, n=batch: cache_locs.assign_draft_cache_locs_contiguous[(n,)](*t, POOL_LEN, 2, 3),
            *(rows, table, start, torch.zeros(batch * 6, dtype=torch.int64)),
        )
        accept_index = integers(-1, 4 * batch, 4 * batch, dtype=torch.int32)
        agree(
            "fill_accept_out_cache_loc",
            sgl_kernel.fill_accept_out_cache_loc_cpu,
            lambda *t, n=batch, u=upper: eagle.fill_accept_out_cache_loc[(4 * n,)](*t, 4 * u),
            *(accept_index, integers(0, 999, 4 * batch), torch.zeros(4 * batch, dtype=torch.int64)),
        )
        agree(
            "fill_bonus_tokens",
            lambda *t: sgl_kernel.fill_bonus_tokens_cpu(*t, 4),
            lambda *t, n=batch: eagle.fill_bonus_tokens[(n,)](*t, 4),
            *(
                integers(0, 999, batch, 4, dtype=torch.int32),
                integers(1, 5, batch, dtype=torch.int32),
                torch.zeros(batch, dtype=torch.int32),
            ),
        )
        lengths = integers(0, 12, batch)
        starts = torch.cumsum(lengths, 0) - lengths
        for select in (None, starts + (lengths - 2).clamp(min=0)):
            agree(
                "rotate_input_ids",
                lambda *t, s=select: sgl_kernel.rotate_input_ids_cpu(*t, s),
                lambda *t, n=batch, s=select: multi_layer_eagle.rotate_input_ids_kernel[(n,)](*t, s, BLOCK_SIZE=8),
                *(integers(0, 999, int(lengths.sum()) + 1), starts, lengths, integers(0, 999, batch)),
            )
        for topk, depth, nodes in ((1, 3, 4), (2, 3, 6), (3, 3, 9)):
            parent_list, selected = draft_candidates(batch, topk, depth, nodes, rng, is_closed=topk < 3)
            seq_lens = integers(0, 7, batch)
            links = [torch.full((batch, nodes), -1) for _ in range(3)]
            for mode in (0, 1):
                size = batch * nodes**2 + (int(seq_lens.sum()) * nodes if mode == 0 else 0)
                outputs = [torch.ones(size, dtype=torch.bool), torch.zeros(batch * nodes, dtype=torch.int64), *links]
                shape = (topk, depth, nodes, mode)
                agree(
                    "build_tree",
                    lambda *t, s=shape: sgl_kernel.build_tree_kernel_efficient_cpu(*t, *s),
                    lambda *t, s=shape: spec_tree.sgl_build_tree_kernel_triton(*t, *s),
                    *(parent_list, selected, seq_lens, *outputs),
                )
            sgl_kernel.build_tree_kernel_efficient_cpu(parent_list, selected, seq_lens, *outputs, *shape)
            agree(
                "verify_tree_greedy",
                sgl_kernel.verify_tree_greedy_cpu,
                spec_tree.verify_tree_greedy_triton,
                torch.full((batch * nodes,), -5, dtype=torch.int32),
                torch.full((batch, depth + 1), -1, dtype=torch.int32),
                torch.full((batch,), -5, dtype=torch.int32),
                integers(0, 2, batch, nodes),
                *links,
                integers(0, 2, batch, nodes),
            )
    print("kernels agree")
    print("cpu", common.is_cpu(), "tiles", common.is_amx_tile_supported, "amx", common.cpu_has_amx_support())


if __name__ == "__main__":
    main()
