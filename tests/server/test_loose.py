"""A loosening server: strict requests beside loose ones, and what loose answers keep whatever they loosen.

Greedy and float32, so a loose answer is one answer. The loosest preset but where a test says otherwise.
"""

from __future__ import annotations

import json
import threading
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import Any

import openai
import pytest

from sgl_lvspec.verification.protected import DIGIT, ORDINARY, PROTECTED, token_classes
from tests.server.oracle import LOOSENED, assert_labels_true, judge
from tests.server.prompts import DESCRIBE, VIDEO, chat, payload, situations
from tests.server.serving import Pair, Server
from tests.server.test_sight import assert_sight
from tests.server.test_strict_ids import outcome

QUESTIONS = (DESCRIBE, "What happens first?", "What happens in the video?", "Describe the objects and how they move.")
PLACES = 4  # of the server
SCHEMA = {
    "type": "object",
    "properties": {"color": {"enum": ["red", "green", "blue"]}, "count": {"type": "integer", "maximum": 99}},
    "required": ["color", "count"],
}


def asking(request: dict[str, Any], **settings: Any) -> dict[str, Any]:
    """The request with settings of LVSPEC, asking for labels."""
    params = {**request["sampling_params"], "custom_params": {"lvspec": {"labels": True, **settings}}}
    return {**request, "sampling_params": params}


def labels_of(answer: dict[str, Any]) -> list[str]:
    labels: list[str] = answer["meta_info"]["lvspec_labels"]
    return labels


def assert_within_budget(labels: list[str], max_share: float, max_run: int) -> int:
    """The budget holds wherever the answer would be cut. Returns the number of loosened tokens."""
    loosened = run = 0
    for count, label in enumerate(labels, start=1):
        run = run + 1 if label in LOOSENED else 0
        loosened += label in LOOSENED
        assert run <= max_run
        assert loosened <= max_share * max(count, 32)
    return loosened


