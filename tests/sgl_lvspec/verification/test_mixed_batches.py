"""What `after_eagle_sample` commits where some rows of a batch are loose, and what it reports of it."""

from __future__ import annotations

from collections import Counter
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from sglang.srt.model_executor.forward_batch_info import ForwardMode
from sglang.srt.speculative.eagle_info import EagleVerifyInput

from lvspec_kernels import accept_chain
from lvspec_kernels.relax import BONUS, FILLER, MATCH, NOT_COMMITTED, SHIFT
from sgl_lvspec.presets import Rule
from sgl_lvspec.sight.round_report import RoundReport
from sgl_lvspec.verification import commit
from sgl_lvspec.verification import loose as loose_module
from sgl_lvspec.verification.commit import LOOSE_RULE, Commit, after_eagle_sample
from sgl_lvspec.verification.loose import LooseRule
from sgl_lvspec.verification.rows import RULE
from sgl_lvspec.verification.settings import RequestRule
from tests.sgl_lvspec.verification.loose_rounds import (
    ALL,
    Numbers,
    VideoRequest,
    batch_of,
    make_rule,
    random_round,
    text_request,
)

V, WIDTH = 64, 5
GREEDY = {"temperature": 0.0}
POISON = -7  # in SGLang's `predict` where it writes nothing that anybody reads


class Round:
    """A verified batch on a loosening server, as SGLang hands it to `eagle_sample`, and SGLang's own result."""

    def __init__(self, *requests: VideoRequest, seed: int = 0, rule: LooseRule | None = None) -> None:
        self.requests, self.numbers = requests, random_round(len(requests), WIDTH, V, seed)
        self.rule = rule or make_rule()
        self.batch = batch_of(*requests, vocabulary=V, forward_mode=ForwardMode.DECODE)
        self.rule.rows.write(self.batch)
        strict = Commit(*accept_chain(self.numbers.draft, self.numbers.logits.argmax(dim=1).view(-1, WIDTH)))
        behind = torch.arange(WIDTH) >= strict.accept_lens[:, None]
        self.result = strict._replace(predict=torch.where(behind.flatten(), POISON, strict.predict))
        self.logits_output = SimpleNamespace(next_token_logits=self.numbers.logits, auxiliary_device_output=None)

    def commit(self) -> Commit | None:
        """The hook, called as SGLang's hook registry does."""
        verify_input = SimpleNamespace(
            draft_token=self.numbers.draft.flatten(), positions=torch.arange(self.numbers.draft.numel())
        )
        setattr(verify_input, LOOSE_RULE, self.rule)
        result: Any = tuple(self.result)
        return after_eagle_sample(result, verify_input, self.batch, self.logits_output, None)  # type: ignore[arg-type]

    @property
    def report(self) -> RoundReport:
        """What the hook reported."""
        assert isinstance(self.logits_output.auxiliary_device_output, RoundReport)
        return self.logits_output.auxiliary_device_output


def assert_rows_equal(ours: Commit, theirs: Commit, rows: list[int]) -> None:
    """The same commit bit for bit, what nobody reads included."""
    assert torch.equal(ours.predict.view(-1, WIDTH)[rows], theirs.predict.view(-1, WIDTH)[rows])
    assert torch.equal(ours.accept_lens[rows], theirs.accept_lens[rows])
    assert torch.equal(ours.accept_index[rows], theirs.accept_index[rows])


def loose(row: int, **params: Any) -> VideoRequest:
    return VideoRequest(row, asks=ALL, **{**GREEDY, **params})


@pytest.mark.parametrize("seed", range(8))
def test_strict_rows_keep_sglangs_result_beside_loose_ones(seed: int) -> None:
    """And loose ones commit what the rule alone decides."""
    requests = [
        loose(2),
        text_request(5, **GREEDY),
        loose(0),
        VideoRequest(3, asks={"mode": "strict"}, **GREEDY),
        VideoRequest(1, asks={"relaxation": 0}, **GREEDY),
    ]
    round_ = Round(*requests, seed=seed)
    ours = round_.commit()
    assert ours is not None
    assert_rows_equal(ours, round_.result, [1, 3, 4])
    rule = make_rule()
    rule.rows.write(round_.batch)
    alone = rule.decide(*round_.numbers, round_.batch.sampling_info, round_.batch.req_pool_indices)
    assert_rows_equal(ours, Commit(*alone.relaxed[:3]), [0, 2])
    assert all(part.dtype == torch.int32 for part in ours)
    assert bool((ours.accept_lens[[0, 2]] >= round_.result.accept_lens[[0, 2]]).all()), "never shorter than strict"
    assert ours.accept_lens[0] == WIDTH, "everything may be loosened, and it is"


