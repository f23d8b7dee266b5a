"""A broken run, resumed, ends where an unbroken one ends; and the schedule does what the recipe says."""

from __future__ import annotations

import shutil
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import pytest
import torch

from demo.train import RECIPES, TOKENIZER_FILES, Trainer, rate_at

TINY = replace(RECIPES["draft"], vision_steps=4, language_steps=8, terse_steps=4, vision_clips=2, language_clips=2)


PAIR = Path(__file__).parents[2] / "demo/pair"


@pytest.fixture(autouse=True)
def _library_left_as_it_is(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("demo.model.use_fused_norm", lambda: None)  # it would last beyond these tests


class SimulatedCrashError(Exception):
    """Stands for a crash."""


def _trainer(folder: Path) -> Trainer:
    folder.mkdir(exist_ok=True)
    for name in TOKENIZER_FILES:  # learning the tokenizer takes longer than these runs
        shutil.copy(PAIR / "draft" / name, folder / name)
    return Trainer("draft", TINY, folder, "cpu")


def _distance(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> float:
    return sum(float((a[name] - b[name]).square().sum()) for name in a) ** 0.5


def _train(folder: Path, crash_at: int | None = None) -> dict[str, torch.Tensor]:
    trainer = _trainer(folder)
    update = trainer._update

    def counted(*args: object) -> None:
        if trainer.stage == "language" and trainer.step == crash_at:
            raise SimulatedCrashError
        update(*args)  # type: ignore[arg-type]

    trainer._update = counted  # type: ignore[method-assign]
    trainer.run(save_every=4)
    return trainer.model.state_dict()


def test_resumed_run_ends_where_an_unbroken_one_ends(tmp_path: Path) -> None:
    start = {name: value.clone() for name, value in _trainer(tmp_path / "start").model.state_dict().items()}
    whole = _train(tmp_path / "whole")
    with pytest.raises(SimulatedCrashError):
        _train(tmp_path / "broken", crash_at=6)
    resumed = _train(tmp_path / "broken")
    # Not bit for bit: sums depend on how memory happens to be aligned, and Adam blows up the noise of gradients that
    # are zero by construction (key biases). A wrong batch, rate or optimizer state moves the weights far more.
    assert _distance(whole, resumed) < 0.1 * _distance(whole, start)


def test_rate_warms_up_and_then_falls() -> None:
    rates = [rate_at(i / 100) for i in range(101)]
    assert rates[0] < 0.1
    assert max(rates) <= 1.01
    assert rates.index(max(rates)) <= 5
    assert rates[-1] < 0.05
    assert all(a >= b for a, b in pairwise(rates[6:]))


def test_checkpoint_interval_that_splits_a_group_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="multiple of 4"):
        _trainer(tmp_path / "any").run(save_every=5)