def at_once(server: Server, requests: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Answers of requests that fill the server's places."""
    with ThreadPoolExecutor(PLACES) as pool:
        return list(pool.map(server.generate, requests))


@contextmanager
def traffic(server: Server, requests: list[dict[str, Any]]) -> Iterator[list[dict[str, Any]]]:
    """Keeps each request running, again and again, until the block ends; then the list holds the answers."""
    is_over, answers = threading.Event(), list[dict[str, Any]]()

    def keep_asking(request: dict[str, Any]) -> None:
        while not is_over.is_set():
            answers.append(server.generate(request))

    with ThreadPoolExecutor(len(requests)) as pool:
        running = [pool.submit(keep_asking, request) for request in requests]
        try:
            yield answers
        finally:
            is_over.set()
    for future in running:
        future.result()


@pytest.fixture(scope="module")
def classes(pair: Pair, tokenizer: Any) -> list[int]:
    """Class of every token, as the server sees it."""
    config = json.loads((pair.target / "config.json").read_text())
    eos = json.loads((pair.target / "generation_config.json").read_text())["eos_token_id"]
    vocabulary = config.get("text_config", config)["vocab_size"]
    found: list[int] = token_classes(tokenizer, eos if isinstance(eos, list) else [eos], vocabulary, "cpu").tolist()
    return found


@pytest.fixture(scope="module")
def loose_video(loose_server: Server, videos: list[str]) -> dict[str, Any]:
    """A loose answer, to its end."""
    return loose_server.generate(asking(payload(chat(VIDEO + DESCRIBE), video_data=videos[0])))


def special_cases(videos: list[str], text: str) -> dict[str, dict[str, Any]]:
    """Requests that are strict by what they are, beside those of `situations`."""
    ask = chat(VIDEO + DESCRIBE)
    return {
        "json_schema": payload(ask, video_data=videos[0], sampling={"json_schema": json.dumps(SCHEMA)}),
        "stop_string": payload(ask, video_data=videos[0], sampling={"stop": [text[30:36]]}),
        "stop_regex": payload(ask, video_data=videos[1], sampling={"stop_regex": "m[aeiou]"}),
    }


# Nobody asks for strict here: these are.
STRICT_BY_NATURE = {
    "text": "no image or video", "text_long": "no image or video", "presence_penalty": "no image or video",
    "min_new_tokens": "no image or video", "frequency_penalty": "penalties", "repetition_penalty": "penalties",
    "grammar": "grammar", "json_schema": "grammar", "stop_string": "stop string", "stop_regex": "stop string",
}  # fmt: skip
SETTINGS: dict[str, dict[str, Any]] = {
    "strict": {"mode": "strict"},
    "zero": {"relaxation": 0},
    "anchors": {"mode": "loose", "floor": 1.0, "window": 0},  # every token an anchor, and no word is shifted
}
NAMES = list(situations(["", ""], ""))
LOOSE_NAMES = [name for name in NAMES if name not in STRICT_BY_NATURE]
CASES = [(name, setting) for setting in SETTINGS for name in (NAMES if setting == "strict" else LOOSE_NAMES)]
CASES += [(name, "nothing") for name in STRICT_BY_NATURE]


@pytest.fixture(scope="module")
def asked(
    requests_by_name: dict[str, dict], plain_answers: dict[str, dict], videos: list[str]
) -> dict[str, dict[str, Any]]:
    return {**requests_by_name, **special_cases(videos, plain_answers["video"]["text"])}


@pytest.fixture(scope="module")
def expected(asked: dict[str, dict], plain_server: Server, plain_answers: dict[str, dict]) -> dict[str, dict[str, Any]]:
    return {name: plain_answers.get(name) or plain_server.generate(request) for name, request in asked.items()}


@pytest.fixture(scope="module")
def answers(asked: dict[str, dict], loose_server: Server, videos: list[str]) -> dict[tuple[str, str], dict[str, Any]]:
    """Of every case, with a loose request running all the time."""
    loose_server.flush()
    beside = [asking(payload(chat(VIDEO + DESCRIBE), video_data=videos[0], sampling={"ignore_eos": True}))]
    requests = [asking(asked[name], **SETTINGS.get(setting, {})) for name, setting in CASES]
    with traffic(loose_server, beside) as loose, ThreadPoolExecutor(PLACES - len(beside)) as pool:
        answers = dict(zip(CASES, pool.map(loose_server.generate, requests), strict=True))
    assert len(loose) > len(CASES) / 8, "it ran again and again"
    for answer in loose:
        assert answer["meta_info"]["lvspec"]["divergence"] > 0, "a request beside was not loosened"
    return answers


class TestStrictBesideLoose:
    """Token ids of no speculation, for requests that share every batch with loose ones."""

    @pytest.mark.parametrize(("name", "setting"), CASES, ids=map("-".join, CASES))
    def test_ids_equal_no_speculation(
        self, name: str, setting: str, answers: dict[tuple[str, str], dict], expected: dict[str, dict]
    ) -> None:
        answer = answers[name, setting]
        assert outcome(answer) == outcome(expected[name])
        assert not set(labels_of(answer)) & set(LOOSENED)
        if setting != "anchors":
            counts = answer["meta_info"]["lvspec"]
            reason = STRICT_BY_NATURE[name] if setting == "nothing" else "asked for strict"
            assert (counts["mode"], counts["strict_reason"]) == ("strict", reason)

    def test_constrained_answers_keep_to_their_grammar(self, answers: dict[tuple[str, str], dict]) -> None:
        found = json.loads(answers["json_schema", "nothing"]["text"])
        assert found["color"] in ("red", "green", "blue") and found["count"] <= 99
        assert answers["grammar", "nothing"]["text"].startswith(("The ", "A "))


class TestEnds:
    """An answer is cut where it ends, and has one label for each of its tokens."""

    def test_max_tokens_cuts_the_same_answer_anywhere(
        self, loose_server: Server, videos: list[str], loose_video: dict[str, Any]
    ) -> None:
        limits = range(1, 31)
        requests = [
            asking(payload(chat(VIDEO + DESCRIBE), video_data=videos[0], max_new_tokens=limit)) for limit in limits
        ]
        for limit, answer in zip(limits, at_once(loose_server, requests), strict=True):
            assert_sight(answer)
            assert answer["output_ids"] == loose_video["output_ids"][:limit]
            assert labels_of(answer) == labels_of(loose_video)[:limit]
            assert answer["meta_info"]["finish_reason"] == {"type": "length", "length": limit}

    def test_nothing_follows_a_stop_token(
        self, loose_server: Server, videos: list[str], loose_video: dict[str, Any]
    ) -> None:
        stops = list(dict.fromkeys(loose_video["output_ids"][:40]))
        requests = [
            asking(payload(chat(VIDEO + DESCRIBE), video_data=videos[0], sampling={"stop_token_ids": [stop]}))
            for stop in stops
        ]
        stopped = 0
        for stop, answer in zip(stops, at_once(loose_server, requests), strict=True):
            assert_sight(answer)
            assert answer["meta_info"]["lvspec"]["mode"] == "loose"
            ids = answer["output_ids"]
            assert stop not in ids[:-1]
            if ids[-1] == stop:  # a loosened word may have led elsewhere
                stopped += 1
                assert answer["meta_info"]["finish_reason"] == {"type": "stop", "matched": stop}
                assert labels_of(answer)[-1] in ("match", "bonus"), "a stop is the target's own"
        assert stopped > len(stops) / 2

    def test_nothing_follows_the_end(self, loose_video: dict[str, Any], classes: list[int]) -> None:
        assert_sight(loose_video)
        *ids, last = loose_video["output_ids"]
        assert classes[last] == PROTECTED
        assert all(classes[token] != PROTECTED for token in ids)
        assert loose_video["meta_info"]["finish_reason"]["type"] == "stop"

    def test_a_request_without_an_end_goes_on(self, loose_server: Server, videos: list[str]) -> None:
        """Ends are drafted and accepted there like any word, but only where the target says them too."""
        request = payload(
            chat(VIDEO + DESCRIBE), video_data=videos[0], max_new_tokens=200, sampling={"ignore_eos": True}
        )
        answer = loose_server.generate(asking(request))
        assert_sight(answer)
        assert len(answer["output_ids"]) == 200


@pytest.fixture(scope="module")
def loose_requests(videos: list[str]) -> list[dict[str, Any]]:
    return [payload(chat(VIDEO + text), video_data=video) for video in videos for text in QUESTIONS]


# Settings, and the classes of tokens that they may loosen.
RULES: dict[str, tuple[dict[str, Any], tuple[int, ...]]] = {
    "paper": ({}, (ORDINARY, DIGIT)),
    "conservative": ({"preset": "conservative"}, (ORDINARY,)),
    "balanced": ({"preset": "balanced"}, (ORDINARY,)),
    "shift": ({"shift": "both", "window": 8, "protect_digits": True}, (ORDINARY,)),
}


class TestLabels:
    """Labels of many answers against what the target alone thinks of their tokens."""

    @pytest.mark.parametrize("name", RULES)
    def test_labels_are_true_and_protected_tokens_are_the_targets(
        self,
        name: str,
        loose_requests: list[dict[str, Any]],
        loose_server: Server,
        plain_server: Server,
        tokenizer: Any,
        classes: list[int],
    ) -> None:
        settings, allowed = RULES[name]
        asked = [asking(each, **settings) for each in loose_requests]
        total = told = 0
        seen = Counter[str]()
        for request, answer in zip(asked, at_once(loose_server, asked), strict=True):
            assert_sight(answer)
            judged, labels = judge(plain_server, tokenizer, request, answer), labels_of(answer)
            assert_labels_true(judged, labels)
            for token, label in zip(judged, labels, strict=False):
                if label in LOOSENED:
                    assert classes[token.token] in allowed, "a protected token took another's place"
                    assert classes[token.top[0]] in allowed, "a protected token was replaced"
            seen.update(labels)
            total, told = total + len(answer["output_ids"]), told + len(judged)
        assert seen["filler"] > len(asked) / 2
        assert name != "shift" or seen["shift"] > 0
        assert told > 0.9 * total, "most answers can be read back"

    def test_budgets_hold(self, loose_server: Server, loose_requests: list[dict[str, Any]]) -> None:
        answers = at_once(loose_server, [asking(each, max_share=0.1, max_run=1) for each in loose_requests])
        loosened = sum(assert_within_budget(labels_of(answer), max_share=0.1, max_run=1) for answer in answers)
        assert loosened > len(answers), "and they are used"


class TestSameAnswer:
    """One loose request, whatever the server does beside it."""

    def request(self, videos: list[str], question: str = DESCRIBE) -> dict[str, Any]:
        return asking(payload(chat(VIDEO + question), video_data=videos[0]))

    @staticmethod
    def assert_same(answer: dict[str, Any], other: dict[str, Any]) -> None:
        assert outcome(answer) == outcome(other)
        assert labels_of(answer) == labels_of(other)
        ours, theirs = (a["meta_info"]["lvspec_relevance"] for a in (answer, other))
        # float32 sums over contexts and batches of another shape, weighted by heads
        assert [score for score in ours if score is not None] == pytest.approx(
            [score for score in theirs if score is not None], abs=1e-4
        )

    def test_from_an_empty_cache_and_with_a_known_video(
        self, loose_server: Server, videos: list[str], loose_video: dict[str, Any]
    ) -> None:
        loose_server.flush()
        empty, hit = loose_server.generate(self.request(videos)), loose_server.generate(self.request(videos))
        assert empty["meta_info"]["cached_tokens"] == 0
        assert hit["meta_info"]["cached_tokens"] > 64, "the video's slots are reused"
        self.assert_same(empty, loose_video)
        self.assert_same(hit, loose_video)
        loose_server.flush()
        loose_server.generate(self.request(videos, "Who are you?"))
        self.assert_same(loose_server.generate(self.request(videos)), loose_video)

    def test_in_a_full_batch_and_after_it(
        self, loose_server: Server, videos: list[str], requests_by_name: dict[str, dict], loose_video: dict[str, Any]
    ) -> None:
        """Rows and places of the batch change hands between strict, loose and penalised requests."""
        names = ("video_other", "text_long", "frequency_penalty")
        beside = [asking(requests_by_name[name]) for name in names]
        with traffic(loose_server, beside):
            for _ in range(4):
                self.assert_same(loose_server.generate(self.request(videos)), loose_video)
        self.assert_same(loose_server.generate(self.request(videos)), loose_video)

    def test_several_of_it_at_once(self, loose_server: Server, videos: list[str], loose_video: dict[str, Any]) -> None:
        for answer in at_once(loose_server, [self.request(videos)] * 6):
            self.assert_same(answer, loose_video)

    def test_beside_sampled_requests(
        self, loose_server: Server, videos: list[str], loose_video: dict[str, Any]
    ) -> None:
        sampled = payload(chat(VIDEO + DESCRIBE), video_data=videos[1], sampling={"temperature": 1.0, "top_p": 0.9})
        with traffic(loose_server, [sampled, sampled]):
            for _ in range(3):
                self.assert_same(loose_server.generate(self.request(videos)), loose_video)


class TestSampled:
    def test_a_clients_top_k_holds_for_loosened_tokens(
        self, loose_server: Server, plain_server: Server, tokenizer: Any, videos: list[str]
    ) -> None:
        sampling = {"temperature": 0.8, "top_k": 5}
        requests = [
            asking(payload(chat(VIDEO + text), video_data=video, sampling=sampling))
            for video in videos
            for text in QUESTIONS
        ]
        loosened, told, total = 0, 0, 0
        for request, answer in zip(requests, at_once(loose_server, requests), strict=True):
            assert_sight(answer)
            assert answer["meta_info"]["finish_reason"]["type"] in ("stop", "length")
            judged = judge(plain_server, tokenizer, request, answer)
            for token in judged:
                assert token.token in token.top
            loosened += sum(label in LOOSENED for label in labels_of(answer))
            told, total = told + len(judged), total + len(answer["output_ids"])
        assert loosened > 0
        # A sampled answer is cut at its first unusual spelling.
        assert told > 0.5 * total

    def test_logprobs_are_the_targets_own_of_the_committed_tokens(
        self, loose_server: Server, plain_server: Server, tokenizer: Any, videos: list[str]
    ) -> None:
        request = {**asking(payload(chat(VIDEO + DESCRIBE), video_data=videos[0])), "return_logprob": True}
        answer = loose_server.generate(request)
        assert answer["meta_info"]["lvspec"]["divergence"] > 0
        judged = judge(plain_server, tokenizer, request, answer)
        found = [row[0] for row in answer["meta_info"]["output_token_logprobs"]]
        assert len(judged) > 30
        # float32: the same states are summed over another batch shape, and log-probabilities reach -20 here
        assert found[: len(judged)] == pytest.approx([token.logprob for token in judged], abs=1e-3)


class TestOpenAIClient:
    @pytest.fixture
    def client(self, loose_server: Server) -> Iterator[openai.OpenAI]:
        with openai.OpenAI(base_url=loose_server.url + "/v1", api_key="none", max_retries=0) as client:
            yield client

    def ask(self, client: openai.OpenAI, model: str, video: str, **settings: Any) -> Any:
        """The choice of a chat that asks for meta information."""
        content: Any = [{"type": "video_url", "video_url": {"url": video}}, {"type": "text", "text": DESCRIBE}]
        extra = {"return_meta_info": True, "custom_params": {"lvspec": {"labels": True, **settings}}}
        response = client.chat.completions.create(
            model=model, messages=[{"role": "user", "content": content}], temperature=0, max_tokens=96, extra_body=extra
        )
        return response.choices[0]

    def test_strict_and_loose_by_request(
        self, client: openai.OpenAI, loose_server: Server, videos: list[str], plain_answers: dict[str, dict]
    ) -> None:
        strict = self.ask(client, loose_server.model, videos[0], mode="strict")
        assert strict.message.content == plain_answers["video"]["text"]
        assert strict.meta_info["lvspec"]["mode"] == "strict"
        assert strict.meta_info["lvspec"]["divergence"] == 0

        loose = self.ask(client, loose_server.model, videos[0], mode="loose")
        counts = loose.meta_info["lvspec"]
        assert (counts["mode"], counts["preset"], counts["strict_reason"]) == ("loose", "paper", None)
        assert counts["T"] > strict.meta_info["lvspec"]["T"]
        assert 0 < counts["divergence"] < 1
        labels = loose.meta_info["lvspec_labels"]
        assert len(labels) == len(loose.meta_info["lvspec_relevance"]) == loose.meta_info["completion_tokens"]
        assert counts["divergence"] == sum(label in LOOSENED for label in labels) / len(labels)

        for preset in ("conservative", "balanced"):
            named = self.ask(client, loose_server.model, videos[0], preset=preset).meta_info["lvspec"]
            assert (named["mode"], named["preset"]) == ("loose", preset)
            assert named["divergence"] <= counts["divergence"]
