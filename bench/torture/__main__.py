"""Hostile traffic for minutes on a server that is being sabotaged, judged by one without speculation: `make torture`.

A seed names requests and faults; with the same seed a number is the same request at the same trouble. Ends with 1 if
anything was wrong. `--replay file.json` sends again what went wrong in an earlier run, with the requests beside it.
"""

from __future__ import annotations

import argparse
import json
import signal
import sys
import tempfile
from contextlib import ExitStack
from pathlib import Path
from types import FrameType
from typing import Any

from bench.context.servers import running
from bench.provenance import digest, made_by
from bench.torture import plugin, report
from bench.torture.faults import FAULTS, settings_of_server
from bench.torture.media import Media
from bench.torture.run import SERVER_PRESET, Limits, plan_of, run, words_of
from demo.serve import command_for, environment_for, is_cpu_environment

NEIGHBOURS = 12  # requests on either side of one that is sent again
MEMORY_LIMIT = 0.02
COMMON_FLAGS = ("--skip-server-warmup",)


def parse() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(prog="python -m bench.torture", description=__doc__)
    parser.add_argument("--out", type=Path, default=Path("build/torture.json"))
    parser.add_argument("--minutes", type=float, default=10.0, help="of traffic")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--first", type=int, default=0, help="number of the first request")
    parser.add_argument("--requests", type=int, help="how many, whatever time they take")
    parser.add_argument("--at-least", type=int, default=0, help="go on after the minutes until there were so many")
    parser.add_argument("--only", type=int, help="this number, with those beside it")
    parser.add_argument("--replay", type=Path, help="a results file: its seed, and the first of its failures as --only")
    parser.add_argument("--without", nargs="+", choices=FAULTS, default=[], metavar="FAULT", help=", ".join(FAULTS))
    parser.add_argument("--waves", type=int, default=4, help="after each one looks at what is left")
    parser.add_argument("--clients", type=int, default=7, help="requests at once; the server has four places")
    parser.add_argument("--clips", type=int, default=24)
    parser.add_argument("--questions", type=int, default=500, help="different ones, each put to the target alone once")
    parser.add_argument("--block", type=int, default=150, help="requests in which each scheduled fault comes")
    parser.add_argument("--port", type=int, default=0, help="of the first of two servers (default: any)")
    parser.add_argument("--keep-logs", type=Path, help="folder for the servers' logs")
    parser.add_argument("more", nargs="*", metavar="-- FLAGS", help="more flags of sglang.launch_server, for the first")
    args = parser.parse_args()
    if args.replay is not None:
        told = json.loads(args.replay.read_text())
        if not told["failures"]:
            parser.error(f"{args.replay} must hold a failed request; found none")
        args.only = told["failures"][0]["number"]
        for name in ("seed", "without", "clips", "questions", "block", "clients"):
            setattr(args, name, told["settings"][name])
    if args.only is not None:
        args.first, args.requests, args.waves = max(0, args.only - NEIGHBOURS), 2 * NEIGHBOURS + 1, 1
    return args


def main() -> int:
    """Run and write; 0: nothing was wrong."""
    args = parse()
    signal.signal(signal.SIGTERM, _stop)
    about, pair, is_cpu = made_by("bench.torture"), Path("demo/pair"), is_cpu_environment()
    flags, environment = settings_of_server(args.without)
    words = words_of(pair / "target")
    plan = plan_of(args.seed, Media.drawn(args.clips, 6), words, args.questions, args.block, args.without)
    last = None if args.requests is None else args.first + args.requests
    is_judged = last is None
    limits = Limits(
        args.first, last, args.minutes * 60 if last is None else 3600.0, args.at_least, args.waves, args.clients,
        MEMORY_LIMIT if is_judged else None,
    )  # fmt: skip

    def options(port: int, spec: str, more: list[str]) -> argparse.Namespace:
        return argparse.Namespace(
            target=str(pair / "target"), draft=str(pair / "draft"), spec=spec, port=port, dtype=None,
            more=[*COMMON_FLAGS, *more],
        )  # fmt: skip

    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="bench-torture-")))
        logs = args.keep_logs or folder
        logs.mkdir(parents=True, exist_ok=True)
        base = environment_for(options(0, "lvspec", []), is_cpu)
        print("starting the server without speculation and the one to be tortured", flush=True)
        plain_log, log = logs / "plain.log", logs / "lvspec.log"
        more = ["--lvspec-preset", SERVER_PRESET, *flags, *args.more]
        sabotaged = {**base, **plugin.environment(folder, args.seed), **environment}
        plain = stack.enter_context(
            running(
                lambda port: command_for(options(port, "none", []), is_cpu), base, plain_log,
                "the server without speculation", args.port and args.port + 1,
            )
        )  # fmt: skip
        url = stack.enter_context(
            running(
                lambda port: command_for(options(port, "lvspec", more), is_cpu), sabotaged, log,
                "the tortured server", args.port,
            )
        )  # fmt: skip
        found = run(url, plain, log, folder, plan, words, limits, _tell)
    settings = _settings(args, more, pair, found.pop("numbers"))
    whole: dict[str, Any] = {"provenance": about, "settings": settings, **found}
    report.write(whole, args.out)
    print(report.markdown(whole))
    return 1 if found["failed"] else 0


def _settings(args: argparse.Namespace, flags: list[str], pair: Path, numbers: list[int]) -> dict[str, Any]:
    names = ("seed", "minutes", "without", "waves", "clients", "clips", "questions", "block")
    weights = {role: digest(pair / role / "model.safetensors") for role in ("target", "draft")}
    return {
        **{name: getattr(args, name) for name in names},
        "numbers": numbers, "flags": flags, "memory_limit": MEMORY_LIMIT, "weights_sha256": weights,
    }  # fmt: skip


def _tell(line: str) -> None:
    print(f"\r  {line}" if sys.stdout.isatty() else f"  {line}", end="" if sys.stdout.isatty() else "\n", flush=True)


def _stop(_number: int, _frame: FrameType | None) -> None:
    """SIGTERM: leave through the ends of the `with`, which end the servers."""
    raise SystemExit("The torture was stopped.")


if __name__ == "__main__":
    sys.exit(main())
