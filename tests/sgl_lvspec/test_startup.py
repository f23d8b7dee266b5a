"""Start-up of a server that names LVSPEC: each refusal with its message, and what is filled in."""

from __future__ import annotations

import re
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from sglang.srt.server_args import ServerArgs

from sgl_lvspec import SGLANG_TESTED, request_checks, startup
from sgl_lvspec.attention import CPU_BACKEND
from sgl_lvspec.config import LVSpecConfig
from sgl_lvspec.models import ModelFacts
from tests.sgl_lvspec.fresh_process import facts

FORM = re.compile(r"^.*(needs|must).*; found .*\. .+\.$")  # required / found / do this


def _record(**changes: Any) -> SimpleNamespace:
    """A stand-in as SGLang hands one: the fields of real server arguments, assignable, and nothing else."""
    server_args = ServerArgs(model_path="target", speculative_draft_model_path="draft", device="cpu")
    fields = {name: getattr(server_args, name) for name in ServerArgs.__struct_fields__}
    # SGLang resolves these before it calls us.
    fields |= {"speculative_algorithm": "LVSPEC", "attention_backend": "torch_native"}
    unknown = set(changes) - set(fields)
    assert not unknown, f"{unknown} are no fields of ServerArgs"
    return SimpleNamespace(**{**fields, **changes})


