"""What the draft reads of prompts: from the first hole on, what its policy keeps, and nothing twice."""

from __future__ import annotations

import hypothesis.strategies as st
import pytest
import torch
from hypothesis import given, settings

from sgl_lvspec.context.prompt import unread_of
from sgl_lvspec.context.slots import HOLE, LEFT_OUT
from tests.sgl_lvspec.context.world import DELTA, STAND_IN, Clip, World

CLIP = Clip(number=1, num_tokens=40)


def test_a_prompt_is_read_whole_and_in_order() -> None:
    world = World()
    req = world.prompt(5, 6, CLIP, 7, 8)
    assert world.read(req) == 1
    assert world.held(req) == world.whole(req)
    assert (world.tally.read_text, world.tally.read_visual, world.tally.left_out) == (4, 40, 0)
    assert unread_of(req) is None


def test_what_was_read_is_not_read_again() -> None:
    world = World()
    req = world.prompt(5, 6, 7)
    world.read(req)
    assert world.read(req) == 0
    assert world.reader.tally.reading_seconds > 0


def test_a_prompt_that_the_draft_has_whole_needs_no_forward() -> None:
    """All of it was cached, and the last token, which the target reads once more, took the same slot."""
    world = World()
    first = world.prompt(5, CLIP, 7)
    world.read(first)
    again = world.prompt(5, CLIP, 7, row=2, like=first, num_cached=42)
    assert world.read(again, running=(first,)) == 0
    assert unread_of(again) is None
    assert world.held(again) == world.whole(again)


@pytest.mark.parametrize("context", ["full", "uniform"])
def test_another_question_about_a_video_reads_only_what_is_new(context: str) -> None:
    """What was left out for the first question stays out."""
    world = World(context)
    first = world.prompt(5, CLIP, 7, 8)
    world.read(first)
    before = world.held(first)
    second = world.prompt(5, CLIP, 30, 31, 32, row=2, like=first, num_cached=41)
    assert world.read(second, running=(first,)) == 1
    [[piece]] = world.forwards[1:]
    assert piece.reading.ids.tolist() == [30, 31, 32]
    assert piece.reading.kept.tolist() == [41, 42, 43]
    assert piece.reading.num_held == len(before) - 2
    assert world.held(second) == [*before[:-2], (30, 41), (31, 42), (32, 43)]
    assert world.held(first) == before
    assert world.features.asked == [1], "its features are not made again"


def test_only_the_budget_of_a_video_is_read_and_all_text() -> None:
    world = World("uniform", keep=0.25)
    req = world.prompt(5, CLIP, 7)
    world.read(req)
    kept = world.kept(req)
    assert kept == [0, *range(3, 41, 4), 41], "rank 2 of every four"
    assert world.held(req) == [entry for entry in world.whole(req) if entry[1] in kept]
    assert (world.tally.read_text, world.tally.read_visual, world.tally.left_out) == (2, 10, 30)
    state = world.pool.slots.state_of(world.target_slots(req))
    assert (state == LEFT_OUT).sum() == 30
    assert world.pool.slots.available() == 300 - 12


@pytest.mark.parametrize(("keep_min", "num_kept"), [(40, 10), (41, 40)])
def test_short_videos_are_kept_whole(keep_min: int, num_kept: int) -> None:
    world = World("uniform", keep=0.25, keep_min=keep_min)
    req = world.prompt(5, CLIP, 7)
    world.read(req)
    assert len(world.kept(req)) == 2 + num_kept


def test_every_video_has_its_own_budget() -> None:
    world = World("random", keep=0.1)
    req = world.prompt(5, Clip(1, 40), 6, Clip(2, 15), 7, Clip(3, 3), 8)
    world.read(req)
    numbers = [said[0] for said, _ in world.held(req) if isinstance(said, tuple)]
    assert numbers == [1, 1, 1, 1, 2, 2, 3], "rounded up, in the order of the prompt"


def test_reading_begins_at_the_first_hole() -> None:
    """Something in the middle was evicted; what is behind it saw it, so it is read anew as well."""
    world = World()
    req = world.prompt(5, CLIP, 7, 8)
    world.read(req)
    hole = world.target_slots(req)[[20]]
    world.pool.slots.release(hole)
    again = world.prompt(5, CLIP, 9, row=2, like=req, num_cached=41)
    assert world.read(again, running=(req,)) == 1
    [piece] = world.forwards[1]
    assert piece.reading.num_held == 20
    assert piece.reading.kept.tolist() == list(range(20, 42))
    assert world.held(again) == world.whole(again)
    assert world.held(req) == world.whole(req)
    assert world.pool.slots.available() == 300 - 44, "nothing is held twice"


