"""The similarity scorer on a running verify forward, against cosines by definition in float64."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from sglang.srt.managers.schedule_batch import MM_PAD_SHIFT_VALUE

from sgl_lvspec.relevance import make_relevance
from sgl_lvspec.relevance.similarity import TOP_N, SimilarityRelevance
from sgl_lvspec.relevance.slots import SlotTables
from tests.sgl_lvspec.relevance.target import WIDTH, Target

pytestmark = pytest.mark.skipif(torch.cuda.is_available(), reason="runs the target on lvspec_cpu")

VISUAL = MM_PAD_SHIFT_VALUE + 5
TOLERANCE = 1e-5  # cosines of float32 vectors of a dozen numbers
FEW = [7, VISUAL, VISUAL, 7]
MANY = [VISUAL] * (TOP_N + 5) + [7, 7]
TEXT = [7] * 6


def attached(target: Target) -> Any:
    scorer = make_relevance("similarity")
    scorer.attach(target, target.slots, num_nodes=3 * WIDTH)  # type: ignore[arg-type]
    return scorer


def by_definition(prompt_states: torch.Tensor, ids: list[int], nodes: torch.Tensor) -> torch.Tensor:
    """Mean of the TOP_N largest cosines, [D]; 0 without visual tokens."""
    visual = prompt_states[torch.tensor(ids) == VISUAL].double()
    if not len(visual):
        return torch.zeros(len(nodes), dtype=torch.float64)
    cosines = torch.nn.functional.cosine_similarity(nodes.double()[:, None], visual[None], dim=-1)
    return cosines.topk(min(TOP_N, len(visual)), dim=1).values.mean(1)


def test_the_score_is_the_mean_of_the_largest_cosines() -> None:
    target = Target()
    scorer = attached(target)
    prompts = {1: FEW, 3: MANY, 5: TEXT}
    states = {row: target.prefill(row, ids) for row, ids in prompts.items()}
    nodes = target.verify(list(prompts), [len(ids) for ids in prompts.values()]).view(3, WIDTH, -1)
    expected = [by_definition(states[row], ids, nodes[b]) for b, (row, ids) in enumerate(prompts.items())]
    found = scorer.read(3, WIDTH)
    torch.testing.assert_close(found.double(), torch.stack(expected), rtol=0, atol=TOLERANCE)
    assert found[2].tolist() == [0.0] * WIDTH


def test_a_video_in_two_chunks_counts_whole() -> None:
    target = Target()
    scorer = attached(target)
    states = torch.cat([target.prefill(3, MANY[:6]), target.prefill(3, MANY[6:], first=6)])
    nodes = target.verify([3], [len(MANY)])
    found = scorer.read(1, WIDTH)[0]
    torch.testing.assert_close(found.double(), by_definition(states, MANY, nodes), rtol=0, atol=TOLERANCE)


def test_a_slot_taken_over_gives_the_new_owners_state() -> None:
    target = Target()
    scorer = attached(target)
    target.prefill(1, FEW)
    states = target.prefill(1, FEW)  # the row's slots again, as after a retraction
    nodes = target.verify([1], [len(FEW)])
    found = scorer.read(1, WIDTH)[0]
    torch.testing.assert_close(found.double(), by_definition(states, FEW, nodes), rtol=0, atol=TOLERANCE)


def test_what_was_read_is_the_readers_own_and_detaching_ends_it() -> None:
    target = Target()
    scorer = attached(target)
    target.prefill(1, FEW)
    target.verify([1], [len(FEW)])
    before = scorer.read(1, WIDTH)
    kept = before.clone()
    target.verify([1], [len(FEW)])
    assert not torch.equal(scorer.read(1, WIDTH), kept)
    assert torch.equal(before, kept)
    last = scorer.read(1, WIDTH)
    scorer.detach()
    scorer.detach()
    target.verify([1], [len(FEW)])
    assert torch.equal(scorer.read(1, WIDTH), last)


def test_tables_without_states_are_a_broken_rule() -> None:
    target = Target()
    with pytest.raises(AssertionError, match="state_width"):
        SimilarityRelevance().attach(target, SlotTables(10, "cpu"), num_nodes=4)  # type: ignore[arg-type]


def test_only_this_scorer_asks_for_states() -> None:
    assert {name: make_relevance(name).needs_states for name in ("attention", "combined", "similarity")} == {
        "attention": False,
        "combined": False,
        "similarity": True,
    }


def test_scores_that_nobody_wants_are_not_computed_and_prompts_are_read_all_the_same(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    target = Target()
    scorer = attached(target)
    scorer.is_wanted = False
    states = target.prefill(1, FEW)
    with monkeypatch.context() as patch:
        patch.setattr("sgl_lvspec.relevance.similarity.visual_similarity", None)
        target.verify([1], [len(FEW)])
    scorer.is_wanted = True
    nodes = target.verify([1], [len(FEW)])
    expected = by_definition(states, FEW, nodes)
    torch.testing.assert_close(scorer.read(1, WIDTH)[0].double(), expected, rtol=0, atol=TOLERANCE)
