"""A run's results as one JSON object and as Markdown."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from bench.context.report import table
from bench.torture.faults import FAULTS

WAVES = (
    "The cache is flushed, pools, processes, log and memory are looked at, and three questions are asked again "
    "(rounds, accepted drafts). Resident memory in MiB, after garbage collection and malloc_trim."
)


def write(found: dict[str, Any], out: Path) -> None:
    """JSON and Markdown, side by side."""
    out.parent.mkdir(parents=True, exist_ok=True)
    out.write_text(json.dumps(found, indent=1, allow_nan=False) + "\n")
    out.with_suffix(".md").write_text(markdown(found))


def markdown(found: dict[str, Any]) -> str:
    """What was done, how often, what came of it; then answers, waves, and whatever was wrong."""
    settings, about = found["settings"], found["provenance"]
    machine = about["hardware"]
    verdict = "Nothing was wrong." if not found["failed"] else f"**{found['failed']} things were wrong**, see below."
    where = (
        f"{found['requests']} requests in {found['seconds'] / 60:.1f} minutes, seed {settings['seed']}, numbers "
        f"{settings['numbers'][0]} to {settings['numbers'][1]}, {settings['clients']} at once; {about['utc']}, commit "
        f"{about['git'][:10]}, {machine['processor']} ({machine['cores']} cores), torch {about['versions']['torch']}."
    )
    parts = [
        "# Torture",
        f"{where} {verdict}",
        "## Faults",
        table(("fault", "what it is", "times", "hit", "what was seen"), (_fault_cells(row) for row in found["faults"])),
        "## Answers",
        table(("outcome", "answers"), ((name, f"{count}") for name, count in sorted(found["outcomes"].items()))),
        f"{found['questions_compared']} different questions were put to the target alone.",
        "## After each wave",
        WAVES,
        table(("wave", "held before the flush: target, draft", "probes", "resident"), map(_wave_cells, found["waves"])),
        "Growth in the second half of the waves: "
        + ", ".join(f"{process} {share:+.2%}" for process, share in found["memory_growth"].items())
        + f" (at most {settings['memory_limit']:.0%}; {found['memory_verdict']}).",
    ]  # fmt: skip
    if found["failed"]:
        parts += ["## What was wrong", *(f"* {line}" for line in found["wrong"])]
        parts += [f"* request {each['number']}: {'; '.join(each['complaints'])}" for each in found["failures"]]
    return "\n\n".join(parts) + "\n"


def _fault_cells(row: dict[str, Any]) -> tuple[str, ...]:
    seen = ", ".join(f"{what}: {count:g}" for what, count in row["seen"].items())
    hit = f"{row['hit']}" if row["hit"] or not row["times"] else "**never**"
    return f"`{row['fault']}`", FAULTS[row["fault"]], f"{row['times']}", hit, seen


def _wave_cells(wave: dict[str, Any]) -> tuple[str, ...]:
    held = wave["held_before_flush"]
    return (
        wave["wave"],
        ", ".join(f"{count:g}" for count in held.values()),
        ", ".join(f"{rounds}/{accepted}" for rounds, accepted in wave["probes"]),
        ", ".join(f"{process.split()[0]} {size / 2**20:.1f}" for process, size in wave["resident_bytes"].items()),
    )
