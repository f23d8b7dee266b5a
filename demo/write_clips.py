"""Writes synthetic clips to a folder: `python -m demo.write_clips FOLDER --count 250`, for `lvspec calibrate`.

`--frames 64` or `--frames 128` writes long ones, for a server with the flags that it prints. `--questions` writes
`questions.json` beside them: what can be asked about each clip; `python -m demo.mark_answers` knows the answers.
"""

from __future__ import annotations

import argparse
import json
import shlex
from collections.abc import Iterable
from pathlib import Path

from demo.heldout import SEED, HeldOutClip, held_out
from demo.long_clip import SERVER_FLAGS, TILES, long_clips
from demo.scene import MAIN_FRAMES

CALIBRATION_SEED = 1002  # not the evaluations' seed, and beyond those that training counts through


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--count", type=int, default=250)
    parser.add_argument("--seed", type=int, default=CALIBRATION_SEED, help=f"not {SEED}, which evaluations draw from")
    parser.add_argument("--frames", type=int, default=MAIN_FRAMES, choices=(MAIN_FRAMES, *TILES))
    parser.add_argument("--questions", action="store_true", help="write questions.json, too")
    options = parser.parse_args()
    options.folder.mkdir(parents=True, exist_ok=True)
    clips: Iterable[HeldOutClip]
    if options.frames in TILES:
        clips = long_clips(options.count, options.frames, options.seed)
    else:
        clips = held_out(options.count, options.seed)
    questions: dict[str, list[str]] = {}
    for number, clip in enumerate(clips):
        name = f"{number:04d}.mp4"
        (options.folder / name).write_bytes(clip.mp4)
        questions[name] = [question.text for question in clip.questions]
    if options.questions:
        (options.folder / "questions.json").write_text(json.dumps(questions, indent=1) + "\n")
    print(f"{options.count} clips in {options.folder}")
    if options.frames in TILES:
        print(f"serve them with {shlex.join(SERVER_FLAGS)}")


if __name__ == "__main__":
    main()
