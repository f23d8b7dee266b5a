"""One label per returned token, whatever ends or interrupts an answer, from the device to `meta_info`."""

from __future__ import annotations

import json
import random
from array import array
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from sglang.srt.layers.logits_processor import LogitsProcessorOutput
from sglang.srt.managers.schedule_batch import FINISH_ABORT
from sglang.srt.managers.utils import GenerationBatchResult

from sgl_lvspec.sight import round_report
from sgl_lvspec.sight.request_sight import PER_TOKEN
from sgl_lvspec.sight.round_report import RoundReport
from tests.sgl_lvspec.sight.answering import CHOICE, INF, NAN, STOP, WIDTH, Answering, report_of, request

NAMES = {"m": "match", "f": "filler", "s": "shift", "b": "bonus"}


def labels_of(letters: str) -> list[str]:
    return [NAMES[letter] for letter in letters]


def random_row(rng: random.Random) -> str:
    """What a round may commit: some drafts, then the target's own token."""
    return "".join(rng.choice("mfs") for _ in range(rng.randrange(WIDTH))) + "b"


def test_labels_follow_the_tokens_round_by_round() -> None:
    answering = Answering(request("a", labels=True))
    answering.prefill()
    answering.round(report_of("mfsb"))
    answering.round(report_of("b"))
    answering.round(report_of("mmb"), [[20, 21, STOP]])
    meta = answering.answer("a").meta
    assert meta["lvspec_labels"] == labels_of("bmfsbbmmb")
    assert meta["lvspec_relevance"] == [None, 0.0, 0.1, 0.2, None, None, 0.0, 0.1, None]
    assert meta["lvspec_choice"] == [None, None, CHOICE, CHOICE, None, None, None, None, None]
    assert meta["lvspec_given_up"] == [0.0, 0.0, 0.5, 0.5, 0.0, 0.0, 0.0, 0.0, 0.0]
    assert meta["lvspec"] == {
        "mode": "strict", "preset": "strict", "strict_reason": None, "rounds": 3, "drafted": 9, "T": 5 / 3,
        "accepted": {"match": 3, "filler": 1, "shift": 1}, "bonus": 4, "divergence": 2 / 9, "logprob_given_up": 1.0,
    }  # fmt: skip


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("seed", range(48))
def test_exactly_one_label_per_returned_token(seed: int, stream: bool) -> None:
    """96 random answers: ended by max_tokens or a stop anywhere in a chain, alone and beside each other."""
    rng = random.Random(seed)
    reqs = [request(str(i), labels=True, stream=stream, max_new_tokens=rng.randint(1, 40)) for i in range(3)]
    answering = Answering(*reqs)
    answering.prefill()
    said = {req.rid: "b" for req in reqs}
    while not all(req.finished() for req in reqs):
        rows = [random_row(rng) for _ in reqs]
        tokens = [[STOP if rng.random() < 0.03 else rng.randint(10, 90) for _ in row] for row in rows]
        for req, row in zip(reqs, rows, strict=True):
            said[req.rid] += "" if req.finished() else row
        answering.round(report_of(*rows), tokens)
    for req in reqs:
        client = answering.answer(req.rid)
        assert client.ids == list(req.output_ids_through_stop)
        assert len(client.ids) <= req.sampling_params.max_new_tokens
        assert client.meta["lvspec_labels"] == labels_of(said[req.rid])[: len(client.ids)]
        assert all(len(client.meta[key]) == len(client.ids) for key in PER_TOKEN)
        is_loosened = [label in ("filler", "shift") for label in client.meta["lvspec_labels"]]
        assert [choice == CHOICE for choice in client.meta["lvspec_choice"]] == is_loosened
        assert sum(client.meta["lvspec_given_up"]) == client.meta["lvspec"]["logprob_given_up"]
        counts = client.meta["lvspec"]
        assert sum(counts["accepted"].values()) + counts["bonus"] == len(client.ids)
        json.dumps(client.meta, allow_nan=False)


