"""The command line of a headless run."""

from __future__ import annotations

import argparse
import dataclasses
from pathlib import Path

from loadtest.arms import ARMS, NONE, STRICT, Arm, require_loopback
from loadtest.arrivals import steps_of
from loadtest.figures import Objective
from loadtest.plan import SHORT, SIZES, Sizes

DEFAULT_ARMS = (NONE, STRICT, "balanced")
TTFT_MS, TPOT_MS = 1000, 60  # objective for the pair as it is
HEAVIER = 3  # times that for a heavier copy, which would miss it without any load


@dataclasses.dataclass(frozen=True)
class Options:
    """What is to be done.

    Attributes:
        urls: running servers by arm; one is started for each arm that has none.
        models: arguments of `demo.serve` that name the pair.
        answer_limit_s: longest wait for a whole answer.
    """

    arms: tuple[Arm, ...]
    urls: dict[str, str]
    out: Path
    api: str
    seed: int
    objective: Objective
    sizes: Sizes
    target: str
    draft: str
    cost_ratio: float
    dtype: str | None
    answer_limit_s: float


def parser() -> argparse.ArgumentParser:
    """Names, defaults, help."""
    found = argparse.ArgumentParser(
        prog="python -m loadtest",
        description="Plays the same video-chat traffic to each arm and writes report.html, run.json and two CSV files.",
    )
    found.add_argument("--out", type=Path, default=Path("build/loadtest"), help="folder for the results")
    found.add_argument(
        "--arms", nargs="+", choices=ARMS,
        help=f"none: the target alone (default: those with a --url, or {' '.join(DEFAULT_ARMS)})",
    )  # fmt: skip
    found.add_argument(
        "--url", action="append", default=[], metavar="ARM=URL", help="a running server for an arm; repeat it"
    )
    found.add_argument(
        "--allow-remote", action="store_true", help="servers that are not on this machine: your own ones"
    )
    found.add_argument("--target", default="demo/pair/target", help="model that answers, where servers are started")
    found.add_argument("--draft", default="demo/pair/draft", help="small model that drafts")
    found.add_argument(
        "--cost-ratio", type=float, default=0.0,
        help="make a heavier copy of the pair whose target forward costs about so many of the draft's; 0: as they are",
    )  # fmt: skip
    found.add_argument("--dtype", help="of the servers that are started (default: that of demo.serve)")
    found.add_argument(
        "--api", choices=("generate", "chat"), default="generate",
        help="chat: /v1/chat/completions, which tells nothing of loosening while it streams",
    )  # fmt: skip
    found.add_argument("--seed", type=int, default=1, help="of arrivals and conversations")
    found.add_argument("--short", action="store_true", help="a run of seconds, to try the load test itself")
    found.add_argument(
        "--rates", type=float, nargs="+",
        help="steps of rising load, requests a second (default: multiples of the first arm's pace)",
    )  # fmt: skip
    found.add_argument("--step-s", type=float, help="length of a step, seconds")
    found.add_argument("--alone", type=int, help="questions asked one at a time")
    found.add_argument(
        "--ttft-ms", type=float,
        help=f"objective: time to the first token (default {TTFT_MS}; {HEAVIER} times that with --cost-ratio)",
    )  # fmt: skip
    found.add_argument(
        "--tpot-ms", type=float,
        help=f"objective: time per output token (default {TPOT_MS}; {HEAVIER} times that with --cost-ratio)",
    )  # fmt: skip
    found.add_argument("--answer-limit-s", type=float, default=120, help="an answer that takes longer is an error")
    return found


def options(argv: list[str] | None = None) -> Options:
    """Parsed and checked; what cannot be is refused with a message."""
    args = parser().parse_args(argv)
    urls: dict[str, str] = {}
    for given in args.url:
        name, separator, url = given.partition("=")
        if not separator or name not in ARMS:
            raise ValueError(
                f"required  --url ARM=URL with an arm of {', '.join(ARMS)}\nfound     {given}\n"
                f"do this   --url none=http://127.0.0.1:30001"
            )
        urls[name] = require_loopback(url, allow_remote=args.allow_remote)
    names = list(dict.fromkeys(args.arms or urls or DEFAULT_ARMS))
    if unknown := [name for name in urls if name not in names]:
        raise ValueError(
            f"required  --arms with every arm that has a --url\nfound     {', '.join(unknown)} with a URL alone\n"
            "do this   add it to --arms, or leave --arms out"
        )
    if args.cost_ratio and all(name in urls for name in names):
        raise ValueError(
            f"required  a server to start for --cost-ratio\nfound     --cost-ratio {args.cost_ratio:g} and a --url for "
            "every arm\ndo this   drop one of them"
        )
    scale = HEAVIER if args.cost_ratio else 1
    args.ttft_ms = TTFT_MS * scale if args.ttft_ms is None else args.ttft_ms
    args.tpot_ms = TPOT_MS * scale if args.tpot_ms is None else args.tpot_ms
    for name in ("ttft_ms", "tpot_ms", "answer_limit_s"):
        if not getattr(args, name) > 0:
            raise ValueError(f"--{name.replace('_', '-')} must be above 0; found {getattr(args, name):g}. Correct it.")
    sizes = SHORT if args.short else SIZES
    step_s = sizes.step_s if args.step_s is None else args.step_s
    steps_of(args.rates or (1.0,), step_s)  # refuses what cannot be
    sizes = dataclasses.replace(sizes, rates=tuple(args.rates or ()), step_s=step_s)
    if args.alone is not None:
        if args.alone < 1:
            raise ValueError(f"--alone must be 1 or more; found {args.alone}. Correct it.")
        sizes = dataclasses.replace(sizes, alone=args.alone)
    return Options(
        arms=tuple(Arm(name) for name in names), urls=urls, out=args.out, api=args.api, seed=args.seed,
        objective=Objective(args.ttft_ms, args.tpot_ms), sizes=sizes, target=args.target, draft=args.draft,
        cost_ratio=args.cost_ratio, dtype=args.dtype, answer_limit_s=args.answer_limit_s,
    )  # fmt: skip
