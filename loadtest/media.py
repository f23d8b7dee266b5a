"""Videos and images as the requests carry them: `data:` URLs, built once and before any load."""

from __future__ import annotations

import base64
import json
import mimetypes
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

SAMPLES = Path("demo/clips")
CLIP_SEED = 1005  # clips that neither calibration nor the evaluations draw
VIDEO_QUESTIONS = (
    "Describe the video in detail.",
    "What happens first?",
    "How many objects are there?",
    "What color is the background?",
    "List the objects briefly.",
)
IMAGE_QUESTIONS = ("Describe the image.", "How many objects are there?", "What color is the background?")


@dataclass(frozen=True)
class Medium:
    """A clip or a still.

    Attributes:
        kind: `video` or `image`.
        url: the whole file as a `data:` URL.
        questions: what can be asked about it, a description first.
        number: of a generated clip, by which its truth can be found; None for a file that was there.
    """

    name: str
    kind: str
    url: str
    questions: tuple[str, ...]
    number: int | None = None


@dataclass(frozen=True)
class Library:
    """All media of a run: a few that many users ask about, and fresh ones that nobody has seen."""

    popular: tuple[Medium, ...]
    images: tuple[Medium, ...]
    fresh: tuple[Medium, ...]


def data_url(path: Path) -> str:
    """The file as a `data:` URL."""
    mime = mimetypes.guess_type(path.name)[0] or "application/octet-stream"
    return f"data:{mime};base64,{base64.b64encode(path.read_bytes()).decode()}"


def samples(folder: Path = SAMPLES) -> tuple[list[Medium], list[Medium]]:
    """The clips and the stills in a folder, with the questions of its `clips.json` where it has one."""
    listed = folder / "clips.json"
    known = json.loads(listed.read_text()) if listed.is_file() else {}
    videos, images = [], []
    for path in sorted(folder.glob("*.mp4")):
        asked = tuple(question["ask"] for question in known.get(path.name, {}).get("questions", ()))
        videos.append(Medium(path.name, "video", data_url(path), asked or VIDEO_QUESTIONS))
    for path in sorted(folder.glob("*.png")):
        asked = tuple(question["ask"] for question in known.get(path.name, {}).get("questions", ()))
        images.append(Medium(path.name, "image", data_url(path), asked or IMAGE_QUESTIONS))
    if not videos:
        raise ValueError(f"a load test needs at least one .mp4 file in {folder}; found none. Name another folder.")
    return videos, images


def generate(folder: Path, count: int, seed: int = CLIP_SEED) -> list[Medium]:
    """Make `count` clips in another process (it needs torch, which has no place in a client) and read them.

    A folder that holds them already is taken as it is.
    """
    made = folder / "questions.json"
    if not made.is_file() or len(json.loads(made.read_text())) < count:
        command = [sys.executable, "-m", "demo.write_clips", str(folder), "--count", str(count)]
        result = subprocess.run(
            [*command, "--seed", str(seed), "--questions"], capture_output=True, text=True, check=False
        )
        if result.returncode:
            raise ValueError(
                f"a load test needs clips from {' '.join(command[1:])}; found status {result.returncode}:\n"
                f"{result.stderr.strip()[-800:]}\nRun it in the environment of `make setup`."
            )
    asked = json.loads(made.read_text())
    return [
        Medium(name, "video", data_url(folder / name), tuple(questions), number)
        for number, (name, questions) in enumerate(sorted(asked.items())[:count])
    ]
