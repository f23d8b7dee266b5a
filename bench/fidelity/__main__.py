"""Measures how faithful loose verification is: `python -m bench.fidelity --clips 60 --out build/fidelity.json`.

Writes the JSON file and, beside it, the same as Markdown (.md) and as a plot (.svg). With --url, a running server
answers the describing questions as well.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import time
from pathlib import Path

from tqdm import tqdm

from bench.fidelity import report
from bench.fidelity.arms import NONE, main_question
from bench.fidelity.engine import LIMIT, K
from bench.fidelity.measure import BATCH, TUNING_CLIPS, TUNING_SEED, Answering, clips_between, run, tasks_of, tune
from bench.fidelity.served import served_rows
from bench.fidelity.statistics import RESAMPLES
from bench.provenance import digest, made_by
from demo.heldout import SEED
from sgl_lvspec.config import DEFAULT_SCORER, SCORERS
from sgl_lvspec.presets import PRESETS


def parse() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(prog="python -m bench.fidelity", description=__doc__)
    parser.add_argument("--clips", type=int, default=60, help="held-out clips, each with a describing question")
    parser.add_argument(
        "--others", type=int, help="clips that are also asked shortly and for JSON (a third, at most 300)"
    )
    parser.add_argument("--clip-seed", type=int, default=SEED, help="of the clips; another one to choose settings on")
    parser.add_argument("--out", type=Path, default=Path("build/fidelity.json"))
    parser.add_argument("--pair", type=Path, default=Path("demo/pair"))
    parser.add_argument("--calibration", type=Path, help="default: lvspec.json in the target's folder")
    parser.add_argument("--scorer", choices=SCORERS, default=DEFAULT_SCORER, help="of the presets")
    parser.add_argument(
        "--stop", type=float, default=0.0, help="--lvspec-draft-stop of the server's rules (0: whole chains)"
    )
    parser.add_argument("--seed", type=int, default=0, help="of random relaxation")
    parser.add_argument("--workers", type=int, default=os.cpu_count() or 1, help="processes")
    parser.add_argument("--url", help="also ask this LVSPEC server, with every preset")
    parser.add_argument("--arms", default=".", help="pattern of the arms to run; no speculation and the presets always")
    parser.add_argument("--threads", type=int, default=1, help="of torch in each process")
    args = parser.parse_args()
    if args.clips < 2 or args.workers < 1:
        parser.error("--clips must be 2 or more and --workers 1 or more")
    args.calibration = args.calibration or args.pair / "target" / "lvspec.json"
    if not args.calibration.is_file():
        parser.error(f"a calibration file is required; found none at {args.calibration}. Run `lvspec calibrate`.")
    args.others = min(args.clips, 300, args.clips // 3) if args.others is None else min(args.others, args.clips)
    args.workers = min(args.workers, args.clips // 2)
    return args


def main() -> None:
    """Measure and write."""
    args = parse()
    args.out.parent.mkdir(parents=True, exist_ok=True)
    begin, about = time.monotonic(), made_by("bench.fidelity")
    answering = Answering(args.pair, args.calibration, args.threads)
    with tqdm(total=5, desc="tuning", unit="run", mininterval=1) as bar:
        tuned = tune(answering, args.scorer, args.seed, bar.update)
    always = {NONE, *PRESETS}
    every = main_question(args.scorer, tuned.thresholds, tuned.matched, args.seed)
    arms = [arm.with_stop(args.stop) for arm in every if arm.name in always or re.search(args.arms, arm.name)]
    tasks = tasks_of(args.clips, args.others, args.workers, arms, args.clip_seed)
    with tqdm(total=sum(map(len, (of for task in tasks for of in task.arms))), desc="arms", unit="run") as bar:
        results = run(args.pair, args.calibration, tasks, args.workers, args.threads, bar)
    served = None
    if args.url:
        own = [text for result in results for text in result.own]
        with tqdm(total=len(PRESETS) * args.clips, desc="asking the server", unit="answer") as bar:
            served = served_rows(args.url, clips_between(0, args.clips, args.clip_seed), own, bar.update)
    settings = {
        "clips": args.clips,
        "clips_of_other_questions": args.others,
        "clip_seed": args.clip_seed,
        "tuning_seed": TUNING_SEED,
        "tuning_clips": TUNING_CLIPS,
        "random_seed": args.seed,
        "pair": str(args.pair),
        "calibration": str(args.calibration),
        "calibration_sha256": digest(args.calibration),
        "weights_sha256": {role: digest(args.pair / role / "model.safetensors") for role in ("target", "draft")},
        "scorer": args.scorer,
        "stop": args.stop,
        "arms": args.arms,
        "url": args.url,
        "K": K,
        "limit": LIMIT,
        "batch": BATCH,
        "dtype": "float32",
        "resamples": RESAMPLES,
        "workers": args.workers,
        "threads": args.threads,
        "seconds": round(time.monotonic() - begin),
    }
    found = report.document(results, arms, tuned, settings, RESAMPLES, about, served)
    args.out.write_text(json.dumps(found, indent=1, allow_nan=False) + "\n")
    args.out.with_suffix(".md").write_text(report.markdown(found))
    report.plot(found, args.out.with_suffix(".svg"))
    print(report.markdown(found))


if __name__ == "__main__":
    main()
