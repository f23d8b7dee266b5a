"""`lvspec calibrate` from the command line to a file that a server takes: the demo pair, a few clips, one broken."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from demo.heldout import held_out
from sgl_lvspec.relevance.calibration import examine_calibration, read_calibration
from tests.server.serving import COMMON_ARGS, ROOT, Pair

SEED = 31  # of no evaluation
CLIPS = 10


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("calibrate")
    for number, clip in enumerate(held_out(CLIPS, SEED)):
        (folder / f"{number}.mp4").write_bytes(clip.mp4)
    (folder / "broken.mp4").write_bytes(b"no film")
    return folder


@pytest.fixture(scope="module")
def finished(pair: Pair, folder: Path) -> subprocess.CompletedProcess[str]:
    flags = [word for word in COMMON_ARGS if word not in ("--host", "127.0.0.1")]
    words = [
        "--model-path", pair.target, "--speculative-draft-model-path", pair.draft, "--clips", folder, "--tokens", "64",
        "--out", folder / "own.json", "--heads", "3", "--slope", "0.03", "--", *flags,
    ]  # fmt: skip
    environment = {**os.environ, "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    return subprocess.run(
        [sys.executable, "-m", "sgl_lvspec.cli", "calibrate", *map(str, words)],
        cwd=folder, env=environment, capture_output=True, text=True, timeout=600, check=False,
    )  # fmt: skip


def test_it_says_what_it_found_and_what_it_left_out(finished: subprocess.CompletedProcess[str], folder: Path) -> None:
    assert finished.returncode == 0, finished.stderr[-3000:]
    assert f"measured   {CLIPS} clips, {2 * CLIPS} answers" in finished.stdout
    assert f"written    {folder / 'own.json'}" in finished.stdout
    assert "left out   broken.mp4: " in finished.stderr
    assert "Traceback" not in finished.stderr


def test_the_file_is_of_this_pair_and_names_heads_that_tell(
    finished: subprocess.CompletedProcess[str], pair: Pair, folder: Path
) -> None:
    assert finished.returncode == 0
    assert examine_calibration(folder / "own.json", str(pair.target), str(pair.draft)) is None
    found = read_calibration(folder / "own.json")
    assert 1 <= len(found.heads) <= 3
    assert found.combined == {"slope": 0.03}
    assert {*found.priors} == {"attention", "similarity", "combined"}
    assert found.statistics["mismatches"] >= 50
    # Chance is 0.5. A probe out of step with its tokens comes to it; in step, even so few clips give 0.9.
    assert found.statistics["auc"] > 0.75
