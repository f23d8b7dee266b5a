"""What every test of this folder needs: a streamer without a server around it, and no metrics left behind."""

from __future__ import annotations

import pytest

from sgl_lvspec.sight.round_report import HostReport
from tests.sgl_lvspec.sight.answering import serve_without_a_server


@pytest.fixture(autouse=True)
def _no_server(monkeypatch: pytest.MonkeyPatch) -> None:
    serve_without_a_server(monkeypatch)
    monkeypatch.setattr(HostReport, "counters", None)
