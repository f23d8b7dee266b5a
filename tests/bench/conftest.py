"""The demo pair, a calibration of our own making, and a few held-out clips."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from bench.fidelity.engine import Exam
from bench.fidelity.measure import Answering, clips_between
from demo.heldout import HeldOutClip
from sgl_lvspec.relevance.calibration import N_BINS, Calibration, HeadWeight, write_calibration
from sgl_lvspec.relevance.identity import identify

PAIR = Path(__file__).parents[2] / "demo/pair"


def _even(low: float, high: float) -> tuple[float, ...]:
    return tuple(torch.linspace(low, high, N_BINS + 1).tolist())


@pytest.fixture(scope="session")
def calibration(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A file that makes every scorer loosen something; its numbers mean nothing."""
    path = tmp_path_factory.mktemp("calibration") / "lvspec.json"
    write_calibration(
        Calibration(
            identify(str(PAIR / "target")),
            identify(str(PAIR / "draft")),
            heads=(HeadWeight(1, 0, 0.8, -0.1), HeadWeight(3, 2, 0.5)),
            bias=-0.2,
            priors={"attention": _even(0.0, 1.0), "similarity": _even(0.2, 0.9), "combined": _even(0.0, 4.0)},
            combined={"slope": 0.02},
        ),
        path,
    )
    return path


@pytest.fixture(scope="session")
def clips() -> list[HeldOutClip]:
    """Six held-out clips."""
    return clips_between(0, 6)


@pytest.fixture(scope="session")
def answering(calibration: Path) -> Answering:
    """Both models."""
    return Answering(PAIR, calibration)


@pytest.fixture
def exam(answering: Answering, clips: list[HeldOutClip]) -> Exam:
    """The describing question about every clip."""
    return answering.exam(clips, 0)
