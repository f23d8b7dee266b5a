"""Strict mode at temperature 0.8: it draws from the target's distribution, row by row."""

from __future__ import annotations

from collections import Counter
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch

from tests.server.prompts import DESCRIBE, VIDEO, chat, payload
from tests.server.serving import Server
from tests.server.test_strict_ids import outcome

NUM_SAMPLES = 1024
NUM_TOKENS = 4  # the first comes from the prompt's forward, the others from verified rounds
FALSE_ALARM = 1e-6  # chance that two samples of one distribution fail the comparison
MIN_EXPECTED = 8.0  # rarer outcomes are counted together, so that the chi-square approximation holds

# A small vocabulary by truncation; each filter takes part, min-p too, which SGLang's own verify ignores.
SAMPLING = {"temperature": 0.8, "top_k": 4, "top_p": 0.97, "min_p": 0.02}


def drawn(server: Server, video: str) -> Counter[tuple[int, ...]]:
    """How often each sequence was sampled after one prompt about one video."""
    request = payload(chat(VIDEO + DESCRIBE), max_new_tokens=NUM_TOKENS, video_data=video, sampling=SAMPLING)
    server.generate(request)  # the video enters the radix cache once
    request["sampling_params"]["n"] = 64
    answers: list[dict] = []
    while len(answers) < NUM_SAMPLES:
        answers += server.generate(request)  # type: ignore[arg-type]  # n > 1 answers with a list
    return Counter(tuple(answer["output_ids"]) for answer in answers)


@pytest.fixture(scope="module")
def theirs(plain_server: Server, videos: list[str]) -> Counter[tuple[int, ...]]:
    """What the target alone drew."""
    return drawn(plain_server, videos[0])


def two_sample_p_value(ours: Counter, theirs: Counter) -> float:
    """Pearson's chi-square test that two equally large samples have one distribution."""
    total = ours + theirs
    common = [key for key, count in total.items() if count / 2 >= MIN_EXPECTED]
    rows = [(ours[key], theirs[key]) for key in common]
    rows.append((ours.total() - sum(a for a, _ in rows), theirs.total() - sum(b for _, b in rows)))
    counts = torch.tensor([row for row in rows if sum(row) > 0], dtype=torch.float64)
    assert len(counts) >= 3, f"the prompt must leave something to draw, got {total}"
    expected = counts.sum(1, keepdim=True) * counts.sum(0) / counts.sum()
    statistic = ((counts - expected) ** 2 / expected).sum()
    return float(torch.special.gammaincc(torch.tensor((len(counts) - 1) / 2.0, dtype=torch.float64), statistic / 2))


def test_sampled_sequences_have_the_targets_distribution(
    lvspec_server: Server, videos: list[str], theirs: Counter
) -> None:
    ours = drawn(lvspec_server, videos[0])
    p_value = two_sample_p_value(ours, theirs)
    assert p_value > FALSE_ALARM, f"p = {p_value:.2e}: ours {ours.most_common(5)}, alone {theirs.most_common(5)}"


def test_the_comparison_can_fail(theirs: Counter) -> None:
    """Greedy answers, which is what SGLang's CPU verify gives at any temperature, are told apart."""
    greedy = Counter({theirs.most_common(1)[0][0]: theirs.total()})
    assert two_sample_p_value(greedy, theirs) < FALSE_ALARM


def test_greedy_rows_stay_exact_beside_sampled_ones(
    lvspec_server: Server, videos: list[str], requests_by_name: dict[str, dict], plain_answers: dict[str, dict]
) -> None:
    sampled = payload(chat(VIDEO + DESCRIBE), video_data=videos[1], sampling={"temperature": 1.0})
    names = ("video", "frequency_penalty", "text")
    with ThreadPoolExecutor(6) as pool:
        noise = [pool.submit(lvspec_server.generate, sampled) for _ in range(3)]
        answers = list(pool.map(lambda name: lvspec_server.generate(requests_by_name[name]), names))
        texts = {future.result()["text"] for future in noise}
    assert [outcome(a) for a in answers] == [outcome(plain_answers[n]) for n in names]
    assert len(texts) > 1, "at temperature 1 the same request gives other texts"
