"""Nothing between the draft's first step and the commit waits for the device, in any kind of round.

On CPU nothing would, so operations are refused that wait on CUDA (`graphs.no_sync`), in the code that both run.
"""

from __future__ import annotations

from typing import Any

import pytest
import torch
from sglang.srt.model_executor.forward_batch_info import ForwardMode

from sgl_lvspec.graphs import no_sync
from sgl_lvspec.graphs.no_sync import HostWaitError
from sgl_lvspec.relevance.slots import SlotTables
from sgl_lvspec.verification import commit
from tests.sgl_lvspec.verification.loose_rounds import ALL, VideoRequest, make_rule, text_request
from tests.sgl_lvspec.verification.test_mixed_batches import Round

GREEDY = {"temperature": 0.0}


@pytest.fixture(autouse=True)
def watched(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(no_sync._Watch, "is_on", False)
    no_sync.switch_on()


ROUNDS: dict[str, list[VideoRequest]] = {
    "greedy": [VideoRequest(1, asks=ALL, **GREEDY), text_request(3, **GREEDY)],
    "sampled": [VideoRequest(1, asks=ALL, temperature=0.7), VideoRequest(2, temperature=1.0, top_p=0.9, min_p=0.1)],
    "mixed": [VideoRequest(1, asks=ALL, **GREEDY), text_request(3, temperature=0.9, top_k=20)],
    "penalties": [VideoRequest(1, asks=ALL, **GREEDY), VideoRequest(2, asks=ALL, presence_penalty=0.4, **GREEDY)],
    "labels": [VideoRequest(1, asks={"mode": "strict", "labels": True}, **GREEDY)],
    "strict-and-sampled": [text_request(1, temperature=1.0), text_request(2, **GREEDY)],
}


@pytest.mark.parametrize("kind", ROUNDS)
def test_no_round_waits(kind: str) -> None:
    assert Round(*ROUNDS[kind]).commit() is not None


@pytest.mark.parametrize("kind", ["greedy", "mixed", "penalties"])
@pytest.mark.parametrize("wait", [torch.Tensor.item, torch.Tensor.tolist, torch.Tensor.cpu, torch.nonzero, bool])
def test_a_wait_in_the_rule_is_an_error(kind: str, wait: Any) -> None:
    """In what a scorer gives, deep in the step."""
    rule = make_rule()
    scorer: Any = rule._relevance
    read = scorer.read

    def waiting(num_requests: int, width: int) -> torch.Tensor:
        scores: torch.Tensor = read(num_requests, width)
        wait(scores[0, 0])
        return scores

    scorer.read = waiting
    with pytest.raises(HostWaitError, match="the accept step"):
        Round(*ROUNDS[kind], rule=rule).commit()


def test_the_host_may_make_up_its_mind_about_an_idle_batch() -> None:
    round_ = Round(*ROUNDS["greedy"])
    round_.batch.forward_mode = ForwardMode.IDLE
    assert round_.commit() is None


def test_marking_the_chains_slots_does_not_wait() -> None:
    slots = SlotTables(20, "cpu")
    with no_sync.section("marking"):
        slots.mark_drafted(torch.tensor([3, 4, 5], dtype=torch.int32))


def test_a_round_without_loose_requests_is_not_scored() -> None:
    """And the next one is, whatever became of this one; SGLang may capture graphs between rounds."""
    rule = make_rule()
    scorer: Any = rule._relevance
    strict, loose = ROUNDS["strict-and-sampled"], ROUNDS["greedy"]
    for requests in (strict, loose, ROUNDS["labels"]):
        Round(*requests, rule=rule)  # settles their rules
    assert [rule.concerns(reqs) for reqs in (strict, loose, ROUNDS["labels"], [])] == [False, True, True, False]
    for requests, expected in ((strict, False), (loose, True), (strict, False)):
        with rule.scoring(requests):
            assert scorer.is_wanted is expected
        assert scorer.is_wanted
    with pytest.raises(KeyError), rule.scoring(strict):
        raise KeyError
    assert scorer.is_wanted


def test_the_commit_is_the_same_with_the_watch_on(monkeypatch: pytest.MonkeyPatch) -> None:
    with_watch = Round(*ROUNDS["greedy"], seed=4).commit()
    monkeypatch.setattr(no_sync._Watch, "is_on", False)
    without = Round(*ROUNDS["greedy"], seed=4).commit()
    assert with_watch is not None and without is not None
    assert all(map(torch.equal, with_watch, without))
    assert isinstance(with_watch, commit.Commit)
