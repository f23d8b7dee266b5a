"""Several ranks on a CPU (gloo): two that share each model, and two copies of both. The oracle is the target alone.

Two ranks on two cores spend most of their time waiting for each other, so answers are short.
"""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import requests
from prometheus_client.parser import text_string_to_metric_families

from tests.server import rank_shaker
from tests.server.serving import Pair, Server, lvspec_args, start
from tests.server.test_loose import asking
from tests.server.test_sight import assert_sight
from tests.server.test_strict_ids import accepted_per_round, outcome

TOKENS = 24
RANKS = (0, 1)
LOOSE = ("video", "video_other", "image", "multi_turn")  # asked for with the loosest preset
BOUND = "LVSPEC: 2 ranks on the CPU: SGLANG_CPU_OMP_THREADS_BIND="


class Ranks(NamedTuple):
    """A server of two ranks of which the second one finds other numbers, and where both write what they commit."""

    server: Server
    folder: Path


def shortened(request: dict[str, Any], tokens: int = TOKENS) -> dict[str, Any]:
    """The request with few tokens to write."""
    sampling = {**request["sampling_params"], "max_new_tokens": tokens}
    if "min_new_tokens" in sampling:
        sampling["min_new_tokens"] = tokens - 4
    return {**request, "sampling_params": sampling}


def all_at_once(server: Server, named: dict[str, dict[str, Any]], **fields: Any) -> dict[str, dict[str, Any]]:
    """Answers by name."""
    with ThreadPoolExecutor(len(named)) as pool:
        answers = pool.map(lambda request: server.generate({**request, **fields}), named.values())
        return dict(zip(named, answers, strict=True))


@pytest.fixture(scope="module")
def short(requests_by_name: dict[str, dict[str, Any]]) -> dict[str, dict[str, Any]]:
    """Every situation."""
    return {name: shortened(request) for name, request in requests_by_name.items()}


@pytest.fixture(scope="module")
def expected(plain_server: Server, short: dict[str, dict[str, Any]]) -> dict[str, Any]:
    """What the target alone, on one rank, says to every situation."""
    return {name: outcome(plain_server.generate(request)) for name, request in short.items()}


@pytest.fixture(scope="class")
def two_ranks(pair: Pair, log_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Ranks]:
    """Strict until a request asks; nobody names the ranks' cores."""
    folder = tmp_path_factory.mktemp("ranks")
    server = start(
        pair.target, *lvspec_args(pair), "--tp-size", "2", "--lvspec-preset", "paper", "--lvspec-relaxation", "0",
        "--lvspec-guard", "watch",  # as the loose server that answers are compared with
        log=log_dir / "tp2.log", env=rank_shaker.environment(folder),
    )  # fmt: skip
    yield Ranks(server, folder)
    server.stop()


@pytest.fixture(scope="class")
def two_copies(pair: Pair, log_dir: Path) -> Iterator[Server]:
    server = start(
        pair.target, *lvspec_args(pair), "--dp-size", "2", "--lvspec-preset", "paper", "--lvspec-relaxation", "0",
        "--lvspec-guard", "watch", "--enable-metrics", log=log_dir / "dp2.log",
    )  # fmt: skip
    yield server
    server.stop()


class TestTwoRanks:
    """Tensor parallelism, with a second rank that finds other numbers."""

    def test_ranks_that_disagree_answer_as_one_rank_does(
        self, two_ranks: Ranks, short: dict[str, dict[str, Any]], expected: dict[str, Any]
    ) -> None:
        """Every situation. A commit that is not rank 0's everywhere ends in other tokens, or never."""
        answers = all_at_once(two_ranks.server, short)
        assert {name: outcome(answer) for name, answer in answers.items()} == expected
        meta = answers["video"]["meta_info"]
        assert accepted_per_round(meta) > 0.5, "the draft sees the video on both ranks"
        _assert_committed_alike(two_ranks)

    def test_loose_answers_are_rank_0s_on_both_and_those_of_one_rank(
        self, two_ranks: Ranks, loose_server: Server, short: dict[str, dict[str, Any]]
    ) -> None:
        """Ids and labels. Relevance is summed over the ranks' heads in another order than on one rank: it could differ
        in its last bits, and only then a token at the threshold could part the answers."""
        named = {name: asking(shortened(short[name], 48), preset="paper") for name in LOOSE}
        answers, alone = (all_at_once(server, named) for server in (two_ranks.server, loose_server))
        loosened = 0
        for name, answer in answers.items():
            assert_sight(answer)
            for key in ("lvspec_labels", "lvspec_choice"):
                assert answer["meta_info"][key] == alone[name]["meta_info"][key], name
            assert outcome(answer) == outcome(alone[name])
            loosened += sum(answer["meta_info"]["lvspec"]["accepted"][reason] for reason in ("filler", "shift"))
        assert loosened > 0, "nothing was loosened, so nothing was decided"
        _assert_committed_alike(two_ranks)

    def test_sampled_tokens_are_drawn_once(self, two_ranks: Ranks, short: dict[str, dict[str, Any]]) -> None:
        sampled = shortened(short["video"])
        sampled["sampling_params"] |= {"temperature": 0.8, "ignore_eos": True}
        meta = two_ranks.server.generate(sampled)["meta_info"]
        assert meta["completion_tokens"] == TOKENS
        _assert_committed_alike(two_ranks)

    def test_cores_are_named_where_the_user_named_none(self, two_ranks: Ranks) -> None:
        lines = [line for line in two_ranks.server.log.read_text().splitlines() if BOUND in line]
        assert len(lines) == 1, "one line, of the main process"


