"""The run as JSON and as a table by kind of mutation."""

from __future__ import annotations

import json
from collections import Counter, defaultdict
from pathlib import Path
from typing import Any

from bench.fuzz.campaign import Campaign, Result
from bench.fuzz.ownership import OURS, SGLANGS
from bench.fuzz.payload import KINDS, payload
from bench.fuzz.verdict import ERROR, HANG, OK, REFUSED, SLOW

COLUMNS = (
    "sent",
    "200",
    "4xx",
    "5xx ours",
    "5xx SGLang's",
    "hangs ours",
    "hangs SGLang's",
    "other ours",
    "other SGLang's",
)


def column(result: Result) -> str:
    """Where a result counts."""
    if result.verdict in (OK, SLOW):
        return "200"
    if result.verdict == REFUSED:
        return "4xx"
    what = {ERROR: "5xx", HANG: "hangs"}.get(result.verdict, "other")
    return f"{what} {'SGLang' + chr(39) + 's' if result.owner == SGLANGS else OURS}"


def document(campaign: Campaign, faults: list[Result], about: dict[str, Any]) -> dict[str, Any]:
    """All that was found.

    Args:
        faults: of the campaign, with owners.
        about: what else the file tells, first.
    """
    by_number = {(fault.number, fault.verdict): fault for fault in faults}
    results = [by_number.get((result.number, result.verdict), result) for result in campaign.results]
    table: dict[str, Counter[str]] = {kind: Counter() for kind in KINDS}
    for result in results:
        for kind in result.kinds:
            table[kind].update(("sent", column(result)))
    total: Counter[str] = Counter()
    for result in results:
        total.update(("sent", column(result)))
    seconds = sorted(result.seconds for result in results)
    return {
        **about,
        "total": dict(total),
        "slow": sum(result.verdict == SLOW for result in results),
        "deaths": campaign.deaths,
        "seconds": {"median": seconds[len(seconds) // 2], "p99": seconds[int(len(seconds) * 0.99)], "max": seconds[-1]},
        "kinds": {kind: dict(counts) for kind, counts in table.items() if counts},
        "faults": [_told(fault, campaign) for fault in faults],
    }


def ours(found: dict[str, Any]) -> int:
    """How many faults are ours."""
    return sum(count for name, count in found["total"].items() if name.endswith(OURS))


def markdown(found: dict[str, Any]) -> str:
    """The document as text."""
    head = f"# Fuzzing the request surface: {found['total']['sent']:,} requests, seed {found['seed']}"
    rows = [("all", found["total"]), *found["kinds"].items()]
    table = [f"| {kind} | " + " | ".join(str(counts.get(name, 0)) for name in COLUMNS) + " |" for kind, counts in rows]
    counted = (
        "A request with several mutations counts in the row of each. 200: right, with a valid finish reason; right "
        "requests in between (as it should be) had the token ids that they had before all others. 4xx: with a message, "
        "or one error event in a stream. Other: a dead server, a cut connection, an answer that is wrong."
    )
    seconds = found["seconds"]
    state = (
        f"Slowest answer {seconds['max']:.1f} s, median {seconds['median'] * 1000:.0f} ms; servers that died: "
        f"{found['deaths']}; held afterwards: {found['held']}; empty: {'yes' if found['empty'] else 'NO'}."
    )
    lines = [head, "", f"`{found['command']}`; {found['about_server']}.", "", counted, ""]
    lines += [f"| mutation | {' | '.join(COLUMNS)} |", "|---|" + "--:|" * len(COLUMNS), *table, "", state, ""]
    return "\n".join([*lines, *_fault_lines(found["faults"])])


def _fault_lines(faults: list[dict[str, Any]]) -> list[str]:
    groups: dict[tuple[str, str, str], list[int]] = defaultdict(list)
    for fault in faults:
        groups[fault["owner"], fault["verdict"], fault["cause"]].append(fault["number"])
    lines = ["| whose | what | times | such as | exception |", "|---|---|--:|--:|---|"] if groups else []
    for (owner, what, cause), numbers in sorted(groups.items(), key=lambda item: (item[0][0], -len(item[1]))):
        told = cause.replace("|", "\\|").replace("\n", " ")
        lines.append(f"| {owner} | {what} | {len(numbers)} | {numbers[0]} | `{told}` |")
    return [*lines, ""] if lines else []


def _told(fault: Result, campaign: Campaign) -> dict[str, Any]:
    request = str(payload(campaign.seed, fault.number, campaign.surroundings).request) if fault.number >= 0 else ""
    return {
        "number": fault.number, "verdict": fault.verdict, "owner": fault.owner or OURS, "kinds": list(fault.kinds),
        "why": fault.why, "cause": fault.cause, "request": request,
    }  # fmt: skip


def write(found: dict[str, Any], out: Path) -> None:
    """The JSON file, and the Markdown file beside it."""
    out.parent.mkdir(parents=True, exist_ok=True)
    out.write_text(json.dumps(found, indent=1) + "\n")
    out.with_suffix(".md").write_text(markdown(found))