@pytest.mark.parametrize(("max_new_tokens", "expected"), [(1, "b"), (2, "bm"), (3, "bmf"), (4, "bmfs"), (5, "bmfsb")])
def test_a_chain_cut_by_max_tokens(max_new_tokens: int, expected: str) -> None:
    answering = Answering(request("a", labels=True, max_new_tokens=max_new_tokens))
    answering.prefill()
    if max_new_tokens > 1:
        answering.round(report_of("mfsb"))
    meta = answering.answer("a").meta
    assert meta["lvspec_labels"] == labels_of(expected)
    loosened = sum(letter in "fs" for letter in expected)
    assert meta["lvspec"]["divergence"] == loosened / max_new_tokens
    assert meta["lvspec"]["logprob_given_up"] == 0.5 * loosened
    # T is what verification accepted, as SGLang counts it, also where the client gets less.
    assert (meta["lvspec"]["rounds"], meta["lvspec"]["T"]) == ((0, None) if max_new_tokens == 1 else (1, 3.0))


@pytest.mark.parametrize("position", [0, 1, 2, 3])
def test_a_chain_cut_by_a_stop(position: int) -> None:
    answering = Answering(request("a", labels=True))
    answering.prefill()
    answering.round(report_of("mfsb"), [[STOP if i == position else 30 for i in range(4)]])
    client = answering.answer("a")
    assert client.ids[-1] == STOP and len(client.ids) == position + 2
    assert client.meta["lvspec_labels"] == labels_of("bmfsb"[: position + 2])


def test_every_chunk_of_a_stream_has_the_labels_of_its_tokens() -> None:
    answering = Answering(request("a", labels=True, stream=True))
    answering.prefill()
    for row in ("mb", "b", "fsmb"):
        answering.round(report_of(row))
    chunks = answering.answer("a").chunks
    assert [chunk["lvspec_labels"] for chunk in chunks] == [labels_of("bmbbfsmb"[:n]) for n in (1, 3, 4, 8)]
    assert [chunk["lvspec"]["rounds"] for chunk in chunks] == [0, 1, 2, 3]
    assert [chunk["lvspec"]["bonus"] for chunk in chunks] == [1, 2, 3, 4]
    # What SGLang cuts to a chunk where clients want increments (_slice_streaming_output_meta_info).
    assert set(answering.answer("a").customized_info_accumulated) == set(PER_TOKEN)


def test_a_request_that_asks_for_no_labels_gets_none_beside_one_that_does() -> None:
    answering = Answering(request("asks", labels=True, stream=True), request("does not", stream=True))
    answering.prefill()
    answering.round(report_of("mb", "fb"))
    for chunk in answering.answer("does not").chunks:
        assert set(chunk) == {"lvspec"}
    assert answering.answer("does not").meta["lvspec"]["accepted"] == {"match": 0, "filler": 1, "shift": 0}
    assert answering.answer("asks").meta["lvspec_labels"] == labels_of("bmb")
    assert set(answering.answer("does not").customized_info_accumulated) == set(), "nothing for SGLang to slice"


def test_a_prompt_in_chunks_gets_its_label_with_its_first_token() -> None:
    answering = Answering(request("long", labels=True), request("short", labels=True))
    answering.prefill(prompt_goes_on=("long",))
    assert answering.reqs[0].customized_info is None
    answering.reqs.pop()
    answering.prefill()
    answering.round(report_of("mb"), [[20, STOP]])
    assert answering.answer("long").meta["lvspec_labels"] == labels_of("bmb")


def test_a_retracted_request_goes_on_where_it_was() -> None:
    """The round during which it was retracted is nobody's; the prefill that follows makes a token of its own."""
    req = request("a", labels=True)
    answering = Answering(req)
    answering.prefill()
    answering.round(report_of("mfb"))
    req.is_retracted = True
    answering.round(report_of("ssb"))
    req.is_retracted = False
    answering.prefill()
    answering.round(report_of("mb"), [[20, STOP]])
    client = answering.answer("a")
    assert client.meta["lvspec_labels"] == labels_of("bmfbbmb")
    assert len(client.ids) == 7
    assert client.meta["lvspec"]["rounds"] == 2
    assert client.meta["lvspec"]["T"] == 3 / 2