def test_a_video_with_a_hole_is_chosen_from_anew_behind_it() -> None:
    world = World("uniform", keep=0.25)
    req = world.prompt(5, CLIP, 7)
    world.read(req)
    before = world.kept(req)
    world.pool.slots.release(world.target_slots(req)[before[6:7]])
    again = world.prompt(5, CLIP, 9, row=2, like=req, num_cached=41)
    world.read(again, running=(req,))
    kept = world.kept(again)
    assert kept[:6] == before[:6]
    assert kept[6:] == [24, 28, 32, 35, 39, 41], "spread over the 18 that are left; they were 23, 27, 31, 35 and 39"
    assert [entry for entry in world.whole(again) if entry[1] in kept] == world.held(again)


def test_requests_that_share_an_unread_video_take_turns() -> None:
    """The first one reads it; the second reads its question, in a forward that sees it. Others need not wait."""
    world = World()
    first = world.prompt(5, CLIP, 7, row=1)
    second = world.prompt(5, CLIP, 8, row=2, like=first, num_cached=41)
    other = world.prompt(50, 51, row=3)
    assert world.read(first, second, other) == 2
    assert [[piece.reading.req for piece in group] for group in world.forwards] == [[first, other], [second]]
    for req in (first, second, other):
        assert world.held(req) == world.whole(req)
    assert world.tally.read_visual == 40
    assert world.features.asked == [1]


def test_requests_that_share_only_what_is_held_do_not_wait() -> None:
    world = World()
    first = world.prompt(5, CLIP, 7, row=1)
    world.read(first)
    second = world.prompt(5, CLIP, 8, row=2, like=first, num_cached=41)
    third = world.prompt(5, CLIP, 9, row=3, like=first, num_cached=41)
    assert world.read(second, third, running=(first,)) == 1
    assert world.held(third) == world.whole(third)


def test_pieces_and_forwards_have_at_most_as_many_tokens_as_may_be_prefilled() -> None:
    """Pieces of one request follow each other in forwards of their own."""
    world = World(max_tokens=16)
    reqs = [
        world.prompt(5, Clip(1, 30), 7, 8, row=1),
        world.prompt(*range(20, 30), row=2),
        world.prompt(3, row=3),
        world.prompt(*range(40, 45), row=4),
    ]
    world.read(*reqs)
    shape = [[(piece.reading.row, piece.first, piece.last) for piece in group] for group in world.forwards]
    assert shape == [[(1, 0, 16)], [(1, 16, 32)], [(1, 32, 33), (2, 0, 10), (3, 0, 1)], [(4, 0, 5)]]
    for req in reqs:
        assert world.held(req) == world.whole(req)


def test_the_longest_unused_contexts_make_room_and_running_ones_stay() -> None:
    world = World(size=100)
    old = world.prompt(5, Clip(1, 30), row=1)
    world.read(old)
    newer = world.prompt(5, Clip(2, 30), row=2)
    world.read(newer)
    running = world.prompt(5, Clip(3, 30), row=3)
    world.read(running)
    # Running although longest unused: `touch` says nothing of it.
    late = world.prompt(5, Clip(4, 30), row=4)
    world.read(late, running=(running, old))
    assert world.held(late) == world.whole(late)
    assert world.held(old) == world.whole(old)
    assert world.held(running) == world.whole(running)
    assert len(world.held(newer)) == 31 - 24
    assert world.tally.evicted == 24, "seven were free"
    assert world.pool.slots.available() == 0


def test_a_video_that_is_asked_about_again_outlives_newer_ones() -> None:
    world = World(size=80)
    old, newer = world.prompt(5, Clip(1, 30), row=1), world.prompt(5, Clip(2, 30), row=2)
    for req in (old, newer):
        world.read(req)
    again = world.prompt(5, Clip(1, 30), 8, row=3, like=old, num_cached=31)
    world.read(again)
    late = world.prompt(5, Clip(3, 30), row=4)
    world.read(late)
    assert world.held(again) == world.whole(again)
    assert len(world.held(newer)) < 31


