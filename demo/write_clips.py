"""Writes synthetic clips to a folder, for `lvspec calibrate`: `python -m demo.write_clips FOLDER --count 250`."""

from __future__ import annotations

import argparse
from pathlib import Path

from demo.heldout import SEED, held_out

CALIBRATION_SEED = 1002  # not the evaluations' seed, and beyond those that training counts through


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--count", type=int, default=250)
    parser.add_argument("--seed", type=int, default=CALIBRATION_SEED, help=f"not {SEED}, which evaluations draw from")
    options = parser.parse_args()
    options.folder.mkdir(parents=True, exist_ok=True)
    for number, clip in enumerate(held_out(options.count, options.seed)):
        (options.folder / f"{number:04d}.mp4").write_bytes(clip.mp4)
    print(f"{options.count} clips in {options.folder}")


if __name__ == "__main__":
    main()
