"""`make audit`: a finding is told, a judged one counted, and what nobody could look up is no good news."""

from __future__ import annotations

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