def test_a_prompt_without_room_is_counted_and_left() -> None:
    world = World(size=50)
    running = world.prompt(5, Clip(1, 30), row=1)
    world.read(running)
    late = world.prompt(5, Clip(2, 30), row=2)
    small = world.prompt(6, 7, row=3)
    assert world.read(late, small, running=(running,)) == 1
    assert world.tally.unread_prompts == 1
    assert world.tally.read_visual == 30
    assert unread_of(late) is None, "it is not tried again every round"
    assert world.held(late) == []
    assert (world.pool.slots.state_of(world.target_slots(late)) == HOLE).all()
    assert world.held(small) == world.whole(small)
    assert world.held(running) == world.whole(running)


def test_what_is_held_behind_a_hole_counts_as_room() -> None:
    """It is given back and taken again."""
    world = World(size=34)
    req = world.prompt(5, Clip(1, 30), 6)
    world.read(req)
    world.pool.slots.release(world.target_slots(req)[[4]])
    again = world.prompt(5, Clip(1, 30), 9, row=2, like=req, num_cached=31)
    world.read(again, running=(req,))
    assert world.tally.unread_prompts == 0
    assert world.held(again) == world.whole(again)


def test_room_for_a_round_is_made_from_what_nobody_uses() -> None:
    world = World(size=40)
    done = world.prompt(5, Clip(1, 20), row=1)
    running = world.prompt(5, Clip(2, 14), row=2)
    world.read(done, running)
    world.reader.keep_room(4, lambda: world.in_use(running))
    assert world.pool.slots.available() == 4, "there was room"
    world.reader.keep_room(10, lambda: world.in_use(running))
    assert world.pool.slots.at_least == world.pool.slots.available() == 14, "some for the next rounds, too"
    assert world.pool.slots.num_evicted() == 10, "what a round pushes out is counted, too"
    world.reader.keep_room(1000, lambda: world.in_use(running))
    assert world.held(running) == world.whole(running)
    world.pool.slots.check()


def test_a_prompt_that_can_never_fit_costs_nobody_else() -> None:
    world = World(size=40)
    done = world.prompt(5, Clip(1, 20), row=1)
    huge = world.prompt(5, Clip(2, 60), row=2)
    world.read(done)
    world.read(huge)
    assert (world.tally.unread_prompts, world.tally.evicted) == (1, 0)
    assert world.held(done) == world.whole(done)


def test_a_retracted_request_goes_on_with_its_answer() -> None:
    """Its context is the prompt and what was said so far; positions behind the prompt keep its distance."""
    world = World("uniform", keep=0.25)
    req = world.prompt(5, CLIP, 7, output=(60, 61, 62))
    world.read(req)
    held = world.held(req)
    assert held[-4:] == [(7, 41), (60, 42), (61, 43), (62, 44)]
    [[piece]] = world.forwards
    kept = piece.reading.kept
    behind = kept >= 42
    assert torch.equal(piece.reading.rotary[:, ~behind], kept[~behind] * torch.tensor([[1], [2], [3]]))
    assert torch.equal(piece.reading.rotary[:, behind], (kept[behind] + DELTA).expand(3, -1))


def test_a_draft_for_text_reads_line_breaks_in_place_of_a_video() -> None:
    world = World("uniform", keep=0.1, blind=True)
    req = world.prompt(5, CLIP, 7)
    world.read(req)
    assert [said for said, _ in world.held(req)] == [5, *[STAND_IN] * 4, 7]
    assert world.tally.read_visual == 4
    assert world.tally.unseen_media == 0


def test_embeddings_of_the_client_blind_the_draft_for_that_item_alone() -> None:
    """They are of the target's width."""
    world = World()
    req = world.prompt(5, Clip(1, 4, is_precomputed=True), 6, Clip(2, 3), 7)
    world.read(req)
    assert [said for said, _ in world.held(req)] == [5, *[STAND_IN] * 4, 6, (2, 0), (2, 1), (2, 2), 7]
    assert world.tally.unseen_media == 0
    assert world.features.asked == [2]


