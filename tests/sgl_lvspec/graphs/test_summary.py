"""What start-up says of CUDA graphs, and which of SGLang's switches it sets."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
from sglang.srt.environ import envs

from sgl_lvspec.graphs import sglang_waits
from sgl_lvspec.graphs.summary import what_is_captured

SWITCH = "SGLANG_OPT_FLASHINFER_VERIFY_HOST_PLAN"


def test_a_cpu_captures_nothing() -> None:
    line = what_is_captured("cpu", verify=False, relevance=True, accept=False, draft=False)
    assert line == "CUDA graphs: nothing, on a CPU."


def test_a_gpu_says_what_is_and_what_is_not() -> None:
    every = what_is_captured("cuda", verify=True, relevance=True, accept=True, draft=True)
    assert every == (
        "CUDA graphs: the target's verify, by SGLang, relevance in it; the accept step of greedy rounds, once they "
        "occur; the draft's steps. Without: nothing."
    )
    strict = what_is_captured("cuda", verify=True, relevance=False, accept=False, draft=False)
    assert strict.startswith("CUDA graphs: the target's verify, by SGLang. Without: the accept step")
    none = what_is_captured("cuda", verify=False, relevance=True, accept=True, draft=False)
    assert none.startswith("CUDA graphs: nothing. Without:"), "an accept step is replayed behind a replayed verify only"


def server(**given: Any) -> Any:
    unset = {"prefill_attention_backend": None, "decode_attention_backend": None}
    return SimpleNamespace(**{"device": "cuda", "attention_backend": "flashinfer", **unset, **given})


@pytest.mark.parametrize(
    ("given", "is_set"),
    [
        ({}, True),
        ({"attention_backend": None, "prefill_attention_backend": "flashinfer"}, True),
        ({"attention_backend": "triton"}, False),
        ({"device": "cpu", "attention_backend": "lvspec_cpu"}, False),
    ],
)
def test_the_switch_is_set_where_flashinfer_runs_on_cuda(
    monkeypatch: pytest.MonkeyPatch, given: dict[str, Any], is_set: bool
) -> None:
    monkeypatch.setenv(SWITCH, "")  # put back at the end, whatever the code does
    monkeypatch.delenv(SWITCH)
    sglang_waits.spare(server(**given))
    assert envs.SGLANG_OPT_FLASHINFER_VERIFY_HOST_PLAN.get() is is_set


def test_a_user_who_set_the_switch_keeps_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(SWITCH, "0")
    sglang_waits.spare(server())
    assert not envs.SGLANG_OPT_FLASHINFER_VERIFY_HOST_PLAN.get()