class TestTwoCopies:
    """Data parallelism."""

    def test_copies_answer_as_one_does_and_count_their_own(
        self, two_copies: Server, short: dict[str, dict[str, Any]], expected: dict[str, Any]
    ) -> None:
        """Every situation, strict, on both copies; metrics carry the copy's number."""
        for rank in RANKS:  # metrics begin with a copy's first request
            two_copies.generate({**short["text"], "routed_dp_rank": rank})
        before = _counted(two_copies)
        told: dict[str, dict[str, Any]] = {}
        for rank in RANKS:
            answers = all_at_once(two_copies, short, routed_dp_rank=rank)
            assert {name: outcome(answer) for name, answer in answers.items()} == expected, f"copy {rank}"
            assert {answer["meta_info"]["dp_rank"] for answer in answers.values()} == {rank}
            told[str(rank)] = {name: answer["meta_info"]["lvspec"] for name, answer in answers.items()}
        after = _counted(two_copies)
        for rank, counts in told.items():
            rounds = sum(count["rounds"] for count in counts.values())
            assert after["lvspec:rounds_total", rank] - before["lvspec:rounds_total", rank] == rounds > 0
            drafted = sum(count["drafted"] for count in counts.values())
            assert after["lvspec:drafted_tokens_total", rank] - before["lvspec:drafted_tokens_total", rank] == drafted

    def test_each_copy_knows_the_videos_that_it_has_read(
        self, two_copies: Server, short: dict[str, dict[str, Any]], loose_server: Server
    ) -> None:
        """Slot tables are the copy's own: a loose answer about a video that only the other one holds is the same."""
        two_copies.flush()
        request = asking(shortened(short["video"], 48), preset="paper")
        answers = [two_copies.generate({**request, "routed_dp_rank": rank}) for rank in (0, 0, 1, 1)]
        alone = loose_server.generate(request)
        cached = [answer["meta_info"]["cached_tokens"] for answer in answers]
        assert cached[0] == cached[2] == 0
        assert cached[1] == cached[3] > 64, "the video comes from the copy's own cache"
        for answer in answers:
            assert_sight(answer)
            assert outcome(answer) == outcome(alone)
            assert answer["meta_info"]["lvspec_labels"] == alone["meta_info"]["lvspec_labels"]
            assert answer["meta_info"]["lvspec"]["divergence"] > 0


def _assert_committed_alike(ranks: Ranks) -> None:
    """Both ranks have committed the same tokens of the same requests in the same rounds."""
    first, second = (rank_shaker.read(ranks.folder, rank) for rank in RANKS)
    rounds = min(len(first), len(second))  # one of them may just be writing
    assert rounds > 0
    assert [line["committed"] for line in first[:rounds]] == [line["committed"] for line in second[:rounds]]
    assert first[-1]["shaken"] == 0
    assert second[-1]["shaken"] > rounds, "the second rank found what the first did, so nothing was shown"


def _counted(server: Server) -> dict[tuple[str, str], float]:
    """Plain counters of LVSPEC by name and copy."""
    text = requests.get(server.url + "/metrics", timeout=60).text
    samples = [sample for family in text_string_to_metric_families(text) for sample in family.samples]
    return {
        (sample.name, sample.labels["dp_rank"]): sample.value
        for sample in samples
        if sample.name in ("lvspec:rounds_total", "lvspec:drafted_tokens_total")
    }
