"""`lvspec doctor` finds what is wrong, says what to do, and its exit code says which."""

from __future__ import annotations

import logging
import os
import subprocess
import sys
import tomllib
import warnings
from collections.abc import Iterator
from importlib.metadata import EntryPoint
from pathlib import Path

import pytest

from sgl_lvspec import SGLANG_TESTED, __version__, cli, doctor
from sgl_lvspec.doctor import Finding, ModelPaths
from sgl_lvspec.relevance.calibration import Calibration, write_calibration
from sgl_lvspec.relevance.identity import identify
from sgl_lvspec.seams import FLASHINFER_SEAMS, SEAMS, SourceTree
from tests.sgl_lvspec.checkpoints import write_draft, write_target, write_tokenizer

HEALTHY = {
    "torch": "2.13.0", "triton": "3.8.0", "transformers": "5.0", "sglang": SGLANG_TESTED, "sglang-kernel": "0.4",
}  # fmt: skip


def _wrong(findings: Iterator[Finding]) -> list[Finding]:
    return [finding for finding in findings if finding.remedy is not None]


def _plugin(value: str, environ: dict[str, str] | None = None) -> list[Finding]:
    entry = EntryPoint(name="lvspec", value=value, group="sglang.srt.plugins")
    return list(doctor.examine_plugin([entry], environ or {}))


# --- versions and device


def test_healthy_versions_are_listed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doctor, "_version", HEALTHY.get)
    findings = list(doctor.examine_versions())
    assert _wrong(iter(findings)) == []
    assert [finding.name for finding in findings] == ["python", "torch", "triton", "transformers", "sglang", "engine"]


@pytest.mark.parametrize(
    ("change", "name", "value", "remedy"),
    [
        ({"sglang": "0.6.0"}, "sglang", f"0.6.0, LVSPEC is for {SGLANG_TESTED}", f"Install sglang=={SGLANG_TESTED}"),
        ({"sglang": None}, "sglang", "not installed", f"Install sglang=={SGLANG_TESTED}"),
        ({"triton": None}, "triton", "not installed", "make setup"),
        ({"sglang-kernel": None}, "engine", "not installed", "pip install ./cpu_engine"),
        ({"sgl-lvspec-cpu-engine": "0.1"}, "engine", "sglang-kernel 0.4 and sgl-lvspec-cpu-engine 0.1", "Uninstall"),
    ],
)
def test_wrong_versions_have_a_remedy(
    monkeypatch: pytest.MonkeyPatch, change: dict[str, str | None], name: str, value: str, remedy: str
) -> None:
    monkeypatch.setattr(doctor, "_version", {**HEALTHY, **change}.get)
    [finding] = _wrong(doctor.examine_versions())
    assert (finding.name, finding.value) == (name, value)
    assert finding.remedy is not None
    assert remedy in finding.remedy


def test_a_cpu_without_the_cpu_engine_switched_on_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    import torch

    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(doctor, "DRIVER", Path("/nonexistent"))
    assert _wrong(doctor.examine_device({"SGLANG_USE_CPU_ENGINE": "1"})) == []
    [finding] = _wrong(doctor.examine_device({"SGLANG_USE_CPU_ENGINE": "0"}))
    assert "SGLANG_USE_CPU_ENGINE is not 1" in str(finding.remedy)