@pytest.mark.parametrize("seed", range(8))
def test_labels_fit_what_is_committed(seed: int) -> None:
    requests = [
        loose(2),
        text_request(5, **GREEDY),
        VideoRequest(0, **GREEDY),
        loose(4, presence_penalty=0.5),
        loose(3),
    ]
    round_ = Round(*requests, seed=seed)
    ours, report = round_.commit(), round_.report
    assert ours is not None and report.label is not None and report.gap is not None and report.relevance is not None
    assert torch.equal(report.accept_lens, ours.accept_lens)
    for row, (labels, lens) in enumerate(zip(report.label.tolist(), ours.accept_lens.tolist(), strict=True)):
        assert labels[lens - 1 :] == [BONUS] + [NOT_COMMITTED] * (WIDTH - lens), "our own token ends a round"
        committed = ours.predict.view(-1, WIDTH)[row]
        for node, label in enumerate(labels[:lens]):
            is_drafted = node < lens - 1
            assert is_drafted == (label in (MATCH, FILLER, SHIFT))
            is_choice = int(committed[node]) == int(round_.numbers.choice[row, node])
            assert is_choice == (label in (MATCH, BONUS))
            assert not is_drafted or committed[node] == round_.numbers.draft[row, node + 1]
            gap = float(report.gap[row, node])
            is_refused = label == BONUS and node < WIDTH - 1  # the draft that it stands in the place of
            assert gap > 0 if label in (FILLER, SHIFT) else gap == 0 or is_refused
    for row in (1, 3):
        assert not {FILLER, SHIFT} & set(report.label[row].tolist()), "strict rows are not loosened"


def test_a_penalised_row_commits_one_token_beside_loose_ones() -> None:
    round_ = Round(
        loose(1), loose(2, frequency_penalty=0.7), VideoRequest(3, [4], min_new_tokens=3, **GREEDY), loose(0)
    )
    round_.result = Commit(*accept_chain(round_.numbers.draft, round_.numbers.draft.roll(-1, dims=1)))  # all accepted
    ours = round_.commit()
    assert ours is not None
    assert ours.accept_lens.tolist() == [WIDTH, 1, 1, WIDTH]
    for row in (1, 2):
        assert ours.accept_index[row].tolist() == [row * WIDTH] + [-1] * (WIDTH - 1)
        assert ours.predict[row * WIDTH] == round_.result.predict[row * WIDTH]
        assert round_.report.label is not None
        assert round_.report.label[row].tolist() == [BONUS] + [NOT_COMMITTED] * (WIDTH - 1)


def test_sampled_loose_rows_match_our_draw(monkeypatch: pytest.MonkeyPatch) -> None:
    """Row 1 is loose and sampled: SGLang's CPU verify is an argmax, ours a draw."""
    drawn = torch.full((3, WIDTH), 40)
    monkeypatch.setattr(commit, "draw_choice", lambda *_args: drawn)
    none = {**ALL, "floor": 1.0, "shift": "off"}  # nothing is likely enough
    round_ = Round(loose(0), VideoRequest(3, asks=none, temperature=1.0), text_request(2, temperature=1.0))
    drawn[0] = round_.numbers.choice[0]
    drawn[1:, :2] = round_.numbers.draft[1:, 1:3]
    ours = round_.commit()
    assert ours is not None
    assert_rows_equal(ours, Commit(*accept_chain(round_.numbers.draft, drawn)), [1, 2])
    assert ours.accept_lens[1] >= 3
    assert round_.report.label is not None
    assert round_.report.label[1, :2].tolist() == round_.report.label[2, :2].tolist() == [MATCH, MATCH]


def test_on_a_gpu_sglang_draws_for_strict_rows_and_we_for_loose_ones(monkeypatch: pytest.MonkeyPatch) -> None:
    drawn = torch.full((3, WIDTH), 40)
    monkeypatch.setattr(commit, "draw_choice", lambda *_args: drawn)
    monkeypatch.setattr(commit, "_to_device", lambda rows, _device: torch.tensor(rows))
    none = {**ALL, "floor": 1.0, "shift": "off"}
    round_ = Round(VideoRequest(0, asks=none), text_request(2), text_request(3, min_p=0.1))
    round_.batch.device = "cuda"
    ours = round_.commit()
    assert ours is not None
    assert_rows_equal(ours, round_.result, [1])
    assert_rows_equal(ours, Commit(*accept_chain(round_.numbers.draft, drawn)), [0, 2])


