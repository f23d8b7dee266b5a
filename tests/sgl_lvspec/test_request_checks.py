"""What a client may ask of LVSPEC in one request, and how it learns what it may not."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

pytest.importorskip("sglang")

from sglang.srt.managers.tokenizer_manager import TokenizerManager
from sglang.srt.sampling.sampling_params import SamplingParams

from sgl_lvspec import request_checks
from sgl_lvspec.config import LVSpecConfig
from tests.sgl_lvspec.main_process_args import server_args

VOCABULARY = 896
LOOSE = LVSpecConfig("balanced")


@pytest.fixture(scope="module", autouse=True)
def _installed() -> None:
    request_checks.install(server_args())
    request_checks.install(server_args())  # start-up may resolve its arguments twice


def test_requests_checked_elsewhere_are_refused() -> None:
    with pytest.raises(ValueError, match=r"^LVSPEC needs --tokenizer-worker-num at 1.*; found 4\."):
        request_checks.install(server_args(tokenizer_worker_num=4))


@pytest.mark.parametrize(
    "custom_params",
    [
        None,
        {},
        {"lvspec": {}},
        {"lvspec": {"mode": "strict", "labels": True}},
        {"mine": 7, "list": [1, "two", None], "flat": {"a": 0.5}, "lvspec": {"preset": "paper", "max_run": "none"}},
    ],
)
def test_what_is_meant_is_accepted(custom_params: Any) -> None:
    request_checks.check_custom_params(custom_params, LOOSE)


@pytest.mark.parametrize(
    ("custom_params", "message"),
    [
        (7, r"^custom_params must be an object; found 7\. Send"),
        ({"lvspec": True}, r"^custom_params\.lvspec must be an object .* found True"),
        (
            {"lvspec": {"mode": "wild"}},
            r"^custom_params\.lvspec\.mode must be one of strict, loose; found 'wild'\. Choose",
        ),
        ({"lvspec": {"relaxation": [0.5]}}, r"^custom_params\.lvspec must hold plain values"),
        ({"lvspec": {"mode": {"a": {}}}}, r"^custom_params\.lvspec must hold plain values"),
        ({"mine": {"a": {"b": 1}}}, r"^custom_params\.mine must hold plain values.*Flatten it"),
        ({"mine": [[1]]}, r"^custom_params\.mine must hold plain values"),
    ],
)
def test_what_is_not_is_refused_with_a_remedy(custom_params: Any, message: str) -> None:
    """`tests/sgl_lvspec/verification/test_settings.py` has the settings one by one."""
    with pytest.raises(ValueError, match=message):
        request_checks.check_custom_params(custom_params, LOOSE)


class TestHooks:
    """The functions that SGLang calls for every request carry the checks."""

    def test_sampling_parameters(self) -> None:
        SamplingParams(custom_params={"lvspec": {"mode": "strict"}}).verify(VOCABULARY)
        with pytest.raises(ValueError, match="found 'wild'"):
            SamplingParams(custom_params={"lvspec": {"mode": "wild"}}).verify(VOCABULARY)

    def test_what_a_request_may_ask_is_the_servers_matter(self) -> None:
        loose = SamplingParams(custom_params={"lvspec": {"preset": "paper"}})
        with pytest.raises(ValueError, match="found the preset strict"):
            loose.verify(VOCABULARY)
        request_checks.install(server_args(_lvspec=LOOSE))
        loose.verify(VOCABULARY)
        request_checks.install(server_args())
        with pytest.raises(ValueError, match="found the preset strict"):
            loose.verify(VOCABULARY)

    def test_sampling_parameters_that_end_the_scheduler(self) -> None:
        with pytest.raises(ValueError, match="top_k must be at most"):
            SamplingParams(top_k=2**40).verify(VOCABULARY)

    def test_sampling_parameters_that_are_no_pattern(self) -> None:
        with pytest.raises(ValueError, match="stop_regex must be a regular expression"):
            SamplingParams(stop_regex="(((").normalize(None)

    def test_sglangs_own_checks_come_first(self) -> None:
        with pytest.raises(ValueError, match="top_p must be in"):
            SamplingParams(top_p=2.0, custom_params=7).verify(VOCABULARY)

    @pytest.fixture
    def validate(self, monkeypatch: pytest.MonkeyPatch) -> Any:
        """`TokenizerManager._validate_one_request` with SGLang's own checks out of the way."""
        hooked = TokenizerManager._validate_one_request
        monkeypatch.setattr(hooked.__wrapped__, "__code__", (lambda self, obj, input_ids: None).__code__)
        manager = SimpleNamespace(model_config=SimpleNamespace(vocab_size=VOCABULARY))

        def validate(prompt: list[int] | None = None, **fields: Any) -> None:
            hooked(manager, SimpleNamespace(**{"custom_logit_processor": None, "input_ids": None} | fields), prompt)

        return validate

    def test_a_plain_request_passes(self, validate: Any) -> None:
        validate([1, 2])

    def test_a_logit_processor_is_refused(self, validate: Any) -> None:
        with pytest.raises(ValueError, match=r"runs no custom_logit_processor; found one\. Leave it out"):
            validate(custom_logit_processor='{"callable": "00"}')

    def test_a_request_that_ends_the_scheduler_is_refused(self, validate: Any) -> None:
        with pytest.raises(ValueError, match="found 900"):
            validate([1, 900], input_ids=[1, 900])
        with pytest.raises(ValueError, match="at least one token"):
            validate([])
