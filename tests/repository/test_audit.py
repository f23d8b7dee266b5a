"""`make audit`: a finding is told, a judged one counted, and what nobody could look up is no good news."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from tools import audit

CLEAN = {"name": "a", "version": "1", "vulns": []}
BAD = {"name": "b", "version": "2", "vulns": [{"id": "PYSEC-1", "aliases": ["CVE-1"], "fix_versions": ["3"]}]}
UNKNOWN = {"name": "c", "skip_reason": "Dependency not found on PyPI and could not be audited: c (1)"}


def run(monkeypatch: pytest.MonkeyPatch, *packages: dict[str, Any], judged: str = "") -> int:
    monkeypatch.setattr(audit, "audited", lambda _device, _service: {"dependencies": packages})
    monkeypatch.setattr(audit, "JUDGED", {judged: "why"} if judged else {})
    return audit.main(["--device", "cpu"])


@pytest.mark.parametrize(
    ("packages", "judged", "status", "said"),
    [
        ([CLEAN], "", 0, "cpu: 1 packages looked up, 0 findings, 0 judged"),
        ([CLEAN, BAD], "", 1, "b 2: PYSEC-1 (repaired in 3)"),
        ([CLEAN, BAD], "PYSEC-1", 0, "0 findings, 1 judged"),
        ([BAD], "CVE-1", 0, "0 findings, 1 judged"),
        ([BAD], "CVE-2", 1, "1 findings"),
        ([CLEAN, UNKNOWN], "", 2, "none for 1: c"),
        ([BAD, UNKNOWN], "", 1, "none for 1: c"),
    ],
)
def test_outcomes(
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    packages: list[dict[str, Any]],
    judged: str,
    status: int,
    said: str,
) -> None:
    assert run(monkeypatch, *packages, judged=judged) == status
    assert said in "".join(capsys.readouterr())


def test_no_network_is_said_and_not_taken_for_no_finding(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def unreachable(_device: str, _service: str) -> dict[str, Any]:
        raise RuntimeError("required  an answer")

    monkeypatch.setattr(audit, "audited", unreachable)
    assert audit.main([]) == 2
    assert "nothing was looked up\nrequired  an answer" in capsys.readouterr().err


@pytest.mark.parametrize("device", audit.FILES)
def test_every_pin_is_looked_up(device: str) -> None:
    listed = audit.pins(device).splitlines()
    assert f"sglang=={audit.pins(device).partition('sglang==')[2].splitlines()[0]}" in listed
    assert len(listed) == len(set(listed)) > 50
    assert not any("#" in line for line in listed)


LIST = {"$meta": {"timestamp": 1775023247}, "Torch": ["<2", ">=2.13,<2.13.1"], "sglang": ["<0.5.10"], "absent": ["<9"]}


def test_a_list_on_this_machine_takes_the_place_of_a_service(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Names in any spelling, versions with a local part, one finding for each entry that holds the version."""
    path = tmp_path / "insecure.json"
    path.write_text(json.dumps(LIST))
    monkeypatch.setattr(audit, "pins", lambda _device: "sglang==0.5.23\ntorch==2.13.0+cpu\nzict==1.0\n")
    assert audit.main(["--device", "cpu", "--list", str(path)]) == 1
    said = capsys.readouterr().out
    assert "insecure.json of 2026-04-01: 3 packages; later findings are not in it" in said
    assert "cpu: 3 packages looked up, 1 findings, 0 judged" in said
    assert "torch 2.13.0+cpu: torch>=2.13,<2.13.1 (repaired in no version that is told)" in said
    monkeypatch.setattr(audit, "JUDGED", {"torch>=2.13,<2.13.1": "why"})
    assert audit.main(["--device", "cpu", "--list", str(path)]) == 0


@pytest.mark.parametrize("content", [None, "[]", "{", '{"torch": ["<2"]}'])
def test_what_is_no_list_is_not_taken_for_no_finding(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], content: str | None
) -> None:
    path = tmp_path / "insecure.json"
    if content is not None:
        path.write_text(content)
    assert audit.main(["--list", str(path)]) == 2
    assert "nothing was looked up\nrequired  insecure.json of Safety DB" in capsys.readouterr().err