@pytest.mark.parametrize("temperature", [0.0, 1.0], ids=["greedy", "sampled"])
def test_ranks_commit_what_rank_0_chose(tp_group: SimpleNamespace, temperature: float) -> None:
    """What this rank found itself would end the first round at once. A greedy choice travels with the numbers."""
    none = {**ALL, "floor": 1.0, "shift": "off"}
    round_ = Round(*[VideoRequest(row, asks=none, temperature=temperature) for row in range(2)])
    of_rank_0 = round_.numbers.draft.roll(-1, dims=1)
    sent: list[torch.Size] = []

    def broadcast(tensor: torch.Tensor, src: int) -> None:
        assert src == 0
        sent.append(tensor.shape)
        if tensor.dim() == 1:
            return  # the commit that follows
        if temperature == 0.0:
            tensor[3] = of_rank_0
        elif len(sent) == 1:
            tensor.copy_(of_rank_0)

    tp_group.world_size, tp_group.broadcast = 2, broadcast
    ours = round_.commit()
    assert ours is not None
    assert ours.accept_lens.tolist() == [WIDTH, WIDTH]
    *numbers, (num_entries,) = sent
    assert numbers == ([(4, 2, WIDTH)] if temperature == 0.0 else [(2, WIDTH), (4, 2, WIDTH)])
    assert num_entries == 2 * WIDTH + 2 * WIDTH + 2, "predict, accept_index and accept_lens"


def test_the_greatest_token_id_survives_its_way_between_ranks(tp_group: SimpleNamespace) -> None:
    """Ids travel as float32, which holds whole numbers below 2^24."""
    tp_group.world_size, tp_group.broadcast = 2, lambda _tensor, src: None
    ids = torch.tensor([[2**24 - 1, 2**24 - 2, 151_935]])
    (found,) = loose_module._from_first_rank(ids)
    assert found.dtype == ids.dtype and torch.equal(found, ids)


def test_a_greedy_round_reads_its_logits_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """They are the largest thing in the round: an argmax beside `row_choice` would read them a second time."""
    monkeypatch.setattr(commit, "draw_choice", None)
    reads: list[torch.Tensor] = []
    row_choice = loose_module.row_choice

    def counted(logits: torch.Tensor, *args: Any) -> Any:
        reads.append(logits)
        return row_choice(logits, *args)

    monkeypatch.setattr(loose_module, "row_choice", counted)
    round_ = Round(loose(2), text_request(5, **GREEDY), loose(4, presence_penalty=0.5))
    assert round_.commit() is not None
    assert len(reads) == 1


def test_of_tied_tokens_a_loose_row_takes_the_one_that_strict_verification_takes() -> None:
    """The lowest id, at every node: logits of few values, so that most rows have ties."""
    none = {**ALL, "floor": 1.0, "shift": "off"}
    requests = [VideoRequest(row, asks=none, **GREEDY) for row in range(6)]
    for seed in range(20):
        round_ = Round(*requests, seed=seed)
        coarse = round_.numbers.logits.clamp(-2, 2).round()
        choice = coarse.argmax(dim=1).view(-1, WIDTH)
        draft = torch.where(round_.numbers.draft == round_.numbers.choice.roll(1, 1), choice.roll(1, 1), choice + 1)
        round_.numbers = Numbers(draft % V, choice, coarse)
        round_.logits_output.next_token_logits = coarse
        strict = Commit(*accept_chain(round_.numbers.draft, choice))
        ours = round_.commit()
        assert ours is not None
        assert_rows_equal(ours, strict, list(range(6)))
    assert (coarse == coarse.max(dim=1, keepdim=True).values).sum(dim=1).double().mean() > 1.5, "ties are common"


def test_a_batch_without_loose_rows_is_sglangs() -> None:
    """Nothing is scored for it either."""
    round_ = Round(text_request(1, **GREEDY), VideoRequest(2, asks={"mode": "strict"}, **GREEDY))
    round_.rule._relevance = None  # type: ignore[assignment]
    assert round_.commit() is None
    assert round_.logits_output.auxiliary_device_output is None, "the worker reports strict rounds"


