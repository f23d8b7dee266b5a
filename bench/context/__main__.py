"""Measures what the draft's context policies cost and save: `python -m bench.context --out build/context.json`.

One server without speculation stays up; beside it, one LVSPEC server a configuration answers the same questions. Writes
the JSON file after each configuration, and beside it the same as Markdown (.md) and as a plot (.svg).
"""

from __future__ import annotations

import argparse
import signal
import sys
import tempfile
import time
from pathlib import Path
from types import FrameType
from typing import Any

from bench.context import report
from bench.context.client import Endpoint
from bench.context.figures import RESAMPLES, figures, row
from bench.context.measure import FIRST, LIMIT, SECOND, Material, Prompts, Trial, trials, warm_up
from bench.context.plan import FRAMES, KEEPS, Configuration, clips_of, configurations, flags_for, stand_ins
from bench.context.servers import ENVIRONMENT, KEEP_MIN, PRESET, Setup, served
from bench.provenance import digest, made_by
from demo.heldout import SEED
from sgl_lvspec.config import CONTEXTS

Found = dict[tuple[Configuration, int], dict[str, Any]]  # figures by configuration and frames of its clips


def parse() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(prog="python -m bench.context", description=__doc__)
    parser.add_argument("--out", type=Path, default=Path("build/context.json"))
    parser.add_argument("--clips", type=int, default=8, help="held-out clips of each kind")
    parser.add_argument("--frames", type=int, nargs="+", choices=FRAMES, default=[12, 64, 128], help="kinds of clips")
    parser.add_argument("--policies", nargs="+", choices=CONTEXTS, default=list(CONTEXTS))
    parser.add_argument("--keeps", type=float, nargs="+", default=list(KEEPS), help="shares of a video's tokens")
    parser.add_argument("--pair", type=Path, default=Path("demo/pair"))
    parser.add_argument("--dtype", help="of all servers (default: float32 on CPU, bfloat16 on CUDA)")
    parser.add_argument("more", nargs="*", metavar="-- FLAGS", help="more flags of sglang.launch_server, for all")
    args = parser.parse_args()
    if args.clips < 1 or not all(0 < keep <= 1 for keep in args.keeps):
        parser.error("--clips must be 1 or more, and each of --keeps above 0 and at most 1")
    for name in ("frames", "policies", "keeps"):
        setattr(args, name, list(dict.fromkeys(getattr(args, name))))
    if not configurations(args.policies, args.keeps):
        parser.error("--policies and --keeps must leave something to measure")
    return args


def main() -> None:
    """Measure and write."""
    args = parse()
    signal.signal(signal.SIGTERM, _stop)
    begin, about = time.monotonic(), made_by("bench.context")
    setup = Setup(args.pair, args.dtype, (*flags_for(args.frames), *args.more))
    planned = configurations(args.policies, args.keeps)
    prompts = Prompts(args.pair / "target")
    kinds = {frames: [prompts.about(clip) for clip in clips_of(frames, args.clips)] for frames in args.frames}
    settings = settings_of(args, setup)
    found: Found = {}

    def tell() -> dict[str, Any]:
        settings["seconds"] = round(time.monotonic() - begin)
        settings["complete"] = len(found) == len(planned) * len(kinds)
        rows = [
            row(shown, measured, frames, found[measured, frames])
            for frames in kinds
            for shown, measured in stand_ins(args.policies, args.keeps)
            if (measured, frames) in found
        ]
        return report.document(about, settings, rows)

    with tempfile.TemporaryDirectory(prefix="bench-context-") as folder:
        logs = Path(folder)
        _say(f"0/{len(planned)} starting the server without speculation")
        with served(setup, None, logs / "plain.log") as url:
            plain = Endpoint(url)
            for materials in kinds.values():
                warm_up(plain, materials[-1], is_plain=True)
            for number, configuration in enumerate(planned, 1):
                _say(f"{number}/{len(planned)} {configuration}: starting", end="")
                started = time.monotonic()
                with served(setup, configuration, logs / f"{number}.log") as url:
                    boot_s, ours = time.monotonic() - started, Endpoint(url)
                    for frames, materials in kinds.items():
                        done = trials(plain, ours, materials, number)
                        settings["K"] = steps_of(done)
                        found[configuration, frames] = figures(done)
                asking_s = time.monotonic() - started - boot_s
                _say(f" took {boot_s:.0f} s, asking {asking_s:.0f} s; T strict {_shown(found, configuration, kinds)}")
                report.write(tell(), args.out)
    report.plot(tell(), args.out.with_suffix(".svg"))
    print(report.markdown(tell()))


def settings_of(args: argparse.Namespace, setup: Setup) -> dict[str, Any]:
    """Every setting of a run."""
    target = args.pair / "target"
    calibration = target / "lvspec.json"
    return {
        "clips": args.clips,
        "clip_seed": SEED,
        "frames": args.frames,
        "policies": args.policies,
        "keeps": args.keeps,
        "keep_min": KEEP_MIN,
        "preset": PRESET,
        "pair": str(args.pair),
        "weights_sha256": {role: digest(args.pair / role / "model.safetensors") for role in ("target", "draft")},
        "calibration_sha256": digest(calibration) if calibration.is_file() else None,
        "questions": [FIRST, SECOND],
        "limit": LIMIT,
        "resamples": RESAMPLES,
        "K": None,
        "command_without_speculation": setup.command(None, 0)[1:],
        "command": setup.command(configurations(args.policies, args.keeps)[-1], 0)[1:],
        "environment": {**ENVIRONMENT, "OMP_NUM_THREADS": setup.environment().get("OMP_NUM_THREADS")},
    }


def steps_of(done: list[Trial]) -> int | None:
    """K: drafted tokens a round."""
    rounds = sum(trial.first_counts["rounds_total"] for trial in done)
    return round(sum(trial.first_counts["drafted_tokens_total"] for trial in done) / rounds) if rounds else None


def _shown(found: Found, configuration: Configuration, kinds: dict[int, list[Material]]) -> str:
    return ", ".join(f"{found[configuration, frames]['T_strict']} at {frames} frames" for frames in kinds)


def _say(text: str, end: str = "\n") -> None:
    print(text, end=end, file=sys.stderr, flush=True)


def _stop(_number: int, _frame: FrameType | None) -> None:
    """SIGTERM: leave by way of every `finally`, which ends the servers."""
    raise SystemExit(143)


if __name__ == "__main__":
    main()