@pytest.fixture
def fitting(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """Models that fit, and request checks that only note that they were installed."""
    pair = (
        ModelFacts("target", "Qwen2_5_VLForConditionalGeneration", 512, 64, True),
        ModelFacts("draft", "Qwen2ForCausalLM", 512, 32, False),
    )
    monkeypatch.setattr(startup, "_load_facts", lambda _: pair)
    installed: list[Any] = []
    monkeypatch.setattr(request_checks, "install", installed.append)
    return installed


def _refusal(record: SimpleNamespace) -> str:
    with pytest.raises(ValueError) as refusal:  # noqa: PT011
        startup.validate(record)  # type: ignore[arg-type]
    message = str(refusal.value)
    assert FORM.match(message), f"not in the form required / found / do this: {message}"
    return message


def test_defaults_pass_and_install_the_request_checks(fitting: list[Any]) -> None:
    record = _record()
    startup.validate(record)  # type: ignore[arg-type]
    assert fitting == [record]


@pytest.mark.parametrize(
    ("penalty", "source", "warns"), [(1.05, "model", True), (1.0, "model", False), (1.05, "openai", False)]
)
def test_a_penalty_that_chats_would_inherit_is_a_warning(
    fitting: list[Any], tmp_path: Path, caplog: pytest.LogCaptureFixture, penalty: float, source: str, warns: bool
) -> None:
    (tmp_path / "generation_config.json").write_text(f'{{"repetition_penalty": {penalty}}}')
    startup.validate(_record(model_path=str(tmp_path), sampling_defaults=source))  # type: ignore[arg-type]
    assert ("repetition_penalty 1.05, which chats inherit" in caplog.text) == warns


@pytest.mark.parametrize(("field", "value"), [("pp_size", 2), ("enable_hierarchical_cache", True), ("device", "xpu")])
def test_a_mode_that_lvspec_cannot_serve_is_refused_before_models_are_loaded(
    fitting: list[Any], field: str, value: object
) -> None:
    """`test_modes` has all of them."""
    assert f"LVSPEC needs --{field.replace('_', '-')} at " in _refusal(_record(**{field: value}))
    assert fitting == []


def test_another_sglang_is_refused(fitting: list[Any], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(startup, "version", {"sglang": "0.6.0"}.__getitem__)
    message = _refusal(_record())
    assert f"LVSPEC needs sglang {SGLANG_TESTED}" in message
    assert "found 0.6.0" in message
    assert "lvspec doctor" in message


def test_a_missing_draft_is_refused(fitting: list[Any]) -> None:
    message = _refusal(_record(speculative_draft_model_path=None))
    assert message.startswith("LVSPEC needs a draft model; found no --speculative-draft-model-path. Name ")


@pytest.mark.parametrize("topk", [0, 2, 4])
def test_a_tree_is_refused(fitting: list[Any], topk: int) -> None:
    assert _refusal(_record(speculative_eagle_topk=topk)) == (
        f"LVSPEC needs --speculative-eagle-topk 1; found {topk}. Drop the flag or set it to 1."
    )


@pytest.mark.parametrize(("steps", "width"), [(0, None), (-1, None), (None, 1), (None, 0), (5, 5), (5, 7), (10, 1)])
def test_impossible_lengths_are_refused(fitting: list[Any], steps: int | None, width: int | None) -> None:
    assert _refusal(_record(speculative_num_steps=steps, speculative_num_draft_tokens=width)) == (
        "LVSPEC needs --speculative-num-steps K of at least 1 and --speculative-num-draft-tokens K + 1; found "
        f"{steps} and {width}. Set K alone."
    )


@pytest.mark.parametrize(
    ("steps", "width", "resolved"),
    [
        (None, None, startup.DEFAULT_NUM_STEPS),
        (1, None, 1),
        (5, None, 5),
        (None, 2, 1),
        (None, 8, 7),
        (5, 6, 5),
    ],
)
def test_either_length_determines_the_other(
    fitting: list[Any], steps: int | None, width: int | None, resolved: int
) -> None:
    record = _record(speculative_num_steps=steps, speculative_num_draft_tokens=width, speculative_eagle_topk=None)
    startup.validate(record)  # type: ignore[arg-type]
    startup.set_defaults(record)  # type: ignore[arg-type]
    assert record.speculative_num_steps == resolved
    assert record.speculative_num_draft_tokens == resolved + 1
    assert record.speculative_eagle_topk == 1


def test_k_is_ten_as_in_the_paper() -> None:
    assert startup.DEFAULT_NUM_STEPS == 10


def test_a_pair_that_does_not_fit_is_refused(fitting: list[Any], monkeypatch: pytest.MonkeyPatch) -> None:
    target, draft = startup._load_facts(None)  # type: ignore[arg-type]
    monkeypatch.setattr(startup, "_load_facts", lambda _: (draft, target))
    assert "LVSPEC needs a --model-path of a tested architecture" in _refusal(_record())
    assert fitting == []


@pytest.mark.parametrize("found", ["intel_amx", "torch_native", CPU_BACKEND])
def test_on_cpu_our_backend_stands_in_for_the_default(fitting: list[Any], found: str) -> None:
    record = _record(attention_backend=found)
    startup.validate(record)  # type: ignore[arg-type]
    startup.set_defaults(record)  # type: ignore[arg-type]
    assert record.attention_backend == CPU_BACKEND
    assert record.disable_overlap_schedule is True


def test_on_cpu_another_backend_is_refused(fitting: list[Any]) -> None:
    assert _refusal(_record(attention_backend="triton")) == (
        f"LVSPEC needs --attention-backend {CPU_BACKEND} on CPU; found triton. Drop the flag."
    )


@pytest.mark.parametrize(
    "field", ["prefill_attention_backend", "decode_attention_backend", "speculative_draft_attention_backend"]
)
def test_on_cpu_no_phase_runs_on_a_backend_that_knows_no_verify(fitting: list[Any], field: str) -> None:
    flag = "--" + field.replace("_", "-")
    assert _refusal(_record(**{field: "torch_native"})) == (
        f"LVSPEC needs {flag} {CPU_BACKEND} on CPU; found torch_native. Drop the flag."
    )
    startup.validate(_record(**{field: CPU_BACKEND}))  # type: ignore[arg-type]


@pytest.mark.parametrize("device", [{}, {"device": "cuda", "attention_backend": "flashinfer"}], ids=["cpu", "cuda"])
def test_larger_pages_are_refused_on_every_device(fitting: list[Any], device: dict[str, str]) -> None:
    """The draft keeps single tokens of a page and leaves out others."""
    assert _refusal(_record(page_size=16, **device)) == (
        "LVSPEC needs --page-size 1: the draft's KV pool holds single tokens of a context, and on CPU SGLang finds "
        "larger pages with a GPU's kernel; found 16. Drop the flag."
    )
    assert fitting == []
    for size in (1, None):
        startup.validate(_record(page_size=size, **device))  # type: ignore[arg-type]


@pytest.mark.parametrize("field", ["attention_backend", "prefill_attention_backend"])
def test_on_a_gpu_the_cpu_backend_is_refused(fitting: list[Any], field: str) -> None:
    flag = "--" + field.replace("_", "-")
    gpu = {"device": "cuda", "attention_backend": "flashinfer"}
    assert _refusal(_record(**{**gpu, field: CPU_BACKEND})) == (
        f"{flag} {CPU_BACKEND} needs --device cpu; found cuda. Drop the flag."
    )


def test_shared_videos_are_read_once_on_cpu_alone(fitting: list[Any]) -> None:
    record = _record(device="cuda", attention_backend="flashinfer")
    record._lvspec = LVSpecConfig(cascade="on")
    message = _refusal(record)
    assert message.startswith("--lvspec-cascade on needs --device cpu: ")
    assert message.endswith("found cuda. Drop the flag.")
    record._lvspec = LVSpecConfig(cascade="off")
    startup.validate(record)  # type: ignore[arg-type]
    record = _record()
    record._lvspec = LVSpecConfig(cascade="on")
    startup.validate(record)  # type: ignore[arg-type]


@pytest.mark.parametrize(("preset", "is_refused"), [("strict", False), ("conservative", True), ("paper", True)])
def test_protected_tokens_need_a_tokenizer(fitting: list[Any], preset: str, is_refused: bool) -> None:
    record = _record(skip_tokenizer_init=True)
    record._lvspec = LVSpecConfig(preset)
    if is_refused:
        assert "found --skip-tokenizer-init. Drop the flag" in _refusal(record)
    else:
        startup.validate(record)  # type: ignore[arg-type]
    record.skip_tokenizer_init = False
    startup.validate(record)  # type: ignore[arg-type]


def _with_calibration(path: Path) -> SimpleNamespace:
    record = _record()
    record._lvspec = LVSpecConfig(calibration=str(path))
    return record


def test_a_calibration_file_that_is_none_is_refused_before_models_are_loaded(
    fitting: list[Any], tmp_path: Path
) -> None:
    path = tmp_path / "calibration.json"
    path.write_text("{}")
    with pytest.raises(ValueError, match=r"calibration\.json: A calibration file must have the fields format"):
        startup.validate(_with_calibration(path))  # type: ignore[arg-type]
    assert fitting == []


@pytest.mark.parametrize("warning", [None, "The calibration file must be of this pair of models"])
def test_a_calibration_file_of_other_models_is_a_warning(
    warning: str | None, fitting: list[Any], monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    asked: list[Any] = []
    monkeypatch.setattr(startup, "examine_calibration", lambda *paths: asked.append(paths) or warning)
    record = _with_calibration(Path("calibration.json"))
    startup.validate(record)  # type: ignore[arg-type]
    assert asked == [(Path("calibration.json"), "target", "draft", None, None)]
    assert [entry.message for entry in caplog.records if entry.levelname == "WARNING"] == ([warning] if warning else [])
    assert fitting == [record]


def test_on_a_gpu_backend_and_overlap_stay_sglangs(fitting: list[Any]) -> None:
    record = _record(device="cuda", attention_backend="flashinfer", max_running_requests=7)
    startup.validate(record)  # type: ignore[arg-type]
    startup.set_defaults(record)  # type: ignore[arg-type]
    assert (record.attention_backend, record.disable_overlap_schedule) == ("flashinfer", False)
    assert record.max_running_requests == 7


def test_open_ends_are_filled_as_sglang_fills_them_for_standalone() -> None:
    record = _record(enable_mixed_chunk=True)
    startup.set_defaults(record)  # type: ignore[arg-type]
    assert record.max_running_requests == 48
    assert record.enable_mixed_chunk is False


def test_a_real_command_line_resolves_to_what_we_assigned() -> None:
    assert facts()["resolved"] == {
        "speculative_algorithm": "LVSPEC",
        "speculative_num_steps": 10,
        "speculative_num_draft_tokens": 11,
        "speculative_eagle_topk": 1,
        "max_running_requests": 48,
        "attention_backend": CPU_BACKEND,
        "prefill_attention_backend": None,
        "decode_attention_backend": None,
        "disable_overlap_schedule": True,
        "enable_mixed_chunk": False,
    }


def test_a_command_line_without_lvspec_resolves_as_sglang_alone_would() -> None:
    resolved = facts()["plain resolved"]
    assert resolved["attention_backend"] in ("intel_amx", "torch_native")
    assert resolved["disable_overlap_schedule"] is False
    assert {name: value for name, value in resolved.items() if name.startswith("speculative")} == {
        "speculative_num_steps": None,
        "speculative_num_draft_tokens": None,
        "speculative_eagle_topk": None,
        "speculative_algorithm": None,
    }


def test_chains_are_stopped_on_cpu_alone(fitting: list[Any]) -> None:
    record = _record(device="cuda", attention_backend="flashinfer")
    record._lvspec = LVSpecConfig(draft_stop=0.5)
    assert _refusal(record).startswith("--lvspec-draft-stop needs --device cpu")
    for stop in (None, 0):
        record._lvspec = LVSpecConfig(draft_stop=stop)
        startup.validate(record)  # type: ignore[arg-type]
    record = _record()
    record._lvspec = LVSpecConfig(draft_stop=0.5)
    startup.validate(record)  # type: ignore[arg-type]
