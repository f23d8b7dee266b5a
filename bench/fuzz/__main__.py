"""`python -m bench.fuzz --requests 20000 --seed 1 --out file.json`; `--only N` sends one payload and shows it."""

from __future__ import annotations

import argparse
import signal
import sys
import time
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from bench.fuzz import report
from bench.fuzz.addresses import bad_web_server
from bench.fuzz.campaign import Campaign
from bench.fuzz.exchange import exchange
from bench.fuzz.ownership import owned, with_causes
from bench.fuzz.payload import payload
from bench.fuzz.surroundings import surroundings_of
from bench.fuzz.target import OwnServer, Target
from bench.fuzz.verdict import verdict
from bench.provenance import made_by

LIMIT_S = 120.0


def main() -> int:
    """Command line; 1 where something of ours failed."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--requests", type=int, default=20_000)
    parser.add_argument("--first", type=int, default=0, help="number of the first payload")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--only", type=int, help="send this payload alone and show it with its answer")
    parser.add_argument("--clients", type=int, default=4)
    parser.add_argument("--limit", type=float, default=LIMIT_S, help="seconds of silence that are a hang")
    parser.add_argument("--minutes", type=float, help="stop after so long, whatever was sent by then")
    parser.add_argument("--max-deaths", type=int, default=12)
    parser.add_argument("--url", help="a running server in place of one of our own; it is not started again if it dies")
    parser.add_argument("--logs", type=Path, help="folder that keeps the servers' logs")
    parser.add_argument("--out", type=Path)
    parser.add_argument("more", nargs="*", metavar="-- FLAGS", help="more flags for the server")
    options = parser.parse_args()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # the servers are ended on the way out
    about = made_by("bench.fuzz")
    with TemporaryDirectory() as temporary, bad_web_server() as web:
        folder = options.logs or Path(temporary)
        folder.mkdir(parents=True, exist_ok=True)
        if options.url is not None:
            return _fuzz(options, Target(options.url), web, folder, about)
        with OwnServer("lvspec", options.more, folder) as target:
            return _fuzz(options, target, web, folder, about)


def _fuzz(options: argparse.Namespace, target: Target, web: str, folder: Path, about: dict[str, Any]) -> int:
    surroundings = surroundings_of(target.url, web)
    campaign = Campaign(
        target,
        surroundings,
        options.seed,
        clients=options.clients,
        limit_s=options.limit,
        max_deaths=options.max_deaths,
    )
    if options.only is not None:
        return _show(campaign, options.only)
    campaign.learn()
    began = time.monotonic()

    told = 0

    def end_early(*_: object) -> None:
        campaign.must_end = True  # with a report of what was sent by then

    signal.signal(signal.SIGTERM, end_early)

    def progress(running: Campaign) -> None:
        nonlocal told
        for fault in running.faults[told:]:
            print(f"\n  {fault.verdict}: --seed {options.seed} --only {fault.number} {fault.kinds} {fault.why[:160]}")
        told = len(running.faults)
        rate = len(running.results) / (time.monotonic() - began)
        counts = ", ".join(f"{name} {count}" for name, count in running.counts().most_common())
        end = "\n" if not sys.stdout.isatty() else ""
        print(f"\r  {len(running.results)} sent, {rate:.0f}/s, {counts}, deaths {running.deaths}", end=end, flush=True)

    deadline = None if options.minutes is None else began + options.minutes * 60
    campaign.run(range(options.first, options.first + options.requests), deadline=deadline, progress=progress)
    print()
    is_empty, held = target.is_empty()
    seconds = time.monotonic() - began
    faults = with_causes(campaign, campaign.faults)
    if faults and options.url is None:
        faults = _owned(options, campaign, faults, web, folder)
    limits = f"context {surroundings.context}, pool {surroundings.pool}, chunks of {surroundings.chunk} tokens"
    about |= {
        "command": f"make fuzz N={options.requests} SEED={options.seed}",
        "seed": options.seed,
        "clients": options.clients,
        "limit_s": options.limit,
        "about_server": f"{limits}, {options.clients} clients",
        "seconds_in_all": round(seconds),
        "empty": is_empty,
        "held": held,
    }
    found = report.document(campaign, faults, about)
    print(report.markdown(found))
    if options.out is not None:
        report.write(found, options.out)
    return 1 if report.ours(found) or not is_empty or campaign.deaths >= options.max_deaths else 0


def _owned(options: argparse.Namespace, campaign: Campaign, faults: list[Any], web: str, folder: Path) -> list[Any]:
    """Asks a server without LVSPEC, in place of the one that was fuzzed."""
    with OwnServer("none", options.more, folder) as target:
        surroundings = surroundings_of(target.url, web)
        plain = Campaign(target, surroundings, campaign.seed, clients=1, limit_s=options.limit)
        plain.known = campaign.known
        return owned(plain, faults)


def _show(campaign: Campaign, number: int) -> int:
    asked = payload(campaign.seed, number, campaign.surroundings)
    print(asked.kinds, asked.request, sep="\n")
    place = campaign.target.log_size()
    reply = exchange(campaign.target.url, asked.request, campaign.limit_s)
    print(reply.status, reply.failure or "", reply.content[:3000].decode(errors="replace"))
    found = verdict(asked, reply, campaign.known) if asked.known is None else None
    print(found, campaign.target.raised_since(place))
    return 1 if found is not None and found.is_fault else 0


if __name__ == "__main__":
    sys.exit(main())
