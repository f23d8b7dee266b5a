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


def _train(folder: Path, crash_at: int | None = None) -> dict[str, torch.Tensor]:
    folder.mkdir(exist_ok=True)
    for name in TOKENIZER_FILES:  # learning the tokenizer takes longer than these runs
        shutil.copy(PAIR / "draft" / name, folder / name)
    trainer = Trainer("draft", TINY, folder, "cpu")
    update = trainer._update

    def counted(*args: object) -> None:
        if trainer.stage == "language" and trainer.step == crash_at:
            raise SimulatedCrashError
        update(*args)  # type: ignore[arg-type]

    trainer._update = counted  # type: ignore[method-assign]
    trainer.run(save_every=4)
    return trainer.model.state_dict()


def test_resumed_run_ends_where_an_unbroken_one_ends(tmp_path: Path) -> None:
    torch.set_num_threads(1)
    whole = _train(tmp_path / "whole")
    with pytest.raises(SimulatedCrashError):
        _train(tmp_path / "broken", crash_at=6)
    resumed = _train(tmp_path / "broken")
    assert all(torch.equal(whole[name], resumed[name]) for name in whole)


def test_rate_warms_up_and_then_falls() -> None:
    rates = [rate_at(i / 100) for i in range(101)]
    assert rates[0] < 0.1
    assert max(rates) <= 1.01
    assert rates.index(max(rates)) <= 5
    assert rates[-1] < 0.05
    assert all(a >= b for a, b in pairwise(rates[6:]))


def test_checkpoint_interval_that_splits_a_group_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="multiple of 4"):
        Trainer("draft", TINY, tmp_path, "cpu").run(save_every=5)
