"""Modes of SGLang that are refused by name, and that none is left unjudged (docs/modes.md)."""

from __future__ import annotations

import fnmatch
import re
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from sglang.srt.arg_groups.fields import device, disagg, exec_, lora, memory, mm, parallel, schedule, spec
from sglang.srt.server_args import ServerArgs

from sgl_lvspec.modes import MODES, Mode, refuse_unsupported
from sgl_lvspec.seams import SEAMS
from tests.sgl_lvspec.fresh_process import REFUSED, facts

DOCUMENT = Path(__file__).parents[2] / "docs" / "modes.md"
FLAG = re.compile(r"`(--[a-z0-9*-]+)")
# Groups of SGLang's settings that are modes of a server: each of their flags is judged in docs/modes.md. Others choose
# kernels, templates, ports and log lines.
JUDGED = (
    parallel.Parallel, disagg.Disagg, memory.Memory, schedule.Schedule, spec.Spec, lora.Lora, mm.Mm, device.Device,
    exec_.ExecFeatures, exec_.ExecGraph, exec_.ExecMoe, exec_.ExecOverlap, exec_.ExecOffload, exec_.ExecDllm,
    exec_.ExecDeterministic,
)  # fmt: skip


def _record(**changes: Any) -> Any:
    defaults = ServerArgs(model_path="target", device="cpu")
    return SimpleNamespace(**{mode.field: getattr(defaults, mode.field) for mode in MODES} | changes)


def _others(mode: Mode) -> list[Any]:
    """Values that a user could give and that are refused."""
    default = mode.allowed[0]
    if mode.field == "enable_lora" or isinstance(default, bool):
        return [True]
    if isinstance(default, int | float):
        return [2] if isinstance(default, int) else [0.9]
    by_name = {"device": ["xpu", "npu"], "mm_feature_transport": ["cuda_ipc", "cuda_vmm"], "lora_paths": [{"a": "b"}]}
    by_name |= {"disaggregation_mode": ["prefill", "decode"], "decoupled_spec_role": ["verifier"]}
    return by_name.get(mode.field, ["another"])


@pytest.mark.parametrize(
    ("mode", "found"), [(mode, found) for mode in MODES for found in _others(mode)], ids=lambda part: str(part)[:50]
)
def test_a_mode_is_refused_by_its_flag_and_with_its_reason(mode: Mode, found: object) -> None:
    with pytest.raises(ValueError) as refusal:  # noqa: PT011
        refuse_unsupported(_record(**{mode.field: found}))
    message = str(refusal.value)
    assert message.startswith(f"LVSPEC needs {mode.flag} at ")
    assert message.endswith(f" ({mode.reason}); found {found!r}. Drop the flag.")


@pytest.mark.parametrize("mode", MODES, ids=lambda mode: mode.field)
def test_what_is_allowed_starts(mode: Mode) -> None:
    for value in mode.allowed:
        refuse_unsupported(_record(**{mode.field: value}))


def test_sglangs_defaults_are_allowed() -> None:
    refuse_unsupported(_record())
    defaults = ServerArgs(model_path="target")
    assert {mode.field: getattr(defaults, mode.field) for mode in MODES if mode.field != "device"} == {
        mode.field: mode.allowed[0] for mode in MODES if mode.field != "device"
    }


def test_flags_are_spelled_as_sglang_spells_them_and_pinned() -> None:
    known = set(ServerArgs.__struct_fields__)
    pinned = {seam.target.rpartition(".")[2] for seam in SEAMS if "arg_groups.fields" in seam.target}
    for mode in MODES:
        assert mode.flag == "--" + mode.field.replace("_", "-")
        assert mode.field in known
        assert mode.field in pinned
    assert len({mode.field for mode in MODES}) == len(MODES)


def test_the_values_that_a_flag_may_have_are_named() -> None:
    with pytest.raises(
        ValueError, match=r"needs --device at 'cpu' or 'cuda' \(nobody has tried another\); found 'hpu'"
    ):
        refuse_unsupported(_record(device="hpu"))
    with pytest.raises(ValueError, match=r"needs --dllm-algorithm at None \("):
        refuse_unsupported(_record(dllm_algorithm="LowConfidence"))


@pytest.mark.parametrize("flag", REFUSED)
def test_a_real_command_line_is_refused(flag: str) -> None:
    """SGLang has resolved the flags when it calls us: --dp-size 2 --enable-dp-attention is --attn-dp-size 2 by then."""
    assert facts()["refused"][flag].startswith(f"LVSPEC needs {flag} at ")


def _sections() -> dict[str, set[str]]:
    """Flags of docs/modes.md by the heading that they stand under; `*` stands for any ending."""
    found: dict[str, set[str]] = {}
    for part in DOCUMENT.read_text().split("\n## ")[1:]:
        heading, _, text = part.partition("\n")
        found[heading] = set(FLAG.findall(text))
    return found


def _flags() -> Iterator[str]:
    for owner in JUDGED:
        yield from ("--" + name.replace("_", "-") for name in owner.__struct_fields__ if not name.startswith("_"))


def test_every_mode_of_sglang_is_judged_in_the_document() -> None:
    """A new release of SGLang brings new ones: this fails until somebody has thought about them."""
    patterns = set().union(*_sections().values())
    unjudged = [flag for flag in _flags() if not any(fnmatch.fnmatchcase(flag, pattern) for pattern in patterns)]
    assert not unjudged, f"say in docs/modes.md what LVSPEC does with {', '.join(unjudged)}"


def test_the_document_tells_what_is_refused_and_why() -> None:
    refused = DOCUMENT.read_text().partition("\n## Refused")[2].partition("\n## ")[0]
    for mode in MODES:
        assert f"`{mode.flag}`" in refused, mode.flag
        assert mode.reason in refused, f"{mode.flag}: {mode.reason}"
    others = set().union(*(flags for heading, flags in _sections().items() if not heading.startswith("Refused")))
    assert not {mode.flag for mode in MODES} & others - {"--device"}, "a mode is judged once"
