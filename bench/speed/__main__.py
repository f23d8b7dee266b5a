"""Measures how much faster answers come: `python -m bench.speed --out build/speed.json`.

For each cost ratio a heavy target is made of the demo pair's (`heavy_target`). One server without speculation stays up;
beside it one LVSPEC server a K answers the same questions, arm by arm. Writes the JSON file after each server, and
beside it the same as Markdown (.md) and as a plot (.svg).
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

from bench.context.measure import FIRST, LIMIT, Prompts
from bench.context.report import document
from bench.provenance import made_by
from bench.speed import report
from bench.speed.figures import rows_of
from bench.speed.heavy_target import WIDTH, write_heavy
from bench.speed.measure import run_arms, run_group
from bench.speed.observer import COIN_SEED
from bench.speed.plan import ARMS, CONCURRENCY, GROUPS, NONE, RATIOS, STEPS, Server, groups_of
from bench.speed.servers import Setup
from bench.speed.weigh import weigh
from demo.heldout import SEED, held_out

COMPARED = 4  # answers that a heavy target and the demo pair's own must give alike


def parse() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(prog="python -m bench.speed", description=__doc__)
    parser.add_argument("--out", type=Path, default=Path("build/speed.json"))
    parser.add_argument("--ratios", type=float, nargs="+", default=list(RATIOS), help="c: target by draft forward")
    parser.add_argument("--steps", type=int, nargs="+", default=list(STEPS), help="K: longest chain")
    parser.add_argument(
        "--stops", nargs="+", default=["auto"], help="where chains end: auto, or values of --lvspec-draft-stop"
    )
    parser.add_argument("--concurrency", type=int, nargs="+", choices=CONCURRENCY, default=list(CONCURRENCY))
    parser.add_argument("--arms", nargs="+", choices=ARMS[1:], default=list(ARMS[1:]), help="beside none")
    parser.add_argument("--groups", type=int, help="groups of requests an arm, at each concurrency")
    parser.add_argument("--clips", type=int, default=8, help="held-out clips that are asked about in turn")
    parser.add_argument("--draft-layers", type=int, default=2, help="layers more than the demo pair's draft")
    parser.add_argument("--pair", type=Path, default=Path("demo/pair"))
    parser.add_argument("--dtype", default="bfloat16")
    parser.add_argument("more", nargs="*", metavar="-- FLAGS", help="more flags of sglang.launch_server, for all")
    args = parser.parse_args()
    if args.clips < 2 or any(ratio <= 0 for ratio in args.ratios) or any(steps < 1 for steps in args.steps):
        parser.error("--clips must be 2 or more, --ratios above 0 and --steps 1 or more")
    return args


def main() -> None:
    """Measure and write."""
    args = parse()
    signal.signal(signal.SIGTERM, _stop)
    begin, about = time.monotonic(), made_by("bench.speed")
    target = args.pair / "target"
    prompts, clips = Prompts(target), list(held_out(args.clips, frames=12))
    bodies = [prompts.about(clip).first for clip in clips]
    servers = [Server(steps, None if stop == "auto" else float(stop)) for steps in args.steps for stop in args.stops]
    arms = [NONE, *args.arms]
    settings: dict[str, Any] = {
        "question": FIRST, "limit": LIMIT, "clips": args.clips, "clip_seed": SEED, "pair": str(args.pair),
        "dtype": args.dtype, "width": WIDTH, "ratios": args.ratios, "steps": args.steps, "stops": args.stops,
        "arms": arms, "draft_layers": args.draft_layers,
        "coin_seed": COIN_SEED, "concurrency": args.concurrency, "complete": False,
    }  # fmt: skip
    rows: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory(prefix="bench-speed-") as folder:
        setup = Setup(Path(folder) / "draft", Path(folder), args.dtype, tuple(args.more))
        write_heavy(args.pair / "draft", setup.draft, args.draft_layers)
        command = setup.command(Path("HEAVY-TARGET"), servers[-1], 0)[1:]
        settings["command"] = ["HEAVY-DRAFT" if word == str(setup.draft) else word for word in command]
        layers, settings["weighed"] = weigh(setup, target, args.ratios, bodies, _say)
        settings["layers"] = {f"{ratio:g}": count for ratio, count in layers.items()}
        with setup.serve(target, None, "the demo pair's target") as server:
            plain = [run_group(server, NONE, [i], [bodies[i % len(bodies)]]).answers[0].ids for i in range(COMPARED)]
        for ratio in args.ratios:
            heavy = setup.folder / f"target-c{ratio:g}"
            write_heavy(target, heavy, layers[ratio], draft=setup.draft)
            with setup.serve(heavy, None, f"none at c {ratio:g}") as alone:
                same = [
                    run_group(alone, NONE, [i], [bodies[i % len(bodies)]]).answers[0].ids == plain[i]
                    for i in range(COMPARED)
                ]
                settings[f"same_as_plain_target_at_{ratio:g}"] = f"{sum(same)} of {len(same)} answers"
                for server_plan in servers:
                    _say(f"c {ratio:g}, {server_plan}, {time.monotonic() - begin:.0f} s:", end="")
                    with setup.serve(
                        heavy, server_plan, f"c {ratio:g} K {server_plan.steps} {server_plan.stop}"
                    ) as ours:
                        run_group(ours, arms[1], [0], bodies[:1])
                        for concurrency in args.concurrency:
                            groups = groups_of(concurrency, args.groups or GROUPS[concurrency])
                            found = run_arms(alone, ours, arms, groups, bodies, lambda: _say(".", end=""))
                            new = rows_of(found, server_plan, concurrency, clips, prompts.read)
                            rows += [{"c_wanted": ratio, **row} for row in new]
                    _say("")
                    settings["seconds"] = round(time.monotonic() - begin)
                    report.write(document(about, settings, rows), args.out)
    settings["complete"] = True
    found_all = document(about, settings, rows)
    report.write(found_all, args.out)
    report.plot(found_all, args.out.with_suffix(".svg"))
    print(report.markdown(found_all))


def _say(text: str, end: str = "\n") -> None:
    print(text, end=end, file=sys.stderr, flush=True)


def _stop(_number: int, _frame: FrameType | None) -> None:
    """SIGTERM: leave by way of every `finally`, which ends the servers."""
    raise SystemExit(143)


if __name__ == "__main__":
    main()
