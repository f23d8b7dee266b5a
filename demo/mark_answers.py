"""Marks answers about clips of `demo.write_clips` by their truth: `python -m demo.mark_answers --seed N < answers`.

Reads a JSON list of `{"number": of the clip, "question": its text, "text": the answer}` and writes a list of the same
length: `[facts right, facts]`, or null for a question that was not drawn with the clip. For clients that may not import
this package, such as the load test.
"""

from __future__ import annotations

import argparse
import json
import sys
from typing import Any

from demo.facts import score
from demo.heldout import draw
from demo.scene import MAIN_FRAMES


def mark(answer: dict[str, Any], seed: int, frames: int) -> tuple[int, int] | None:
    """Facts right and facts, without the mark for the whole answer."""
    scene, questions, _ = draw(answer["number"], seed, frames)
    question = next((asked for asked in questions if asked.text == answer["question"]), None)
    if question is None:
        return None
    cells = [
        cell
        for level in score(answer["text"], scene, question).values()
        for name, cell in level.items()
        if name != "all_right"
    ]
    return sum(right for right, _ in cells), sum(total for _, total in cells)


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seed", type=int, required=True, help="that the clips were written with")
    parser.add_argument("--frames", type=int, default=MAIN_FRAMES)
    options = parser.parse_args()
    json.dump([mark(answer, options.seed, options.frames) for answer in json.load(sys.stdin)], sys.stdout)


if __name__ == "__main__":
    main()
