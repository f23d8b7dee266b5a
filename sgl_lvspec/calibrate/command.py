"""`lvspec calibrate`: measure a pair of models on a folder of clips and write what the server reads.

clips, questions ─► session (the pair, strict, probing) ─► measure ─► outcome ─► TARGET/lvspec.json
"""

from __future__ import annotations

import argparse
import dataclasses
import os
import sys
from datetime import UTC, datetime
from pathlib import Path

from sgl_lvspec import SGLANG_TESTED, __version__

DEFAULT_HEADS, DEFAULT_TOKENS = 16, 128
# What one asks about a video; the first is put to every clip, and one of the others in turn.
QUESTIONS = (
    "Describe the video in detail.",
    "What happens in this clip?",
    "How many objects are there?",
    "What happens first?",
    "Summarize the clip.",
    "What color is the background?",
)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the command's own arguments; what follows `--` goes to SGLang."""
    parser.add_argument("--model-path", required=True, metavar="TARGET", help="the target, as for the server")
    parser.add_argument(
        "--speculative-draft-model-path", "--speculative-draft-model", dest="draft", required=True, metavar="DRAFT",
        help="the draft, as for the server",
    )  # fmt: skip
    parser.add_argument("--clips", required=True, type=Path, metavar="FOLDER", help="mp4 files, 100 or more")
    parser.add_argument("--limit", type=int, metavar="N", help="take the first N clips by name")
    parser.add_argument(
        "--questions", type=Path, metavar="FILE",
        help="a question a line: the first is put to every clip, and one of the others in turn",
    )  # fmt: skip
    parser.add_argument(
        "--tokens",
        type=int,
        default=DEFAULT_TOKENS,
        metavar="N",
        help=f"length of an answer, at most (default {DEFAULT_TOKENS})",
    )
    parser.add_argument(
        "--heads", type=int, default=DEFAULT_HEADS, metavar="N",
        help=f"attention heads that the server will read, at most (default {DEFAULT_HEADS})",
    )  # fmt: skip
    parser.add_argument(
        "--slope", type=float, metavar="CARE", help="combined scorer: care for every squared nat that a token gives up"
    )
    parser.add_argument(
        "--out", type=Path, metavar="FILE", help="default: lvspec.json in the target's folder, where the server looks"
    )
    parser.add_argument(
        "server_flags", nargs="*", metavar="-- FLAGS", help="flags of sglang.launch_server, for example --device cpu"
    )


def run(options: argparse.Namespace) -> int:
    """Calibrate and return the exit code; what a user can mend is told in one line."""
    try:
        _calibrate(options)
    except ValueError as error:
        print(f"lvspec calibrate: {error}", file=sys.stderr)
        return 1
    return 0


def _calibrate(options: argparse.Namespace) -> None:
    from sgl_lvspec.relevance.care import DEFAULT_SLOPE
    from sgl_lvspec.relevance.identity import identify

    for flag in ("limit", "tokens", "heads"):
        _require_positive(flag, getattr(options, flag))
    slope = DEFAULT_SLOPE if options.slope is None else options.slope
    if not 0 <= slope < float("inf"):
        raise ValueError(f"--slope must be a number of 0 or more; found {slope}. Correct it or drop it.")
    out = find_place(options.out, options.model_path)
    clips = find_clips(options.clips, options.limit)
    questions = QUESTIONS if options.questions is None else read_questions(options.questions)
    target, draft = identify(options.model_path), identify(options.draft)

    from sgl_lvspec.calibrate.measure import measure
    from sgl_lvspec.calibrate.outcome import calibrate, render
    from sgl_lvspec.calibrate.session import Session, read_server_args
    from sgl_lvspec.relevance.calibration import write_calibration

    server_args = read_server_args(options.model_path, options.draft, options.server_flags)
    print(f"starting the pair for {len(clips)} clips", flush=True)
    with Session(server_args) as session:
        measured = measure(session, clips, questions, options.tokens)
    for line in measured.unreadable:
        print(f"left out   {line}", file=sys.stderr)
    if measured.num_dropped:
        print(f"left out   {measured.num_dropped} answers whose text has other token ids", file=sys.stderr)
    calibration, quality = calibrate(measured, target, draft, options.heads, slope)
    made = {
        "date": datetime.now(UTC).strftime("%Y-%m-%d"),
        "sgl_lvspec": __version__,
        "sglang": SGLANG_TESTED,
        "max_tokens": options.tokens,
    }
    write_calibration(dataclasses.replace(calibration, statistics={**calibration.statistics, **made}), out)
    print(render(calibration, quality))
    print(f"written    {out}")


def find_place(named: Path | None, target: str) -> Path:
    """Where the file goes.

    Raises:
        ValueError: nothing can be written there; better now than after measuring.
    """
    from sgl_lvspec.relevance.calibration import FILE_NAME

    folder = Path(target) if named is None else named.parent
    if not folder.is_dir() or not os.access(folder, os.W_OK):
        raise ValueError(
            f"The file needs a folder that can be written to; found {folder}, which is "
            f"{'read-only' if folder.is_dir() else 'no folder here'}. Name another file with --out."
        )
    return folder / FILE_NAME if named is None else named


def find_clips(folder: Path, limit: int | None) -> list[Path]:
    """Its mp4 files by name.

    Raises:
        ValueError: there are fewer than a calibration needs.
    """
    from sgl_lvspec.calibrate.outcome import LEAST_CLIPS

    found = sorted(path for path in folder.glob("*") if path.suffix.lower() == ".mp4") if folder.is_dir() else []
    clips = found[:limit]
    if len(clips) < LEAST_CLIPS:
        raise ValueError(
            f"--clips needs a folder of {LEAST_CLIPS} mp4 files at least, better a hundred; found {len(clips)} in "
            f"{folder}{'' if folder.is_dir() else ', which is no folder'}. Name another folder, or a higher --limit."
        )
    return [clip.resolve() for clip in clips]


def read_questions(file: Path) -> list[str]:
    """The lines of a text file that hold anything.

    Raises:
        ValueError: none.
    """
    try:
        lines = [line.strip() for line in file.read_text(encoding="utf-8").splitlines()]
    except (OSError, UnicodeDecodeError) as error:
        raise ValueError(f"--questions must name a text file; found {file}: {error}. Correct the path.") from error
    questions = [line for line in lines if line]
    if not questions:
        raise ValueError(f"--questions needs one question a line; found none in {file}. Write some, or drop the flag.")
    return questions


def _require_positive(flag: str, value: int | None) -> None:
    if value is not None and value < 1:
        raise ValueError(f"--{flag} must be 1 or more; found {value}. Correct it or drop it.")
