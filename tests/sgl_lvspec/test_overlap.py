"""The overlap scheduler: on for CUDA unless the user says otherwise, off on a CPU, where speculation has none.

Real command lines, resolved by SGLang in a process of their own; resolving for CUDA needs no GPU.
"""

from __future__ import annotations

import pytest

from tests.sgl_lvspec.fresh_process import ON_CUDA, facts


@pytest.mark.parametrize("asked", ON_CUDA)
def test_on_cuda_it_is_on_unless_the_user_switches_it_off(asked: str) -> None:
    assert facts()["overlap off on cuda"][asked] is (asked == "--disable-overlap-schedule")


def test_on_a_cpu_it_is_off() -> None:
    assert facts()["resolved"]["disable_overlap_schedule"] is True


def test_the_scheduler_takes_a_worker_that_supports_it() -> None:
    """SGLang refuses an algorithm that does not say so, as long as the overlap scheduler is on."""
    assert facts()["workers"] == ["sgl_lvspec.worker.LVSpecWorker"] * 2
    assert facts()["supports overlap"] is True
