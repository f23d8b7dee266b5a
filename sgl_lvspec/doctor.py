"""`lvspec doctor`: whether LVSPEC can run here and, if not, what to do, in one screen and without a server.

SGLang only logs a plugin that fails to load and then knows no algorithm of its name, so this loads the plugin for real
and shows what SGLang hides. Every part works without the ones before it: a broken environment is the usual patient.
"""

from __future__ import annotations

import contextlib
import logging
import os
import platform
import sys
import traceback
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from importlib.metadata import EntryPoint, PackageNotFoundError, entry_points, version
from pathlib import Path

from sgl_lvspec import SGLANG_TESTED, __version__
from sgl_lvspec.attention import CPU_BACKEND
from sgl_lvspec.models import ModelFacts, find_misfit, read_facts, read_tokenizer, tokenizer_misfit
from sgl_lvspec.relevance.calibration import examine_calibration, find_calibration
from sgl_lvspec.seams import FLASHINFER_SEAMS, SEAMS, Seam, SourceTree, find_broken

ENTRY_GROUP, ENTRY_NAME = "sglang.srt.plugins", "lvspec"
ALGORITHM = "LVSPEC"
MAX_BROKEN_SHOWN = 8
DRIVER = Path("/proc/driver/nvidia/version")  # there where an NVIDIA driver serves this machine
_INSTALL_SGLANG = f"Install sglang=={SGLANG_TESTED}, or set everything up with `make setup`."
_INSTALL_PLUGIN = "Install the plugin into this environment: `pip install .` in its repository."
_INSTALL_ENGINE = "Install the CPU engine into this environment: `pip install ./cpu_engine` in the plugin's repository."


@dataclass(frozen=True, slots=True)
class Finding:
    """One line of the report.

    Attributes:
        section: heading that it stands under.
        name: what was looked at.
        value: what was found.
        remedy: what to do; None when nothing is wrong.
    """

    section: str
    name: str
    value: str
    remedy: str | None = None


@dataclass(frozen=True, slots=True)
class ModelPaths:
    """The models (and their calibration file) that the user asks about, as the server's flags name them."""

    target: str | None = None
    draft: str | None = None
    trust_remote_code: bool = False
    calibration: str | None = None


def examine(paths: ModelPaths) -> list[Finding]:
    """Look at everything; nothing that goes wrong on the way ends the examination."""
    with _silence():
        return [
            *examine_versions(),
            *examine_device(),
            *examine_plugin(),
            *examine_seams(),
            *examine_flashinfer(),
            *examine_models(paths),
        ]


def render(findings: Sequence[Finding]) -> str:
    """The report as aligned text; its last line is `ready` or how much there is to mend."""
    width = max(len(finding.name) for finding in findings)
    lines = [f"sgl-lvspec {__version__}"]
    section = ""
    for finding in findings:
        if finding.section != section:
            section = finding.section
            lines += ["", section]
        lines.append(f"{' ' if finding.remedy is None else '!'} {finding.name:<{width}}  {finding.value}".rstrip())
        if finding.remedy is not None:
            lines.append(f"  {'':<{width}}  -> {finding.remedy}")
    wrong = sum(finding.remedy is not None for finding in findings)
    verdict = f"not ready: {wrong} thing{'s' * (wrong > 1)} to mend, marked ! above; begin with the first"
    return "\n".join([*lines, "", verdict if wrong else "ready"])


def examine_versions() -> Iterator[Finding]:
    """Packages that decide whether the server runs."""
    yield Finding("versions", "python", platform.python_version())
    for package in ("torch", "triton", "transformers"):
        found = _version(package)
        yield Finding("versions", package, found or "not installed", None if found else _INSTALL_SGLANG)
    found = _version("sglang")
    is_tested = found == SGLANG_TESTED
    value = found or "not installed"
    yield Finding(
        "versions",
        "sglang",
        value if is_tested or found is None else f"{value}, LVSPEC is for {SGLANG_TESTED}",
        None if is_tested else _INSTALL_SGLANG,
    )
    engines = {name: _version(name) for name in ("sglang-kernel", "sgl-lvspec-cpu-engine")}
    installed = [f"{name} {found}" for name, found in engines.items() if found]
    remedy = None
    if not installed:
        remedy = f"{_INSTALL_SGLANG} On a machine without a GPU: {_INSTALL_ENGINE}"
    elif len(installed) == 2:
        remedy = "Both provide the module sgl_kernel. Uninstall sgl-lvspec-cpu-engine, or sglang-kernel without a GPU."
    yield Finding("versions", "engine", " and ".join(installed) or "not installed", remedy)


