"""Strict mode on other servers: other chain lengths and drafts (blind, equal, another shape), split prompts.

Each server is started once and answers every situation; the oracle is the target alone.
"""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from transformers import AutoConfig, Qwen2Config, Qwen2ForCausalLM

from tests.server.oracle import assert_labels_true, judge
from tests.server.serving import Pair, Server, lvspec_args, start
from tests.server.test_loose import asking, assert_within_budget, at_once, labels_of
from tests.server.test_sight import assert_labels_fit_in_a_crowd, assert_sight
from tests.server.test_strict_ids import outcome


@contextmanager
def serving(target: Path, *args: str, log: Path, env: dict[str, str] | None = None) -> Iterator[Server]:
    server = start(target, *args, log=log, env=env)
    try:
        yield server
    finally:
        server.stop()


def assert_equal_in_turn(
    server: Server, requests_by_name: dict[str, dict], plain_answers: dict[str, dict]
) -> list[dict]:
    """Every situation one after another, later ones behind the prefixes of earlier ones."""
    answers = {name: server.generate(request) for name, request in requests_by_name.items()}
    assert {n: outcome(a) for n, a in answers.items()} == {n: outcome(a) for n, a in plain_answers.items()}
    return list(answers.values())


def assert_equal_at_once(server: Server, requests_by_name: dict[str, dict], plain_answers: dict[str, dict]) -> None:
    """All situations at once, from an empty cache."""
    server.flush()
    with ThreadPoolExecutor(len(requests_by_name)) as pool:
        crowded = dict(zip(requests_by_name, pool.map(server.generate, requests_by_name.values()), strict=True))
    assert {n: outcome(a) for n, a in crowded.items()} == {n: outcome(a) for n, a in plain_answers.items()}


@pytest.fixture(scope="session")
def text_only_draft(pair: Pair, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A random text model with the target's vocabulary and tokenizer, of another width and head layout."""
    folder = tmp_path_factory.mktemp("text_only_draft")
    text = AutoConfig.from_pretrained(pair.target).get_text_config()
    config = Qwen2Config(
        vocab_size=text.vocab_size, hidden_size=96, intermediate_size=160, num_hidden_layers=1, num_attention_heads=3,
        num_key_value_heads=1, max_position_embeddings=text.max_position_embeddings, tie_word_embeddings=True,
        bos_token_id=None, eos_token_id=text.eos_token_id, pad_token_id=text.pad_token_id,
    )  # fmt: skip
    Qwen2ForCausalLM(config).save_pretrained(folder)
    for name in ("tokenizer.json", "tokenizer_config.json", "vocab.json", "merges.txt", "chat_template.jinja"):
        if (pair.target / name).exists():
            shutil.copy(pair.target / name, folder)
    return folder


def test_chunk_ends_inside_videos_and_too_few_places(
    pair: Pair, log_dir: Path, plain_server: Server, tokenizer: Any, requests_by_name: dict, plain_answers: dict
) -> None:
    """K = 3, prompts cut every 48 tokens (a video has 64), three places, and too few KV slots for three long answers:
    some are retracted and start again. A server that is strict until a request asks; at last some do."""
    args = ("--speculative-num-steps", "3", "--chunked-prefill-size", "48", "--max-running-requests", "3",
            "--max-total-tokens", "900", "--schedule-conservativeness", "0.1",
            # An answer that goes on behind its end repeats itself, for which a guard that acts would make it strict.
            "--lvspec-preset", "paper", "--lvspec-relaxation", "0", "--lvspec-guard", "watch")  # fmt: skip
    with serving(pair.target, *lvspec_args(pair), *args, log=log_dir / "chunked.log") as server:
        assert_equal_in_turn(server, requests_by_name, plain_answers)
        assert_equal_at_once(server, requests_by_name, plain_answers)
        stop = plain_answers["video"]["meta_info"]["finish_reason"]["matched"]
        long = {name: endless(requests_by_name[name], stop) for name in ("text", "image", "video", "video_other")}
        answers = assert_labels_fit_in_a_crowd(server, long)
        settings = {"preset": "paper", "max_share": 0.2, "max_run": 2}
        loose = {name: asking(request, **settings) for name, request in long.items() if name != "text"}
        loosened = dict(zip(loose, at_once(server, [*loose.values()]), strict=True))
    assert sum(a["meta_info"]["num_retractions"] for a in answers.values()) > 0, "retraction was not seen at work"
    expected = {name: outcome(plain_server.generate(request)) for name, request in long.items()}
    assert {name: outcome(answer) for name, answer in answers.items()} == expected
    assert sum(a["meta_info"]["num_retractions"] for a in loosened.values()) > 0, "retraction was not seen at work"
    for name, answer in loosened.items():
        labels = labels_of(answer)
        assert_sight(answer)
        assert_labels_true(judge(plain_server, tokenizer, loose[name], answer), labels)
        assert_within_budget(labels, max_share=0.2, max_run=2)
        assert answer["meta_info"]["lvspec"]["divergence"] > 0.05


def test_one_drafted_token_a_round(pair: Pair, log_dir: Path, requests_by_name: dict, plain_answers: dict) -> None:
    args = ("--speculative-num-steps", "1")
    with serving(pair.target, *lvspec_args(pair), *args, log=log_dir / "k1.log") as server:
        assert_equal_at_once(server, requests_by_name, plain_answers)


def test_a_draft_that_cannot_see(
    pair: Pair, text_only_draft: Path, log_dir: Path, requests_by_name: dict, plain_answers: dict
) -> None:
    """A random text-only model drafts nearly only wrong tokens; the text stays the target's."""
    blind = Pair(pair.target, text_only_draft)
    with serving(pair.target, *lvspec_args(blind), log=log_dir / "blind.log") as server:
        assert_equal_at_once(server, requests_by_name, plain_answers)


def test_a_draft_equal_to_the_target_is_always_accepted(
    pair: Pair, log_dir: Path, requests_by_name: dict, plain_answers: dict
) -> None:
    """Draft and target read the same prompt at the same positions, so any shift between them would show here."""
    twin = Pair(pair.target, pair.target)
    # All places are taken by requests whose chains are accepted whole, also where the draft is not sure of its words.
    whole = ("--max-running-requests", "3", "--lvspec-draft-stop", "0")
    with serving(pair.target, *lvspec_args(twin), *whole, log=log_dir / "twin.log") as server:
        answers = assert_equal_in_turn(server, requests_by_name, plain_answers)
    rounds = drafted = 0
    for name, answer in zip(requests_by_name, answers, strict=True):
        if name in ("logit_bias", "grammar", "min_new_tokens") or name.endswith("_penalty"):
            continue  # what the target may say is bent there, the draft's wishes are not
        told = answer["meta_info"]["lvspec"]
        assert round(told["T"] * told["rounds"]) == told["drafted"], name
        rounds, drafted = rounds + told["rounds"], drafted + told["drafted"]
    assert drafted > 9 * rounds, "but for the ends of answers a chain has ten"


def endless(request: dict, stop: int) -> dict:
    """The request, answered by 300 tokens. With `ignore_eos` SGLang would let in only as many as fit to their end."""
    sampling = {**request["sampling_params"], "max_new_tokens": 300, "logit_bias": {str(stop): -100.0}}
    return {**request, "sampling_params": sampling}
