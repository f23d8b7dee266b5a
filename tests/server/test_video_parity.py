"""The parity kit on the servers that users start, and that it refuses servers which are not in parity."""

from __future__ import annotations

import json
import subprocess
import sys
import unittest
from pathlib import Path

import pytest

from sgl_lvspec.testing.video_parity_kit import VideoParityKit
from tests.server.serving import ROOT, Server


@pytest.fixture(scope="class")
def attached(request: pytest.FixtureRequest, plain_server: Server, lvspec_server: Server, clips: Path) -> None:
    """Points the kit at this session's servers and sample clips."""
    case = request.cls
    case.base_url, case.reference_url = lvspec_server.url, plain_server.url
    case.videos = [str(path) for path in sorted(clips.glob("*.mp4"))]
    case.images = [str(path) for path in sorted(clips.glob("*.png"))]


@pytest.mark.usefixtures("attached")
class TestVideoParity(VideoParityKit, unittest.TestCase):
    acc_length_thres = 3.0  # K = 10 and the bonus token make 11 at most


class CommandLine:
    """The kit as a user runs it, on one clip and short answers."""

    def __init__(self, clip: Path) -> None:
        self.options = ["--video", str(clip), "--max-tokens", "24"]

    def __call__(self, *options: str) -> tuple[int, str]:
        """Exit status and output."""
        command = [sys.executable, "-m", "sgl_lvspec.testing.video_parity_kit", *options, *self.options]
        done = subprocess.run(command, cwd=ROOT, check=False, capture_output=True, text=True)
        return done.returncode, done.stdout + done.stderr


@pytest.fixture(scope="module")
def kit(clips: Path) -> CommandLine:
    return CommandLine(sorted(clips.glob("*.mp4"))[0])


@pytest.fixture(scope="module")
def captured(kit: CommandLine, plain_server: Server, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The answers without speculation, in a file."""
    path = tmp_path_factory.mktemp("reference") / "answers.json"
    status, output = kit("--reference-url", plain_server.url, "--save-reference", str(path))
    assert status == 0, output
    return path


def test_a_captured_reference_stands_for_its_server(kit: CommandLine, captured: Path, lvspec_server: Server) -> None:
    status, output = kit("--url", lvspec_server.url, "--reference", str(captured))
    assert status == 0, output
    assert "skipped 'no image was given'" in output
    assert "cached tokens, second question:" in output


def test_a_server_without_speculation_fails_the_acceptance_length_alone(
    kit: CommandLine, captured: Path, plain_server: Server
) -> None:
    status, output = kit("--url", plain_server.url, "--reference", str(captured))
    assert status == 1
    assert findings(output) == ["Tokens a verify round about the videos"], output


def test_a_server_that_loosens_is_not_in_parity(kit: CommandLine, captured: Path, loose_server: Server) -> None:
    """Of every way to ask about a video; what is left is counts of tokens and rounds."""
    status, output = kit("--url", loose_server.url, "--reference", str(captured))
    assert status == 1
    meets = (
        "Each video, chat",
        "A streamed chat about each video",
        "The same questions at once",
        "Video, image and both",
    )
    for name in meets:
        assert any(line.startswith(name) for line in findings(output)), output
    assert not any(line.startswith("Tokens a verify round") for line in findings(output)), output


def test_one_other_token_in_the_first_answer_is_found(
    kit: CommandLine, captured: Path, lvspec_server: Server, tmp_path: Path
) -> None:
    stored = json.loads(captured.read_text())
    entry = next(entry for entry in stored["scenarios"].values() if entry["name"] == "video 0")
    entry["answers"][0]["ids"][7] += 1
    perturbed = tmp_path / "perturbed.json"
    perturbed.write_text(json.dumps(stored))
    status, output = kit("--url", lvspec_server.url, "--reference", str(perturbed))
    assert status == 1
    # Every check that meets this answer finds it, and no other.
    meets = ("Each video, chat", "A streamed chat about each video", "The same questions at once, sharing")
    assert all(any(line.startswith(name) for line in findings(output)) for name in meets), output
    assert all(line.startswith(meets) for line in findings(output)), output
    assert "video 0, answer 1: token 7 of 24 is" in output


def findings(output: str) -> list[str]:
    """The checks that failed, by their description."""
    return [line.split(": ", 1)[1] for line in output.splitlines() if line.startswith(("FAIL: ", "ERROR: "))]
