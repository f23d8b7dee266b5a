"""Offline runs: strict is the target alone, λ = 0 is strict, and no row feels the others."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from bench.fidelity.arms import NONE, Arm, by_random, by_server, decider
from bench.fidelity.engine import LIMIT, Exam, K, Transcript
from bench.fidelity.measure import Answering, answers, clips_between, ties_of
from demo.evaluate import prompt_ids
from demo.heldout import HeldOutClip, served_patches
from sgl_lvspec.config import SCORERS
from sgl_lvspec.presets import PRESETS, Rule
from tests.bench.conftest import PAIR

STRICT = by_server("strict", "strict", Rule(), "attention")
LOOSE = by_server("loose", "", PRESETS["paper"], "combined")


def _run(answering: Answering, exam: Exam, arm: Arm) -> list[Transcript]:
    return exam.run(decider(arm, exam, answering.tables, range(len(exam))))


def _tokens(transcripts: list[Transcript]) -> list[list[int]]:
    return [each.tokens for each in transcripts]


def test_strict_answers_are_the_targets_own(answering: Answering, exam: Exam, clips: list[HeldOutClip]) -> None:
    target = answering.models[0]
    eos = target.vocabulary.eos
    strict, alone = _tokens(_run(answering, exam, STRICT)), _tokens(exam.alone())
    prompts = [prompt_ids(target.vocabulary, clip, 0) for clip in clips]
    greedy = target.greedy(prompts, served_patches(clips), len(clips), limit=LIMIT)
    assert strict == alone == [[*answer, eos] for answer in greedy]


@pytest.mark.parametrize("scorer", SCORERS)
def test_a_relaxation_of_0_is_strict(answering: Answering, exam: Exam, scorer: str) -> None:
    rule = PRESETS["balanced"].with_values({"relaxation": 0.0, "shift": "both"})
    assert _run(answering, exam, by_server("λ=0", "", rule, scorer)) == _run(answering, exam, STRICT)


@pytest.mark.parametrize("scorer", SCORERS)
def test_a_loose_answer_does_not_depend_on_its_batch(
    answering: Answering, exam: Exam, clips: list[HeldOutClip], scorer: str
) -> None:
    """Rows are dropped and moved together when others finish; their state, slots and draws must follow."""
    arms = [by_server("", "", PRESETS["paper"], scorer), by_random("", 0.5, seed=3)]
    together = [_run(answering, exam, arm) for arm in arms]
    assert any(label in (1, 2) for each in together[0] for label in each.labels), "nothing was loosened"
    lengths = {len(each.accepted) for each in together[0]}
    assert len(lengths) > 1, "all finished in the same round, so nothing was moved"
    for number in (0, 5):
        single = answering.exam([clips[number]], 0)
        for arm, expected in zip(arms, together, strict=True):
            found = single.run(decider(arm, single, answering.tables, [number]))
            assert found[0].tokens == expected[number].tokens


def test_runs_leave_the_exam_as_it_was(answering: Answering, exam: Exam) -> None:
    first = _run(answering, exam, STRICT)
    loose = _run(answering, exam, LOOSE)
    assert _tokens(loose) != _tokens(first)
    assert _run(answering, exam, STRICT) == first


def test_transcripts_account_for_every_token(answering: Answering, exam: Exam) -> None:
    for answer in _run(answering, exam, LOOSE):
        assert len(answer.tokens) == len(answer.labels) == len(answer.gaps)
        assert answer.labels[0] == 3
        loosened = sum(label in (1, 2) for label in answer.labels)
        assert answer.others == loosened
        assert all((gap > 0) == (label in (1, 2)) for gap, label in zip(answer.gaps, answer.labels, strict=True))
        drafted = sum(label != 3 for label in answer.labels)
        assert drafted == sum(answer.accepted)
        assert answer.rejected <= sum(count < K for count in answer.accepted)


def test_an_answer_stops_at_the_limit(answering: Answering, clips: list[HeldOutClip]) -> None:
    exam = answering.exam(clips[:2], 0)
    whole = _run(answering, exam, LOOSE)
    exam.limit = 7
    for cut, full in zip(_run(answering, exam, LOOSE), whole, strict=True):
        assert cut.tokens == full.tokens[:7]
        assert len(cut.labels) == len(cut.gaps) == 7


def test_answers_of_one_arm(answering: Answering, calibration: Path, clips: list[HeldOutClip], exam: Exam) -> None:
    expected = [[t for t in tokens if t != answering.vocabulary.eos] for tokens in _tokens(exam.alone())]
    assert answers(PAIR, calibration, clips[:2], Arm(NONE, NONE, NONE)) == expected[:2]
    assert answers(PAIR, calibration, clips[:2], STRICT) == expected[:2]


def test_clips_do_not_depend_on_those_before_them(clips: list[HeldOutClip]) -> None:
    later = clips_between(4, 6)
    assert [clip.mp4 for clip in later] == [clip.mp4 for clip in clips[4:]]
    assert [clip.questions for clip in later] == [clip.questions for clip in clips[4:]]


def test_strict_may_differ_from_the_target_alone_by_a_tie_only() -> None:
    own = Transcript([5, 6, 7], margins=[float("inf"), 1e-6, 2.0])
    assert ties_of([Transcript([5, 6, 7])], [own]) == 0
    assert ties_of([Transcript([5, 9, 9])], [own]) == 1
    with pytest.raises(RuntimeError, match="token 2"):
        ties_of([Transcript([5, 6, 9])], [own])


def test_similarity_is_the_mean_of_the_largest_cosines(exam: Exam) -> None:
    target = exam.target
    states = torch.randn(len(exam), 3, target.visual_states.shape[-1], generator=torch.Generator().manual_seed(0))
    found = target.similarity(states, 10)
    for row in range(len(exam)):
        visual = target.visual_states[row][target.is_visual[row, : target.visual_states.shape[1]]]
        cosines = torch.nn.functional.normalize(states[row], dim=-1) @ visual.T
        # float32 sums of 256 products in another order
        torch.testing.assert_close(found[row], cosines.topk(10).values.mean(-1), atol=1e-5, rtol=0)
