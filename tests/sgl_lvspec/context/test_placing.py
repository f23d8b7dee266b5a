"""Where a round's tokens go: from the target's slots and lengths to the draft's, in a pool that others use too."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch

from sgl_lvspec.drafting.chain import ChainDraftWorker
from tests.sgl_lvspec.context.world import WIDTH, Clip, World

VIDEO = Clip(1, 40)


@pytest.mark.parametrize("context", ["full", "uniform"])
@pytest.mark.parametrize("width", [WIDTH, WIDTH - 1])
def test_a_round_goes_on_where_the_drafts_own_context_ends(context: str, width: int) -> None:
    world = World(context)
    long, text = world.prompt(5, VIDEO, 7, 8, row=3), world.prompt(*range(50, 60), row=1)
    world.read(long, text)
    reqs = (long, text)
    held = [world.pool.slots.state_of(world.target_slots(req)) for req in reqs]
    held = [slots[slots > 0] for slots in held]
    assert (len(held[0]) < long.length) == (context == "uniform")

    targets = world.allocator.alloc(len(reqs) * WIDTH)
    assert targets is not None
    positions, mrope = torch.tensor([long.length, text.length]), torch.arange(6).view(3, 2)
    of_target = positions.int()
    batch = SimpleNamespace(
        req_pool_indices=torch.tensor([3, 1]), seq_lens=of_target, seq_lens_cpu=positions,
        positions=positions.clone(), mrope_positions=mrope.clone(), out_cache_loc=targets,
    )  # fmt: skip
    rows = world.pool.rows.req_to_token
    rows.fill_(-1)
    worker = SimpleNamespace(pool=world.pool, speculative_num_steps=WIDTH - 1)
    lens, slots = ChainDraftWorker._place(worker, batch, width)  # type: ignore[arg-type]

    assert lens.tolist() == batch.seq_lens.tolist() == [len(each) for each in held]
    assert batch.seq_lens_cpu is None, "the target's lengths are not the draft's"
    assert torch.equal(of_target, positions.int()), "verify reads them: a pruned video would change a strict answer"
    assert torch.equal(batch.positions, positions), "positions are the target's"
    assert torch.equal(batch.mrope_positions, mrope)
    assert slots.shape == (2, width)
    own = world.pool.slots.draft_slot[targets.view(2, WIDTH)[:, :width]]
    assert torch.equal(slots, own.long()), "what is accepted is found by the target's slots"
    for row, before, placed in zip((3, 1), held, slots, strict=True):
        assert torch.equal(rows[row, : len(before) + width], torch.cat([before, placed.int()]))
    assert len(torch.cat([*held, slots.flatten()]).unique()) == sum(map(len, held)) + slots.numel()