def test_a_video_whose_pixels_are_gone_is_left_out_and_counted() -> None:
    world = World()
    req = world.prompt(5, Clip(1, 10, has_pixels=False), 6, Clip(2, 2), 7)
    world.read(req)
    assert [said for said, _ in world.held(req)] == [5, 6, (2, 0), (2, 1), 7]
    assert (world.tally.unseen_media, world.tally.left_out, world.tally.read_visual) == (1, 10, 2)
    assert (world.pool.slots.state_of(world.target_slots(req)) == LEFT_OUT).sum() == 10


def test_what_the_question_looks_at_is_kept() -> None:
    world = World("specvlm", keep=0.1)
    req = world.prompt(5, CLIP, 7)
    unread = unread_of(req)
    assert unread is not None
    unread.evidence = torch.zeros(42)
    unread.evidence[0] = 9.0  # text does not compete
    unread.evidence[[33, 12]] = 1.0
    world.read(req)
    kept = world.kept(req)
    assert len(kept) == 4 + 2
    assert {12, 33} & set(kept)
    assert world.tally.fallbacks == 0


@pytest.mark.parametrize("kind", ["none", "unknown in part"])
def test_without_evidence_a_video_is_spread_evenly_and_that_is_counted(kind: str) -> None:
    """Its beginning was in the radix cache, and the draft has lost it."""
    world, even = World("uvprune", keep=0.25), World("uniform", keep=0.25)
    req, other = world.prompt(5, CLIP, 7), even.prompt(5, CLIP, 7)
    unread = unread_of(req)
    assert unread is not None
    if kind != "none":
        unread.evidence = torch.rand(42)
        unread.evidence[:10] = float("nan")
    world.read(req)
    even.read(other)
    assert world.kept(req) == even.kept(other)
    assert (world.tally.fallbacks, even.tally.fallbacks) == (1, 0)


def test_evidence_of_what_is_held_already_is_not_asked_for() -> None:
    world = World("uvprune", keep=0.25)
    first = world.prompt(5, CLIP, 7)
    world.read(first)
    second = world.prompt(5, CLIP, 8, row=2, like=first, num_cached=41)
    world.read(second, running=(first,))
    assert world.tally.fallbacks == 1
    assert world.tally.left_out == 30


parts = st.lists(
    st.one_of(st.integers(5, 90), st.builds(Clip, number=st.integers(1, 4), num_tokens=st.integers(1, 18))),
    min_size=1,
    max_size=4,
)


@settings(max_examples=100, deadline=None)
@given(st.data())
def test_whatever_comes_goes_and_is_shared_every_context_is_a_part_of_the_truth(data: st.DataObject) -> None:
    """Small pools, chunks of few tokens, evictions and frees: what the draft holds of a context is right, in order."""
    size = data.draw(st.integers(20, 200))
    world = World(
        data.draw(st.sampled_from(["full", "uniform", "random"])),
        size=size,
        max_tokens=data.draw(st.integers(1, 40)),
        keep=data.draw(st.sampled_from([0.1, 0.5])),
        keep_min=data.draw(st.sampled_from([0, 6])),
    )
    running: dict[int, tuple[tuple[int | Clip, ...], object]] = {}
    for _ in range(data.draw(st.integers(1, 5))):
        new = []
        for _ in range(data.draw(st.integers(1, 2))):
            free = sorted({1, 2, 3, 4, 5} - set(running))
            if not free or world.allocator.available_size() < 200:
                break
            mine = (*data.draw(parts), 99)
            like, cached = None, 0
            if running and data.draw(st.booleans()):
                theirs, like = running[data.draw(st.sampled_from(sorted(running)))]
                mine = (*theirs, *mine)
                cached = data.draw(st.integers(0, like.length - 1))  # type: ignore[attr-defined]
            if sum(part.num_tokens if isinstance(part, Clip) else 1 for part in mine) > 110:
                break
            req = world.prompt(*mine, row=free[0], like=like, num_cached=cached)
            running[free[0]] = (mine, req)
            new.append(req)
        world.read(*new, running=tuple(req for _, req in running.values()))
        if running and data.draw(st.booleans()):
            gone = data.draw(st.sampled_from(sorted(running)))
            del running[gone]
        for _, req in running.values():
            truth = iter(world.whole(req))
            assert all(entry in truth for entry in world.held(req)), "something else, or out of order"
    if size == 200 and not world.tally.evicted and world.tally.unread_prompts == 0:
        assert all((99, req.length - 1) in world.held(req) for _, req in running.values())  # type: ignore[attr-defined]
