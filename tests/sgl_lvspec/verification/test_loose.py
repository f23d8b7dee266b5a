"""What the loose rule makes of a verified round: what is never loosened, and by which numbers the rest is judged."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any, ClassVar

import pytest
import torch
from sglang.srt.layers.sampler import top_k_top_p_min_p_sampling_from_probs_torch

from lvspec_kernels.relax import BONUS, FILLER, MATCH, NOT_COMMITTED, SHIFT
from sgl_lvspec.config import LVSpecConfig
from sgl_lvspec.relevance.calibration import CALIBRATED_WEIGHT, N_BINS, Calibration
from sgl_lvspec.relevance.identity import ModelIdentity
from sgl_lvspec.verification.decision import Decided
from sgl_lvspec.verification.loose import LooseRule
from sgl_lvspec.verification.protected import DIGIT, ORDINARY, PROTECTED
from tests.sgl_lvspec.verification.loose_rounds import ALL, Numbers, VideoRequest, batch_of, make_rule, random_round

V = 64
# No word is a filler: its relevance, 1 in these tests, is above every threshold. Words near by are shifted ones.
ONLY_SHIFT = {**ALL, "relaxation": 0.5, "window": 3, "shift": "both"}


def decide(rule: LooseRule, round_: Numbers, *requests: VideoRequest) -> Decided:
    """A round of requests that were just prefilled."""
    batch = batch_of(*requests, vocabulary=round_.logits.shape[1])
    rule.rows.write(batch)
    return rule.decide(*round_, batch.sampling_info, batch.req_pool_indices)


def one_round(draft: list[int], choice: list[int], logits: torch.Tensor | None = None) -> Numbers:
    """A round of one request; by default all tokens are equally likely."""
    logits = torch.zeros(len(draft), V) if logits is None else logits
    return Numbers(torch.tensor([draft]), torch.tensor([choice]), logits)


def labels_of(decided: Decided) -> list[int]:
    """Labels of a batch of one."""
    (labels,) = decided.relaxed.label.tolist()
    return labels


class TestProtected:
    """Token 20 takes part in the first mismatch, as the draft or as what the target chose."""

    ROUNDS: ClassVar[dict[str, Numbers]] = {
        "drafted": one_round([1, 20, 3, 4], [5, 20, 20, 8]),
        "chosen": one_round([1, 2, 20, 4], [20, 2, 7, 8]),
    }
    WAYS: ClassVar[dict[str, tuple[dict[str, Any], float, int]]] = {
        "filler": (ALL, 0.0, FILLER),
        "shift": (ONLY_SHIFT, 1.0, SHIFT),
    }

    def label(self, side: str, way: str, kind: int = ORDINARY, digits: bool = False, **params: Any) -> int:
        """Label of the first token: the draft's, loosened, or the target's own."""
        classes = torch.full((V,), ORDINARY, dtype=torch.uint8)
        classes[20] = kind
        asks, relevance, _ = self.WAYS[way]
        request = VideoRequest(2, asks={**asks, "protect_digits": digits}, **params)
        decided = decide(make_rule(relevance, classes=classes), self.ROUNDS[side], request)
        return labels_of(decided)[0]

    @pytest.mark.parametrize("way", WAYS)
    @pytest.mark.parametrize("side", ROUNDS)
    def test_ends_special_tokens_and_own_stops_are_never_loosened(self, side: str, way: str) -> None:
        assert self.label(side, way) == self.WAYS[way][2], "the round loosens what is ordinary"
        assert self.label(side, way, kind=PROTECTED) == BONUS
        assert self.label(side, way, stop_token_ids=[9, 20]) == BONUS
        assert self.label(side, way, stop_token_ids=[9]) == self.WAYS[way][2]

    @pytest.mark.parametrize("way", WAYS)
    @pytest.mark.parametrize("side", ROUNDS)
    def test_digits_are_where_the_rule_says_so(self, side: str, way: str) -> None:
        assert self.label(side, way, kind=DIGIT, digits=True) == BONUS
        assert self.label(side, way, kind=DIGIT, digits=False) == self.WAYS[way][2]

    def test_stops_and_digits_are_each_requests_own(self) -> None:
        classes = torch.full((V,), ORDINARY, dtype=torch.uint8)
        classes[21] = DIGIT
        requests = [
            VideoRequest(0, asks=ALL, stop_token_ids=[20]),
            VideoRequest(3, asks=ALL),
            VideoRequest(1, asks={**ALL, "protect_digits": True}),
            VideoRequest(4, asks={**ALL, "protect_digits": False}),
        ]
        draft = torch.tensor([[1, 20], [1, 20], [1, 21], [1, 21]])
        round_ = Numbers(draft, torch.tensor([[5, 6]] * 4), torch.zeros(8, V))
        decided = decide(make_rule(classes=classes), round_, *requests)
        assert decided.relaxed.label[:, 0].tolist() == [BONUS, FILLER, BONUS, FILLER]

    def test_a_protected_token_that_matches_is_accepted(self) -> None:
        classes = torch.full((V,), PROTECTED, dtype=torch.uint8)
        decided = decide(
            make_rule(classes=classes), one_round([1, 2, 3], [2, 3, 4]), VideoRequest(0, stop_token_ids=[2])
        )
        assert labels_of(decided) == [MATCH, MATCH, BONUS]

    @pytest.mark.parametrize("way", WAYS)
    def test_a_token_that_the_client_banned_is_not_brought_back(self, way: str) -> None:
        """A bias of -100 leaves it a probability."""
        asks, relevance, loosened = self.WAYS[way]
        logits = torch.zeros(4, V)
        logits[:, 20] = -100.0
        round_ = self.ROUNDS["drafted"]._replace(logits=logits)
        for bias, expected in (({"20": -100.0}, BONUS), (None, loosened)):
            request = VideoRequest(2, asks=asks, logit_bias=bias, temperature=0.0)
            assert labels_of(decide(make_rule(relevance), round_, request))[0] == expected


class TestOwnFilters:
    def test_what_is_loosened_is_what_sglangs_sampler_could_have_drawn(self) -> None:
        """And all of that: the rule itself loosens whatever it may."""
        count, rng = 400, torch.Generator().manual_seed(5)
        round_ = random_round(count, 2, 40, seed=5)
        rank = torch.randint(12, (count, 1), generator=rng)
        drafted = round_.logits[::2].argsort(dim=1, descending=True).gather(1, rank)
        draft = torch.cat([round_.draft[:, :1], drafted], dim=1)
        some = torch.rand(count, 4, generator=rng)
        requests = [
            VideoRequest(
                row,
                asks=ALL,
                temperature=0.3 + a,
                **({"top_k": 1 + int(20 * b)} if row % 2 else {}),
                **({"top_p": 0.3 + 0.7 * c} if row % 3 else {}),
                **({"min_p": 0.3 * d} if row % 5 else {}),
            )
            for row, (a, b, c, d) in enumerate(some.tolist())
        ]
        info = batch_of(*requests, vocabulary=40).sampling_info
        probs = torch.softmax(round_.logits[::2] / info.temperatures, dim=-1)
        _, kept, order, _ = top_k_top_p_min_p_sampling_from_probs_torch(
            probs, info.top_ks, info.top_ps, info.min_ps, True, None, torch.arange(count), return_filtered_probs=True
        )
        could_be_drawn = torch.zeros_like(probs).scatter(1, order.long(), kept) > 0

        decided = decide(make_rule(vocabulary=40, num_rows=count), round_._replace(draft=draft), *requests)
        label = decided.relaxed.label[:, 0]
        is_match = drafted[:, 0] == round_.choice[:, 0]
        expected = torch.where(could_be_drawn.gather(1, drafted)[:, 0], FILLER, BONUS)
        sampled = info.top_ks > 1
        assert torch.equal(label[sampled], torch.where(is_match, MATCH, expected)[sampled].to(torch.int8))
        assert min((label == FILLER).sum(), (label == BONUS).sum()) > 80, "both happen often"

    @pytest.mark.parametrize("logit", [-torch.inf, -150.0])
    def test_a_shifted_word_without_probability_is_not_loosened_in_a_sampled_row(self, logit: float) -> None:
        logits = torch.zeros(4, V)
        logits[:, 20] = logit
        round_ = TestProtected.ROUNDS["drafted"]._replace(logits=logits)
        decided = decide(make_rule(1.0), round_, VideoRequest(1, asks=ONLY_SHIFT, temperature=1.0))
        assert labels_of(decided)[0] == BONUS

    def test_greedy_rows_have_no_filter(self) -> None:
        """Or top_k 1, which is how SGLang writes temperature 0, would leave nothing to loosen."""
        round_ = random_round(1, 2, V, seed=0)
        least = int(round_.logits[0].argmin())
        round_ = round_._replace(draft=torch.tensor([[0, least]]))
        for greedy in ({"temperature": 0.0}, {"top_k": 1, "min_p": 0.9}):
            assert labels_of(decide(make_rule(), round_, VideoRequest(1, asks=ALL, **greedy)))[0] == FILLER

    @pytest.mark.parametrize("temperature", [0.2, 1.0, 3.0])
    def test_a_greedy_row_is_judged_alike_whatever_runs_beside_it(self, temperature: float) -> None:
        """Its word has probability 0.27 at temperature 1; at the others it would be on the other side of a floor."""
        logits = torch.full((2, V), -30.0)
        logits[:, 5], logits[:, 6] = 1.0, 0.0
        for floor, expected in ((0.2, FILLER), (0.35, BONUS)):
            ours = VideoRequest(1, asks={**ALL, "floor": floor}, temperature=temperature, top_k=1)
            alone = decide(make_rule(), one_round([0, 6], [5, 5], logits), ours)
            both = Numbers(torch.tensor([[0, 6]] * 2), torch.tensor([[5, 5]] * 2), torch.cat([logits, logits]))
            beside = decide(make_rule(), both, ours, VideoRequest(3, asks=ALL, temperature=0.9))
            assert labels_of(alone)[0] == beside.relaxed.label[0, 0] == expected
            assert torch.equal(alone.gap[0], beside.gap[0])

    def test_a_sampled_row_is_judged_at_its_own_temperature(self) -> None:
        logits = torch.full((2, V), -60.0)
        logits[:, 5], logits[:, 6] = 1.0, 0.0
        for temperature, expected in ((0.3, BONUS), (1.0, FILLER)):  # probabilities .03 and .27
            request = VideoRequest(1, asks={**ALL, "floor": 0.1}, temperature=temperature)
            assert labels_of(decide(make_rule(), one_round([0, 6], [5, 5], logits), request))[0] == expected


def gap_logits(gap: float, width: int) -> torch.Tensor:
    """The target prefers token 5 to token 6 by this much, and both to all others."""
    logits = torch.full((width, V), -50.0)
    logits[:, 5], logits[:, 6] = 0.0, -gap
    return logits


class TestCare:
    """The prior is even over [0, 1], so the λ-quantile is λ."""

    @pytest.mark.parametrize("node", range(4))
    def test_relevance_is_that_of_the_state_that_predicts_the_token(self, node: int) -> None:
        choice = [10, 11, 12, 13, 14]
        draft = [0, *choice[:4]]
        draft[node + 1] = 30
        round_ = one_round(draft, choice)
        for here, elsewhere, expected in ((0.1, 0.9, FILLER), (0.9, 0.1, BONUS)):
            relevance = torch.full((1, 5), elsewhere)
            relevance[0, node] = here
            decided = decide(
                make_rule(relevance), round_, VideoRequest(1, asks={**ALL, "relaxation": 0.5, "shift": "off"})
            )
            assert labels_of(decided)[: node + 1] == [MATCH] * node + [expected]
            assert torch.equal(decided.relevance, relevance)

    @pytest.mark.parametrize(
        ("slope", "relevance", "gap", "expected"),
        [
            (0.0, 0.45, 40.0, FILLER),  # relevance alone
            (0.0, 0.55, 0.1, BONUS),
            (0.02, 0.3, 3.1, FILLER),  # .3 + .02 * 9.61 = .492
            (0.02, 0.3, 3.2, BONUS),  # .3 + .02 * 10.24 = .505
            (0.02, 0.45, 0.1, FILLER),
            (0.02, 0.55, 0.1, BONUS),
            (0.002, 0.2, 40.0, FILLER),  # beyond 12 nats a word is as wrong as it can be: .2 + .288
            (0.002, 0.22, 40.0, BONUS),
        ],
    )
    def test_combined_care_is_relevance_and_the_probability_given_up(
        self, slope: float, relevance: float, gap: float, expected: int
    ) -> None:
        request = VideoRequest(1, asks={**ALL, "relaxation": 0.5, "shift": "off"})
        decided = decide(make_rule(relevance, slope=slope), one_round([0, 6], [5, 5], gap_logits(gap, 2)), request)
        assert labels_of(decided)[0] == expected

    def test_the_gap_is_told_of_mismatches_and_the_choice_of_loosened_tokens(self) -> None:
        """The second draft is the target's choice; the third is refused, and the target's own stands in its place."""
        request = VideoRequest(1, asks={**ALL, "relaxation": 0.5, "shift": "off"})
        rule = make_rule(torch.tensor([[0.1, 0.1, 0.9, 0.1]]))
        decided = decide(rule, one_round([0, 6, 5, 6], [5, 5, 5, 5], gap_logits(2.5, 4)), request)
        assert labels_of(decided) == [FILLER, MATCH, BONUS, NOT_COMMITTED]
        assert decided.gap.tolist() == [[2.5, 0.0, 2.5, 0.0]]
        assert decided.choice.tolist() == [[5, -1, -1, -1]]

    def test_without_a_number_nothing_is_loosened(self) -> None:
        decided = decide(make_rule(float("nan")), one_round([0, 6], [5, 5]), VideoRequest(1, asks=ALL))
        assert labels_of(decided) == [BONUS, NOT_COMMITTED]

    def test_every_row_has_its_own_rule_beside_others(self) -> None:
        requests = [
            VideoRequest(4, asks={**ALL, "relaxation": 0.3}),
            VideoRequest(0, asks={**ALL, "relaxation": 0.7}),
            VideoRequest(2, asks={"mode": "strict"}),
            VideoRequest(5, asks={**ALL, "floor": 0.5}),
        ]
        round_ = Numbers(torch.tensor([[0, 6]] * 4), torch.tensor([[5, 5]] * 4), gap_logits(1.0, 8))
        decided = decide(make_rule(0.5), round_, *requests)
        assert decided.relaxed.label[:, 0].tolist() == [BONUS, FILLER, BONUS, BONUS]


class Ranks:
    """Two ranks that decide one round in turn: the first sends, the second receives."""

    world_size = 2

    def __init__(self) -> None:
        self.sent: list[torch.Tensor] = []
        self.receives = False

    def broadcast(self, tensor: torch.Tensor, src: int) -> None:
        assert src == 0
        if self.receives:
            tensor.copy_(self.sent.pop(0))
        else:
            self.sent.append(tensor.clone())


class TestRanks:
    """Each number lies on one side of its bound on the first rank, and on the other side on the second."""

    def rounds(self) -> tuple[list[tuple[LooseRule, Numbers]], list[VideoRequest]]:
        """Bounds: a threshold of relevance, a floor, a top-p."""
        requests = [
            VideoRequest(1, asks={**ALL, "relaxation": 0.5}),
            VideoRequest(2, asks={**ALL, "floor": 1 / (1 + 2.718281828**1.5)}),
            VideoRequest(3, asks=ALL, top_p=1 / (1 + 2.718281828**-1.5), temperature=1.0),
        ]
        both = []
        for sign in (1, -1):
            tiny = sign * 1e-4
            relevance = torch.tensor([[0.5 - tiny, 0], [0, 0], [0, 0]])
            logits = torch.cat([gap_logits(1.5 - tiny, 2), gap_logits(1.5 - tiny, 2), gap_logits(1.5 - tiny, 2)])
            round_ = Numbers(torch.tensor([[0, 6]] * 3), torch.tensor([[5, 5]] * 3), logits)
            both.append((make_rule(relevance), round_))
        return both, requests

    def test_alone_they_would_part(self) -> None:
        both, requests = self.rounds()
        first, second = (decide(rule, round_, *requests).relaxed.label[:, 0].tolist() for rule, round_ in both)
        assert (first, second) == ([FILLER] * 3, [BONUS] * 3)

    def test_together_they_decide_alike(self, tp_group: SimpleNamespace, monkeypatch: pytest.MonkeyPatch) -> None:
        ranks = Ranks()
        monkeypatch.setattr("sgl_lvspec.verification.loose.get_parallel", lambda: SimpleNamespace(tp_group=ranks))
        both, requests = self.rounds()
        found = []
        for number, (rule, round_) in enumerate(both):
            ranks.receives = number == 1
            found.append(decide(rule, round_, *requests))
        assert not ranks.sent, "what was sent was received"
        first, second = found
        for ours, theirs in zip(
            (*first.relaxed, first.relevance, first.gap, first.choice),
            (*second.relaxed, second.relevance, second.gap, second.choice),
            strict=True,
        ):
            assert torch.equal(ours, theirs)
        for ours, theirs in zip(both[0][0].rows.state, both[1][0].rows.state, strict=True):
            assert torch.equal(ours, theirs)


class TestBeside:
    """The rule of a server, from what SGLang's worker holds."""

    def worker(self) -> Any:
        vocabulary = {token: number for number, token in enumerate("abcdefg7")}
        tokenizer = SimpleNamespace(
            get_vocab=lambda: vocabulary, get_added_vocab=dict, all_special_ids=[1], additional_stop_token_ids={2}
        )
        runner = SimpleNamespace(
            req_to_token_pool=SimpleNamespace(req_to_token=torch.zeros(9, 20, dtype=torch.int32)),
            model_config=SimpleNamespace(hf_eos_token_id={3}, vocab_size=10),
        )
        return SimpleNamespace(model_runner=runner, tokenizer=tokenizer)

    def calibration(self) -> Calibration:
        model = ModelIdentity("M", 1, 1, 1, 1, "")
        edges = tuple(0.25 * edge for edge in range(N_BINS + 1))
        return Calibration(model, model, priors={"combined": edges}, combined={"slope": 0.5})

    def test_with_a_calibration(self) -> None:
        config = LVSpecConfig("paper", scorer="combined", calibration="file")
        rule = LooseRule.beside(self.worker(), SimpleNamespace(), config, self.calibration())  # type: ignore[arg-type]
        assert rule.rows.edges.tolist() == list(self.calibration().priors["combined"])
        assert rule.rows.state.tokens.shape == (9,)
        assert rule._decision.care.slope == 0.5
        assert rule._decision.token_class.tolist() == [0, 1, 1, 1, 0, 0, 0, DIGIT, 1, 1]
        rule.rows.write(batch_of(VideoRequest(8)))
        assert rule.rows.state.counts[8].sum() == CALIBRATED_WEIGHT

    def test_without_one_nothing_is_loosened_before_enough_was_seen(self) -> None:
        rule = LooseRule.beside(self.worker(), SimpleNamespace(), LVSpecConfig("paper", scorer="attention"), None)  # type: ignore[arg-type]
        rule.rows.write(batch_of(VideoRequest(8)))
        assert rule.rows.state.counts[8].sum() == 0
        assert rule._decision.care.slope == 0