def test_a_driver_that_torch_does_not_see_is_told(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    import torch

    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(doctor, "DRIVER", tmp_path)
    [finding] = _wrong(doctor.examine_device({"SGLANG_USE_CPU_ENGINE": "1"}))
    assert "sees no GPU. Install torch for CUDA" in str(finding.remedy)


# --- the plugin


def test_the_installed_plugin_is_loaded_for_real() -> None:
    findings = _plugin("sgl_lvspec.plugin:load")
    assert _wrong(iter(findings)) == []
    assert {finding.name: finding.value for finding in findings} == {
        "entry point": "sgl_lvspec.plugin:load",
        "loading": "loaded",
        "flags": "--lvspec-*",
        "algorithm": "LVSPEC is LVSpecAlgorithm",
        "attention": "lvspec_cpu on CPU, SGLang's own on a GPU",
    }


def test_no_entry_point_means_not_installed() -> None:
    [finding] = doctor.examine_plugin([EntryPoint(name="other", value="x:y", group="sglang.srt.plugins")], {})
    assert finding.value == "none named lvspec in sglang.srt.plugins"
    assert "pip install ." in str(finding.remedy)


def test_a_whitelist_without_us_is_told() -> None:
    [finding] = _wrong(iter(_plugin("sgl_lvspec.plugin:load", {"SGLANG_PLUGINS": "other, more"})))
    assert (finding.name, finding.value) == ("SGLANG_PLUGINS", "other, more")
    assert finding.remedy == "SGLang loads these plugins only. Add lvspec or unset it."
    for allowed in ("lvspec", "other,lvspec", ""):
        assert _wrong(iter(_plugin("sgl_lvspec.plugin:load", {"SGLANG_PLUGINS": allowed}))) == []


@pytest.mark.parametrize(
    ("body", "value", "remedy"),
    [
        ("import lvspec_kernels.gone", "ModuleNotFoundError: No module named 'lvspec_kernels.gone'", "pip install ."),
        (
            "raise ImportError('libcuda.so.1: cannot open shared object file')",
            "ImportError: libcuda.so.1: cannot open shared object file, at broken/plugin.py:1",
            "pip install ./cpu_engine",
        ),
        ("from sglang.srt.plugins import gone", "ImportError: cannot import name 'gone'", f"sglang=={SGLANG_TESTED}"),
        (
            "try:\n    {}['seam']\nexcept KeyError as error:\n    raise RuntimeError('first\\nno seam') from error",
            "RuntimeError: no seam (began as KeyError: 'seam'), at broken/plugin.py:2",
            f"sglang=={SGLANG_TESTED}",
        ),
        ("def load():\n    raise TypeError", "TypeError, at broken/plugin.py:2", f"sglang=={SGLANG_TESTED}"),
        ("", "AttributeError: module 'broken.plugin' has no attribute 'load'", f"sglang=={SGLANG_TESTED}"),
    ],
)  # fmt: skip
def test_what_sglang_would_only_log_is_shown(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, body: str, value: str, remedy: str
) -> None:
    package = tmp_path / "site-packages" / "broken"
    package.mkdir(parents=True)
    (package / "plugin.py").write_text(body)
    monkeypatch.syspath_prepend(package.parent)
    for name in ("broken", "broken.plugin"):
        monkeypatch.delitem(sys.modules, name, raising=False)
    [finding] = _wrong(iter(_plugin("broken.plugin:load")))
    assert finding.name == "loading"
    assert finding.value.startswith(value)
    assert remedy in str(finding.remedy)
    for name in ("broken", "broken.plugin"):
        sys.modules.pop(name, None)


# --- seams


def test_seams_that_hold_are_counted() -> None:
    [finding] = doctor.examine_seams()
    assert finding == Finding("seams", "hold", f"{len(SEAMS)} of {len(SEAMS)}")


def test_broken_seams_are_listed_up_to_a_screen(tmp_path: Path) -> None:
    (tmp_path / "sglang").mkdir()
    (tmp_path / "sglang" / "__init__.py").write_text("")
    findings = list(doctor.examine_seams(SEAMS, lambda: SourceTree(tmp_path)))
    assert findings[0].value == f"0 of {len(SEAMS)}"
    assert len(findings) == 1 + doctor.MAX_BROKEN_SHOWN + 1
    assert "Used in sgl_lvspec/" in findings[1].value
    assert f"Install sglang=={SGLANG_TESTED}" in str(findings[1].remedy)
    assert findings[-1].value == f"and {len(SEAMS) - doctor.MAX_BROKEN_SHOWN} more"


def test_flashinfer_is_compared_where_it_is_and_missed_by_nobody_else(tmp_path: Path) -> None:
    def missing(package: str) -> SourceTree:
        raise ModuleNotFoundError(f"{package} is not installed")

    [finding] = doctor.examine_flashinfer(missing)
    assert finding == Finding("seams", "flashinfer", "not checkable without flashinfer")
    [finding] = doctor.examine_flashinfer(lambda package: SourceTree(tmp_path))
    assert finding.value.startswith(f"0 of {len(FLASHINFER_SEAMS)} hold; flashinfer.prefill.")
    assert finding.remedy == "Serve with --lvspec-mass keys."


def test_seams_without_sglang_say_so() -> None:
    def missing() -> SourceTree:
        raise ModuleNotFoundError("sglang is not installed in this environment")

    [finding] = doctor.examine_seams(SEAMS, missing)
    assert finding.value == "sglang is not installed in this environment"
    assert finding.remedy is not None


# --- models


@pytest.fixture
def pair(tmp_path: Path) -> ModelPaths:
    """Configs and tokenizers of two models that fit."""
    target = write_tokenizer(write_target(tmp_path / "target"), "a", "b", "c")
    draft = write_tokenizer(write_draft(tmp_path / "draft"), "a", "b", "c")
    return ModelPaths(str(target), str(draft))


def test_no_models_named_is_no_finding() -> None:
    assert list(doctor.examine_models(ModelPaths())) == []


def test_a_fitting_pair_is_described(pair: ModelPaths) -> None:
    target, draft, fits = doctor.examine_models(pair)
    assert target.value == f"{pair.target}: Qwen2_5_VLForConditionalGeneration, 64 wide, 512 tokens"
    assert draft.value == f"{pair.draft}: Qwen2ForCausalLM, 32 wide, 512 tokens"
    assert fits.value == (
        "fits: tested architectures, one vocabulary, one tokenizer; the draft is text-only and sees no video"
    )
    assert fits.remedy is None


def test_a_draft_that_sees_and_is_too_wide_is_described(pair: ModelPaths) -> None:
    write_target(Path(str(pair.draft)), hidden_size=128)
    *_, fits = doctor.examine_models(pair)
    assert fits.value == (
        "fits: tested architectures, one vocabulary, one tokenizer; the draft is wider than the target, expect no "
        "speed-up"
    )


def test_a_misfit_is_split_into_finding_and_remedy(pair: ModelPaths) -> None:
    write_draft(Path(str(pair.draft)), vocab_size=600)
    [finding] = _wrong(doctor.examine_models(pair))
    assert finding.value == (
        f"LVSPEC needs a draft with the target's vocabulary; found 512 tokens in {pair.target} and 600 in {pair.draft}."
    )
    assert finding.remedy == "Use a draft of the same family and padded vocabulary size."


def test_other_tokens_are_a_misfit(pair: ModelPaths) -> None:
    write_tokenizer(Path(str(pair.draft)), "a", "b", "x")
    [finding] = _wrong(doctor.examine_models(pair))
    assert "; found 'c' at 3 in the" in finding.value or "; found 'x' at None in the" in finding.value
    assert finding.remedy == "Use a draft that was trained with the target's tokenizer."


def test_a_model_that_cannot_be_read_is_told(pair: ModelPaths, tmp_path: Path) -> None:
    findings = list(doctor.examine_models(ModelPaths(str(tmp_path / "gone"), pair.draft)))
    [finding] = _wrong(iter(findings))
    assert finding.name == "target"
    assert finding.value.startswith(f"{tmp_path / 'gone'}: ")
    assert "--model-path" in str(finding.remedy)
    assert [finding.name for finding in findings] == ["target", "draft"]


def test_one_model_alone_asks_for_the_other(pair: ModelPaths) -> None:
    [finding] = _wrong(doctor.examine_models(ModelPaths(pair.target, None)))
    assert (finding.name, finding.value) == ("draft", "not named")
    assert "--speculative-draft-model-path" in str(finding.remedy)


def write_calibration_of(target: str, draft: str, path: Path) -> str:
    write_calibration(Calibration(identify(target), identify(draft)), path)
    return str(path)


def test_a_calibration_file_of_the_pair_is_told(pair: ModelPaths, tmp_path: Path) -> None:
    target, draft = str(pair.target), str(pair.draft)
    path = write_calibration_of(target, draft, tmp_path / "own.json")
    *_, finding = doctor.examine_models(ModelPaths(target, draft, calibration=path))
    assert finding == Finding("models", "calibration", f"{path}: of this pair")


def test_a_calibration_file_in_the_targets_folder_is_told(pair: ModelPaths) -> None:
    target, draft = str(pair.target), str(pair.draft)
    path = write_calibration_of(target, draft, Path(target) / "lvspec.json")
    *_, finding = doctor.examine_models(pair)
    assert finding == Finding("models", "calibration", f"{path}: of this pair")
    *_, finding = doctor.examine_models(ModelPaths(target, draft, calibration="none"))
    assert finding.name == "pair"


def test_a_calibration_file_of_other_models_is_to_mend(pair: ModelPaths, tmp_path: Path) -> None:
    target, draft = str(pair.target), str(pair.draft)
    path = write_calibration_of(draft, draft, tmp_path / "other.json")
    [finding] = _wrong(doctor.examine_models(ModelPaths(target, draft, calibration=path)))
    assert "found one of another target" in finding.value
    assert finding.remedy == "Calibrate for this pair (`lvspec calibrate`), or set --lvspec-calibration none."


def test_a_calibration_file_that_cannot_be_read_is_to_mend(pair: ModelPaths, tmp_path: Path) -> None:
    paths = ModelPaths(pair.target, pair.draft, calibration=str(tmp_path / "absent.json"))
    [finding] = _wrong(doctor.examine_models(paths))
    assert "absent.json" in finding.value
    assert finding.remedy == "Write it with `lvspec calibrate`."


# --- the report and the command


def test_report_is_aligned_and_ends_with_ready() -> None:
    report = doctor.render([Finding("versions", "torch", "2.13"), Finding("plugin", "entry point", "x:y")])
    assert report == (
        f"sgl-lvspec {__version__}\n\nversions\n  torch        2.13\n\nplugin\n  entry point  x:y\n\nready"
    )


def test_report_marks_what_is_wrong_and_counts_it() -> None:
    fine, wrong = Finding("a", "fine", "1"), Finding("a", "wrong", "2", "Mend it.")
    assert doctor.render([fine, wrong]).splitlines()[3:] == [
        "  fine   1",
        "! wrong  2",
        "         -> Mend it.",
        "",
        "not ready: 1 thing to mend, marked ! above; begin with the first",
    ]
    assert doctor.render([wrong, wrong]).endswith("not ready: 2 things to mend, marked ! above; begin with the first")


def test_doctor_says_ready_here(capsys: pytest.CaptureFixture[str], pair: ModelPaths) -> None:
    code = cli.main(["doctor", "--model-path", str(pair.target), "--speculative-draft-model-path", str(pair.draft)])
    said = capsys.readouterr()
    assert said.out.endswith("\nready\n"), said.out
    assert code == 0
    assert said.err == ""
    assert [line for line in said.out.splitlines() if line in ("versions", "device", "plugin", "seams", "models")] == [
        "versions", "device", "plugin", "seams", "models",
    ]  # fmt: skip
    assert len(said.out.splitlines()) <= 40, "one screen"


def test_what_packages_say_while_imported_stays_off_the_screen(
    capsys: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture, recwarn: pytest.WarningsRecorder
) -> None:
    def speak() -> None:
        logging.getLogger("sglang").error("said")
        warnings.warn("said", UserWarning, stacklevel=1)
        print("said", file=sys.stderr)

    with doctor._silence():
        speak()
    assert (caplog.messages, list(recwarn), capsys.readouterr().err) == ([], [], "")
    speak()
    assert (caplog.messages, len(recwarn), capsys.readouterr().err) == (["said"], 1, "said\n")


def test_exit_code_is_one_when_something_is_wrong(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[ModelPaths] = []

    def examine(paths: ModelPaths) -> list[Finding]:
        asked.append(paths)
        return [Finding("a", "b", "c", "Do it.")]

    monkeypatch.setattr(doctor, "examine", examine)
    words = ["doctor", "--speculative-draft-model", "d", "--trust-remote-code", "--lvspec-calibration", "c.json"]
    assert cli.main(words) == 1
    assert asked == [ModelPaths(None, "d", True, "c.json")]
    assert "-> Do it." in capsys.readouterr().out


def test_version_and_missing_command(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ending:
        cli.main(["--version"])
    assert ending.value.code == 0
    assert capsys.readouterr().out == f"sgl-lvspec {__version__} (for sglang {SGLANG_TESTED})\n"
    with pytest.raises(SystemExit) as ending:
        cli.main([])
    assert ending.value.code == 2


def test_the_console_script_is_this_command() -> None:
    scripts = tomllib.loads((Path(__file__).parents[2] / "pyproject.toml").read_text())["project"]["scripts"]
    assert scripts == {"lvspec": "sgl_lvspec.cli:main"}


def test_version_needs_neither_torch_nor_sglang() -> None:
    program = "import sys; sys.modules.update(torch=None, sglang=None); from sgl_lvspec import cli; cli.main()"
    done = subprocess.run(
        [sys.executable, "-c", program, "--version"], capture_output=True, text=True, check=False, timeout=120
    )
    assert (done.returncode, done.stderr) == (0, "")


def test_a_broken_environment_is_examined_to_the_end() -> None:
    """Neither torch nor SGLang can be imported: every part still reports."""
    program = (
        "import sys; sys.modules.update(torch=None, sglang=None); from sgl_lvspec import cli; sys.exit(cli.main())"
    )
    environ = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [sys.executable, "-c", program, "doctor", "--model-path", "x"],
        capture_output=True, text=True, check=False, timeout=300, env=environ,
    )  # fmt: skip
    assert done.returncode == 1, done.stderr
    assert "! loading" in done.stdout
    assert "! torch" in done.stdout
    assert "not ready: " in done.stdout.splitlines()[-1]
    assert "Traceback" not in done.stdout + done.stderr