def test_a_request_that_begins_anew_forgets_its_first_tokens() -> None:
    """SGLang drops the tokens of a retracted request that came as embeddings."""
    req = request("a", labels=True)
    answering = Answering(req)
    answering.prefill()
    answering.round(report_of("ffb"))
    req.output_ids = array("q")
    answering.prefill()
    answering.round(report_of("mb"), [[20, STOP]])
    meta = answering.answer("a").meta
    assert meta["lvspec_labels"] == labels_of("bmb")
    assert meta["lvspec"]["accepted"] == {"match": 1, "filler": 0, "shift": 0}


def test_an_aborted_request_says_what_it_returned() -> None:
    req = request("a", labels=True)
    answering = Answering(req)
    answering.prefill()
    req.to_finish = FINISH_ABORT("asked for")
    answering.round(report_of("mfb"))
    client = answering.answer("a")
    assert len(client.ids) == 4
    assert client.meta["lvspec_labels"] == labels_of("bmfb")


def test_a_request_that_has_finished_is_not_counted_again() -> None:
    """Under overlap scheduling a finished request is verified once more before it leaves the batch."""
    answering = Answering(request("done", labels=True, max_new_tokens=3), request("goes on"))
    answering.prefill()
    answering.round(report_of("mmb", "b"))
    before = answering.answer("done").meta
    answering.round(report_of("mmb", "fb"))
    assert answering.answer("done").meta == before
    assert before["lvspec"]["rounds"] == 1


def test_tokens_that_no_report_spoke_of_are_the_targets() -> None:
    """A decode server gets the first token from the server that read the prompt."""
    answering = Answering(request("a", labels=True))
    answering.round(None, [[10]])
    answering.round(report_of("fb"), [[20, STOP]])
    assert answering.answer("a").meta["lvspec_labels"] == labels_of("bfb")
    assert answering.answer("a").meta["lvspec_relevance"] == [None, 0.0, None]
    assert answering.answer("a").meta["lvspec_choice"] == [None, CHOICE, None]
    assert answering.answer("a").meta["lvspec_given_up"] == [0.0, 0.5, 0.0]


def test_the_guard_sees_the_tokens_of_the_round_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[tuple[list[int], list[int], int]] = []
    desk = SimpleNamespace(see=lambda _req, r: seen.append(([*r.token_ids], r.told.labels, r.accepted)))
    monkeypatch.setattr(round_report.HostReport, "desk", desk)
    answering = Answering(request("a", labels=True))
    answering.round(None, [[10]])
    answering.round(report_of("fb"), [[20, STOP]])
    assert seen == [([20, STOP], [1, 3], 1)], "one label a token, whatever came before without a report"


def test_a_round_of_which_only_lengths_are_known_is_strict() -> None:
    answering = Answering(request("a", labels=True, max_new_tokens=8), request("b", labels=True, max_new_tokens=3))
    answering.prefill()
    answering.strict_round(4, 1)
    answering.strict_round(1, 4)
    answering.strict_round(4, 1)
    assert answering.answer("a").meta["lvspec_labels"] == labels_of("bmmmbbmm")
    assert answering.answer("a").meta["lvspec_relevance"] == [None] * 8
    assert answering.answer("b").meta["lvspec_labels"] == labels_of("bbm")
    assert answering.answer("b").meta["lvspec"]["T"] == 3 / 2


@pytest.mark.parametrize("gap", [INF, NAN])
def test_a_cost_without_a_number_is_null(gap: float) -> None:
    """A floor of 0 may accept what the target holds for impossible."""
    answering = Answering(request("a", labels=True))
    answering.prefill()
    answering.round(report_of("fb", gap=gap), [[20, STOP]])
    assert answering.answer("a").meta["lvspec_given_up"] == [0.0, None, 0.0]
    assert answering.answer("a").meta["lvspec"]["logprob_given_up"] is None
    json.dumps(answering.answer("a").meta, allow_nan=False)