def test_a_strict_row_that_asks_for_labels_gets_relevance_and_sglangs_tokens() -> None:
    round_ = Round(VideoRequest(2, asks={"mode": "strict", "labels": True}, **GREEDY), rule=make_rule(0.25))
    ours = round_.commit()
    assert ours is not None
    assert_rows_equal(ours, round_.result, [0])
    assert round_.report.relevance is not None and round_.report.label is not None
    assert round_.report.relevance.tolist() == [[0.25] * WIDTH]
    assert set(round_.report.label[0].tolist()) <= {MATCH, BONUS, NOT_COMMITTED}


def test_a_round_without_a_rule_is_decided_as_on_a_strict_server() -> None:
    round_ = Round(loose(1))
    round_.rule = None  # type: ignore[assignment]
    assert round_.commit() is None


def test_an_idle_batch_is_left_alone() -> None:
    round_ = Round(loose(1))
    round_.batch.forward_mode, round_.batch.sampling_info = ForwardMode.IDLE, None
    assert round_.commit() is None


def test_sglangs_verify_input_takes_our_rule() -> None:
    """A plain object: slots or a frozen class would refuse it."""
    verify_input = EagleVerifyInput.__new__(EagleVerifyInput)
    setattr(verify_input, LOOSE_RULE, "rule")
    assert getattr(verify_input, LOOSE_RULE) == "rule"


@pytest.mark.parametrize("share", [0.1, 0.25, 0.5])
@pytest.mark.parametrize("run", [1, 2, "none"])
def test_budgets_hold_over_many_rounds_and_at_every_cut(share: float, run: int | str) -> None:
    """Three requests with their own budgets; a client may cut the answer anywhere, as max_tokens does."""
    rule = make_rule()
    requests = [loose(3), VideoRequest(1, asks={**ALL, "max_share": share, "max_run": run}, **GREEDY), text_request(4)]
    labels: list[list[int]] = [[BONUS] for _ in requests]  # of the prefill
    first = Round(*requests, rule=rule)
    for seed in range(40):
        round_ = Round.__new__(Round)
        round_.__dict__ = {**vars(first), "numbers": random_round(3, WIDTH, V, seed)}
        round_.result = Commit(*accept_chain(round_.numbers.draft, round_.numbers.choice))
        round_.logits_output = SimpleNamespace(next_token_logits=round_.numbers.logits, auxiliary_device_output=None)
        ours = round_.commit()
        assert ours is not None and round_.report.label is not None
        for row, lens in enumerate(ours.accept_lens.tolist()):
            labels[row] += round_.report.label[row, :lens].tolist()
    loosened = in_a_row = 0
    for count, label in enumerate(labels[1], start=1):
        is_loosened = label in (FILLER, SHIFT)
        loosened, in_a_row = loosened + is_loosened, in_a_row + 1 if is_loosened else 0
        assert loosened <= share * max(count, 32)
        assert run == "none" or in_a_row <= int(run)
    assert loosened > 0.6 * share * len(labels[1]) or run == 1, "the budget is used"
    assert Counter(labels[2])[FILLER] == Counter(labels[2])[SHIFT] == 0
    assert rule.rows.state.tokens[[3, 1]].tolist() == [len(labels[0]), len(labels[1])]


def test_numbers_of_a_round_are_what_the_helpers_say() -> None:
    """Otherwise the tests above compare nothing."""
    round_ = random_round(6, WIDTH, V, 0)
    assert isinstance(round_, Numbers)
    is_match = round_.draft[:, 1:] == round_.choice[:, :-1]
    assert 0.2 < is_match.double().mean() < 0.8


def shadowed(row: int) -> VideoRequest:
    """A request that asks for strict, on a server that tries the loose rule beside every one."""
    request = VideoRequest(row, asks={"mode": "strict"}, **GREEDY)
    rule = RequestRule(Rule(**{**ALL, "max_run": None}), "strict", "asked for strict", False, is_shadow=True)
    setattr(request, RULE, rule)
    return request


@pytest.mark.parametrize("seed", range(4))
def test_a_shadow_decides_and_nothing_of_it_is_committed(seed: int) -> None:
    round_ = Round(shadowed(4), loose(1), text_request(2, **GREEDY), seed=seed)
    ours, report = round_.commit(), round_.report
    assert ours is not None and report.shadow is not None and report.label is not None
    assert_rows_equal(ours, round_.result, [0, 2])
    assert not {FILLER, SHIFT} & set(report.label[0].tolist())
    beside = Round(loose(4), loose(1), text_request(2, **GREEDY), seed=seed)
    beside.commit()
    assert beside.report.label is not None and beside.report.shadow is None
    assert torch.equal(report.shadow[0], beside.report.label[0]), "what a loose request would have been answered"
    assert torch.equal(report.label[1], beside.report.label[1])