def examine_device(environ: Mapping[str, str] = os.environ) -> Iterator[Finding]:
    """The device that a server would choose."""
    try:
        import torch
    except Exception as error:
        yield Finding("device", "torch", _cause(error), _INSTALL_SGLANG)
        return
    if torch.cuda.is_available():
        gpu = torch.cuda.get_device_properties(0)
        count = torch.cuda.device_count()
        value = f"{count} x {gpu.name}, {gpu.total_memory / 2**30:.0f} GiB, sm_{gpu.major}{gpu.minor}"
        yield Finding("device", "cuda", value)
        backends = [f"{name} {found}" for name in ("flashinfer-python", "triton") if (found := _version(name))]
        yield Finding("device", "attention", ", ".join(backends))
        return
    remedy = None
    if DRIVER.exists():
        remedy = f"There is an NVIDIA driver, but torch {torch.__version__} sees no GPU. Install torch for CUDA."
    elif environ.get("SGLANG_USE_CPU_ENGINE") != "1":
        remedy = f"SGLANG_USE_CPU_ENGINE is not 1. Unset it. {_INSTALL_ENGINE}"
    yield Finding("device", "cpu", f"{os.cpu_count()} cores", remedy)


def examine_plugin(
    entries: Iterable[EntryPoint] | None = None, environ: Mapping[str, str] = os.environ
) -> Iterator[Finding]:
    """Load the plugin as SGLang would, and look at what is there afterwards."""
    if entries is None:
        entries = entry_points(group=ENTRY_GROUP)
    ours = [entry for entry in entries if entry.name == ENTRY_NAME]
    if not ours:
        yield Finding("plugin", "entry point", f"none named {ENTRY_NAME} in {ENTRY_GROUP}", _INSTALL_PLUGIN)
        return
    yield Finding("plugin", "entry point", ours[0].value)
    allowed = environ.get("SGLANG_PLUGINS", "")
    names = {name.strip() for name in allowed.split(",")} - {""}
    if names and ENTRY_NAME not in names:
        yield Finding(
            "plugin", "SGLANG_PLUGINS", allowed, f"SGLang loads these plugins only. Add {ENTRY_NAME} or unset it."
        )
    try:
        ours[0].load()()
    except Exception as error:
        yield Finding("plugin", "loading", _cause(error), _remedy_for(error))
        return
    yield Finding("plugin", "loading", "loaded")
    yield from _examine_registrations()


def _examine_registrations() -> Iterator[Finding]:
    from sglang.srt.layers.attention.attention_registry import ATTENTION_BACKENDS
    from sglang.srt.plugins.hook_registry import HookRegistry
    from sglang.srt.speculative.spec_registry import get_spec

    HookRegistry.apply_hooks()
    targets = [f"sglang.srt.server_args.ServerArgs.{name}" for name in ("add_cli_args", "from_cli_args")]
    missing = [target for target in targets if target not in HookRegistry._patched]
    yield Finding(
        "plugin",
        "flags",
        f"SGLang could not hook {', '.join(missing)}" if missing else "--lvspec-*",
        _INSTALL_SGLANG if missing else None,
    )
    algorithm = get_spec(ALGORITHM)
    yield Finding(
        "plugin",
        "algorithm",
        "not registered" if algorithm is None else f"{ALGORITHM} is {type(algorithm).__name__}",
        _INSTALL_PLUGIN if algorithm is None else None,
    )
    has_backend = CPU_BACKEND in ATTENTION_BACKENDS
    yield Finding(
        "plugin",
        "attention",
        f"{CPU_BACKEND} on CPU, SGLang's own on a GPU" if has_backend else f"no {CPU_BACKEND}",
        None if has_backend else _INSTALL_PLUGIN,
    )


def examine_seams(
    seams: Sequence[Seam] = SEAMS, find_tree: Callable[[], SourceTree] = SourceTree.installed
) -> Iterator[Finding]:
    """Compare what we rely on with the installed sources."""
    try:
        tree = find_tree()
    except ModuleNotFoundError as error:
        yield Finding("seams", "sources", str(error), _INSTALL_SGLANG)
        return
    broken = find_broken(seams, tree)
    yield Finding("seams", "hold", f"{len(seams) - len(broken)} of {len(seams)}")
    for number, message in enumerate(broken[:MAX_BROKEN_SHOWN], 1):
        remedy = _INSTALL_SGLANG if number == 1 else "the same"
        yield Finding("seams", "broken", message, remedy)
    if len(broken) > MAX_BROKEN_SHOWN:
        yield Finding("seams", "broken", f"and {len(broken) - MAX_BROKEN_SHOWN} more", "the same")


def examine_flashinfer(find_tree: Callable[[str], SourceTree] = SourceTree.installed) -> Iterator[Finding]:
    """Compare what relevance relies on with FlashInfer's sources, where they are: only GPUs need them."""
    try:
        broken = find_broken(FLASHINFER_SEAMS, find_tree("flashinfer"))
    except ModuleNotFoundError:
        yield Finding("seams", "flashinfer", "not checkable without flashinfer")
        return
    remedy = "Serve with --lvspec-mass keys." if broken else None
    held = f"{len(FLASHINFER_SEAMS) - len(broken)} of {len(FLASHINFER_SEAMS)} hold"
    yield Finding("seams", "flashinfer", "; ".join([held, *broken]), remedy)