def test_the_rule_of_a_request_names_its_mode() -> None:
    loose, strict = request("loose"), request("strict")
    loose._lvspec_rule = SimpleNamespace(is_strict=False, name="balanced", strict_reason=None)
    strict._lvspec_rule = SimpleNamespace(is_strict=True, name="strict", strict_reason="grammar")
    answering = Answering(loose, strict)
    answering.prefill()
    answering.round(report_of("mb", "mb"), [[20, STOP]] * 2)
    shown = {rid: client.meta["lvspec"] for rid, client in answering.clients.items()}
    assert [shown["loose"][key] for key in ("mode", "preset", "strict_reason")] == ["loose", "balanced", None]
    assert [shown["strict"][key] for key in ("mode", "preset", "strict_reason")] == ["strict", "strict", "grammar"]


@pytest.mark.parametrize("custom", [None, 7, {}, {"lvspec": None}, {"lvspec": {"labels": 1}}, {"lvspec": []}])
def test_only_a_clear_wish_brings_labels(custom: Any) -> None:
    req = request("a")
    req.sampling_params.custom_params = custom
    answering = Answering(req)
    answering.prefill()
    answering.round(report_of("mb"), [[20, STOP]])
    assert set(answering.answer("a").meta) == {"lvspec"}


def test_a_token_without_a_label_is_an_error() -> None:
    """The report said that it was not committed, and SGLang committed it."""
    report = report_of("mb")
    answering = Answering(request("a"))
    answering.prefill()
    with pytest.raises(ValueError, match=r"needs a label of 0\.\.3; found -1 in \[0, 3, -1\]"):
        answering.round(report, [[20, 21, 22]])


class TestCopies:
    """Values travel to the host only by SGLang's own copy."""

    def test_every_tensor_is_copied_once_and_the_copy_is_read(self) -> None:
        report = report_of("mfb")
        copied: list[torch.Tensor] = []

        def copy(tensor: torch.Tensor) -> torch.Tensor:
            copied.append(tensor)
            return tensor.clone()

        host = report.copy_to_host(copy)
        parts = [getattr(report, name) for name in report.__dataclass_fields__]
        assert {id(tensor) for tensor in copied} == {id(part) for part in parts if isinstance(part, torch.Tensor)}
        for tensor in copied:
            tensor.zero_()  # a later round reuses the memory
        assert host.label is not None and host.label.tolist() == [[0, 1, 3, -1]]
        assert host.accept_lens.tolist() == [3]

    def test_what_is_missing_is_not_copied(self) -> None:
        report = RoundReport(None, None, None, None, torch.tensor([2]), 4)
        assert report.copy_to_host(lambda tensor: tensor).gap is None

    def test_reports_of_others_on_the_same_forward_stay(self) -> None:
        consumed: list[str] = []
        other = SimpleNamespace(
            copy_to_host=lambda _copy: SimpleNamespace(consume=lambda _batch, _commits: consumed.append("other"))
        )
        output = LogitsProcessorOutput(next_token_logits=None, auxiliary_device_output=other)
        round_report.attach_strict(output, torch.tensor([2], dtype=torch.int32), 4)
        result = GenerationBatchResult(logits_output=output)
        result.copy_auxiliary_output_to_cpu()
        assert result.auxiliary_host_output is not None
        req = request("a")
        commit = SimpleNamespace(output_index=0, token_ids=(20, 21))
        result.auxiliary_host_output.consume(SimpleNamespace(reqs=[req]), [commit])  # type: ignore[arg-type, list-item]
        assert consumed == ["other"]
        assert req._lvspec_tally.by_label == [1, 0, 0, 1]

    def test_a_round_that_was_reported_on_is_not_reported_twice(self) -> None:
        output = LogitsProcessorOutput(next_token_logits=None)
        report = report_of("fb")
        round_report.attach(output, report)
        round_report.attach_strict(output, report.accept_lens, 4)
        assert output.auxiliary_device_output is report
