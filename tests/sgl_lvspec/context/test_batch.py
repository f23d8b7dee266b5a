"""What the draft's model is given of a prompt: for each token its id, its positions and its slot in the draft's KV."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch
from sglang.srt.model_executor.forward_batch_info import ForwardMode

from sgl_lvspec.context import batch as module
from sgl_lvspec.context.slots import LEFT_OUT
from sgl_lvspec.drafting.chain import ChainDraftWorker
from tests.sgl_lvspec.context.world import Clip, World

VIDEO, OTHER, IMAGE = Clip(1, 40), Clip(2, 16), Clip(3, 8)


class Draft:
    """A draft worker without a model: it writes down each forward, and what its rows held just then."""

    def __init__(self, world: World) -> None:
        self.world = world
        self.device, self.pool, self.draft_runner = "cpu", world.pool, self
        self.req_to_token_pool = world.pool.rows
        self.forwards: list[Any] = []
        self.round_batch = SimpleNamespace(
            forward_mode=ForwardMode.DECODE, sampling_info=SimpleNamespace(grammars=None), return_logprob=True
        )

    def forward(self, forward_batch: Any) -> None:
        forward_batch.rows = self.pool.rows.req_to_token.clone()
        self.forwards.append(forward_batch)

    def read(self, *reqs: Any, running: tuple[Any, ...] = ()) -> list[Any]:
        """The forwards that it took; what the rows held before is lost."""
        before = len(self.forwards)
        self.pool.rows.req_to_token.fill_(-1)
        self.world.reader.read(
            list(reqs),
            lambda: self.world.in_use(*reqs, *running),
            lambda pieces: ChainDraftWorker._read_prompts(self, self.round_batch, pieces),  # type: ignore[arg-type]
        )
        return self.forwards[before:]

    def held(self, req: Any) -> tuple[list[int], torch.Tensor]:
        """Positions in the context of what the draft holds of a request, and its draft slots there."""
        slots = self.pool.slots.state_of(self.world.target_slots(req))
        return torch.nonzero(slots > 0).flatten().tolist(), slots[slots > 0]


@pytest.fixture(autouse=True)
def _batches_as_they_are_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    """What SGLang's forward batch is made from: `batch`, and what stands beside it."""

    def init_new(batch: Any, runner: Any, **beside: Any) -> SimpleNamespace:
        assert isinstance(runner, Draft)
        return SimpleNamespace(batch=batch, **beside)

    monkeypatch.setattr(module, "ForwardBatch", SimpleNamespace(init_new=init_new))


def assert_given(draft: Draft, forwards: list[Any], *reqs: Any, num_held: int = 0) -> None:
    """Every kept token was given once, with all that belongs to it, the first of `reqs` from its `num_held`-th on."""
    done = {id(req): 0 for req in reqs} | {id(reqs[0]): num_held}
    for forward in forwards:
        batch, at = forward.batch, 0
        assert batch.forward_mode == ForwardMode.EXTEND
        for index, req in enumerate(batch.reqs):
            positions, slots = draft.held(req)
            first = done[id(req)]
            last = done[id(req)] = first + batch.extend_lens[index]
            mine, asked = slice(at, at + last - first), positions[first:last]
            assert batch.prefix_lens[index] == first, "the draft's own count, not the target's"
            assert batch.seq_lens[index] == batch.seq_lens_cpu[index] == last
            assert batch.req_pool_indices[index] == batch.req_pool_indices_cpu[index] == req.kv.req_pool_idx
            assert batch.input_ids[mine].tolist() == [req.origin_input_ids[place] for place in asked]
            assert batch.spec_info.positions[mine].tolist() == asked, "the target's positions"
            rotary = torch.tensor(asked).expand(3, -1)
            if req.multimodal_inputs is not None:
                rotary = req.multimodal_inputs.mrope_positions[:, asked]
            assert torch.equal(forward.spec_mrope_positions[:, mine], rotary)
            assert torch.equal(batch.out_cache_loc[mine], slots[first:last].long())
            row = forward.rows[req.kv.req_pool_idx]
            assert torch.equal(row[:last], slots[:last]), "attention finds what was read before, and what is read now"
            at = mine.stop
        assert at == len(batch.input_ids) == len(batch.out_cache_loc) == batch.extend_num_tokens
        assert batch.seq_lens_sum == sum(batch.seq_lens.tolist())
        for req, view in zip(batch.reqs, batch.multimodal_inputs, strict=True):
            items = set() if view is None else {item.hash for item in view.mm_items}
            assert items <= {item.hash for item in getattr(req.multimodal_inputs, "mm_items", ())}, "another's video"
    for req in reqs:
        assert done[id(req)] == len(draft.held(req)[0])


@pytest.mark.parametrize("context", ["full", "uniform"])
@pytest.mark.parametrize("max_tokens", [1000, 7], ids=["whole", "in pieces"])
def test_each_token_is_given_with_its_own_positions_and_slot(context: str, max_tokens: int) -> None:
    """Two videos, an image and text side by side; the first request's video is known from a question before."""
    world = World(context, max_tokens=max_tokens)
    draft = Draft(world)
    before = world.prompt(5, VIDEO, 7, 8, row=4)
    assert_given(draft, draft.read(before), before)
    known = len([place for place in draft.held(before)[0] if place < 41])
    again = world.prompt(5, VIDEO, 30, 31, 32, row=2, like=before, num_cached=41)
    other = world.prompt(6, 7, OTHER, 8, IMAGE, 9, row=1)
    text = world.prompt(*range(50, 62), row=3)
    forwards = draft.read(other, again, text, running=(before,))
    assert max_tokens > 7 or len(forwards) > 2
    assert_given(draft, forwards, again, other, text, num_held=known)
    left_out = world.pool.slots.state_of(world.target_slots(other)) == LEFT_OUT
    assert bool(left_out.any()) == (context == "uniform")


def test_features_begin_where_the_piece_begins_and_are_those_of_its_tokens() -> None:
    """In the draft's own count of tokens: its prefix is shorter than the target's."""
    world = World("uniform", max_tokens=6)
    draft = Draft(world)
    req = world.prompt(5, VIDEO, 7, IMAGE, 8)
    shown: list[tuple[int, int]] = []
    for forward in draft.read(req):
        [view], [prefix] = forward.batch.multimodal_inputs, forward.batch.prefix_lens
        assert forward.batch.reqs == [req]
        ids = forward.batch.input_ids
        for item in [] if view is None else view.mm_items:
            features = item.precomputed_embeddings
            assert item.feature is None, "nothing is seen a second time"
            assert item.offsets == [(prefix, prefix + len(features) - 1)]
            assert len(features) == int(torch.isin(ids, torch.tensor(item.padding_values())).sum())
            shown += [tuple(row) for row in features.int().tolist()]
    said = [world.whole(req)[place][0] for place in draft.held(req)[0]]
    assert shown == [feature for feature in said if isinstance(feature, tuple)]


def test_the_round_goes_on_as_it_was() -> None:
    """SGLang writes grammars and other things into the batch of a forward; the round's own must not have them."""
    world = World()
    draft = Draft(world)
    before = dict(vars(draft.round_batch))
    [forward] = draft.read(world.prompt(5, VIDEO, 7))
    assert vars(draft.round_batch) == before
    assert forward.batch.sampling_info is not draft.round_batch.sampling_info
    assert forward.batch.return_logprob is False
    assert forward.return_logprob is False