def examine_models(paths: ModelPaths) -> Iterator[Finding]:
    """Whether the named models can be served as a pair."""
    if not (paths.target or paths.draft or paths.calibration):
        return
    facts: dict[str, ModelFacts] = {}
    for role, flag, path in (
        ("target", "--model-path", paths.target),
        ("draft", "--speculative-draft-model-path", paths.draft),
    ):
        if path is None:
            yield Finding("models", role, "not named", f"Name both models to have them compared: {flag}.")
            continue
        try:
            facts[role] = read_facts(path, trust_remote_code=paths.trust_remote_code)
        except Exception as error:
            yield Finding("models", role, f"{path}: {_cause(error)}", f"Name a model folder or repository with {flag}.")
            continue
        yield Finding("models", role, _describe(facts[role]))
    if len(facts) == 2:
        yield from _examine_pair(facts["target"], facts["draft"], paths.trust_remote_code)
        yield from _examine_calibration(paths)


def _examine_pair(target: ModelFacts, draft: ModelFacts, trust_remote_code: bool) -> Iterator[Finding]:
    try:
        misfit = find_misfit(target, draft) or tokenizer_misfit(
            read_tokenizer(target.path, trust_remote_code), read_tokenizer(draft.path, trust_remote_code)
        )
    except Exception as error:
        yield Finding("models", "tokenizer", _cause(error), "Name models with a tokenizer that SGLang can read.")
        return
    if misfit is not None:
        yield Finding("models", "pair", *_found_and_remedy(misfit))
        return
    eyes = "" if draft.is_multimodal else "; the draft is text-only and sees no video"
    size = "" if draft.hidden_size <= target.hidden_size else "; the draft is wider than the target, expect no speed-up"
    yield Finding("models", "pair", f"fits: tested architectures, one vocabulary, one tokenizer{eyes}{size}")


def _examine_calibration(paths: ModelPaths) -> Iterator[Finding]:
    calibration = find_calibration(paths.calibration, str(paths.target))
    if calibration is None:
        return
    try:
        misfit = examine_calibration(Path(calibration), str(paths.target), str(paths.draft))
    except ValueError as error:
        misfit = str(error)
    if misfit is None:
        yield Finding("models", "calibration", f"{calibration}: of this pair")
    else:
        yield Finding("models", "calibration", *_found_and_remedy(misfit))


def _found_and_remedy(misfit: str) -> tuple[str, str]:
    """Every misfit ends with what to do, as its last sentence."""
    found, _, remedy = misfit.removesuffix(".").rpartition(". ")
    return f"{found}.", f"{remedy}."


def _describe(facts: ModelFacts) -> str:
    return f"{facts.path}: {facts.architecture}, {facts.hidden_size} wide, {facts.vocab_size} tokens"


def _version(distribution: str) -> str | None:
    try:
        return version(distribution)
    except PackageNotFoundError:
        return None


def _cause(error: BaseException) -> str:
    """The last line of a traceback, where it happened, and what began it when that is another error."""
    first: BaseException = error
    while (before := first.__cause__ or (None if first.__suppress_context__ else first.__context__)) is not None:
        first = before
    said = _last_line(error)
    if first is not error and (began := _last_line(first)) not in said:
        said += f" (began as {began})"
    frames = traceback.extract_tb(first.__traceback__)
    return f"{said}, at {_short(frames[-1].filename)}:{frames[-1].lineno}" if frames else said


def _last_line(error: BaseException) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return f"{type(error).__name__}: {lines[-1]}" if lines else type(error).__name__


def _short(filename: str) -> str:
    """A path from its package on: where the environment lies is of no interest."""
    parts = Path(filename).parts
    for anchor in ("site-packages", "sgl_lvspec"):
        if anchor in parts:
            return "/".join(parts[parts.index(anchor) + (anchor == "site-packages") :])
    return filename


def _remedy_for(error: BaseException) -> str:
    said = f"{_cause(error)} {error}"
    if "libcuda" in said or "sgl_kernel" in said or "vllm" in said:
        return f"Without a GPU: {_INSTALL_ENGINE} With one: {_INSTALL_SGLANG}"
    if isinstance(error, ModuleNotFoundError) and (error.name or "").partition(".")[0] in (
        "lvspec_kernels",
        "sgl_lvspec",
    ):
        return _INSTALL_PLUGIN
    return _INSTALL_SGLANG


@contextlib.contextmanager
def _silence() -> Iterator[None]:
    """Keep what SGLang and its packages say while they are imported off the one screen."""
    before = logging.root.manager.disable
    logging.disable(logging.CRITICAL)
    try:
        with warnings.catch_warnings(), Path(os.devnull).open("w") as sink, contextlib.redirect_stderr(sink):
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(before)
        sys.stderr.flush()
