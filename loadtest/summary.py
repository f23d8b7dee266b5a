"""A run as Markdown, for a repository or a pull request: the report's tables without its plots."""

from __future__ import annotations

from collections.abc import Sequence

from loadtest.arms import NONE
from loadtest.wording import Json, ms, name_of, percent, shown

TPOT, TTFT, T = "time per output token", "TTFT", "T"


def markdown(found: Json) -> str:
    """Headline, one table of arms, one of steps, how it was made."""
    about, settings, verdict = found["about"], found["settings"], found["verdict"]
    objective = settings["objective"]
    lines = ["# Load test of video chat", "", "Passed." if verdict["passed"] else "**Failed.**"]
    lines += [f"* {problem['required']}: {problem['found']}" for problem in verdict["problems"]]
    lines += [f"* {note}" for note in verdict["notes"]]
    versions = ", ".join(f"{name} {version}" for name, version in about["versions"].items())
    lines += [
        "",
        f"`{about['command']}`, {about['utc']}, commit {about['commit'][:10]}"
        + (f" with changes in {len(about['changed_files'])} files" if about["changed_files"] else "")
        + f", {about['processor']} ({about['cores']} cores, load average {about['load_average_at_start']} before it), "
        f"{versions}, {settings['dtype']}, seed {settings['seed']}, {settings['seconds']} s. "
        f"Objective: first token within {objective['ttft_ms']:g} ms and {objective['tpot_ms']:g} ms a token.",
        "",
        *_table(
            ("arm", "a token, alone", "by none", "TTFT, alone", "T", "knee, requests/s", "most goodput",
             "answers equal", "loosened", "facts right", "TTFT turn 1", "later turns", "c"),
            [_arm_row(found, name) for name in found["arms"]],
        ),
        "",
        *_table(
            ("arm", "offered/s", "arrived", "in time", "tokens/s", "TTFT p50", "TTFT p95", "a token p50", "a token p95",
             "cut off"),
            [
                (name_of(name), f"{step['offered']:.2f}", step["arrived"], percent(step["good_share"]),
                 shown(step["tokens_per_s"], 0), ms(step["ttft"]["p50"]), ms(step["ttft"]["p95"]),
                 ms(step["tpot"]["p50"]), ms(step["tpot"]["p95"]), step["cut_off"])
                for name, arm in found["arms"].items() for step in arm["ramp"]
            ],
        ),
    ]  # fmt: skip
    return "\n".join(lines) + "\n"


def _arm_row(found: Json, name: str) -> tuple[object, ...]:
    arm, plain = found["arms"][name], found["arms"].get(NONE)
    alone, quality, turns = arm["alone"], arm["quality"], arm["turns"]
    ours, theirs = alone[TPOT]["p50"], plain["alone"][TPOT]["p50"] if plain else None
    knee = "–" if arm["knee"] is None else f"{arm['ramp'][arm['knee']]['rate']:g}"
    goodput = max((step["goodput"] for step in arm["ramp"]), default=None)
    facts = f"{100 * quality['facts_right'] / quality['facts']:.1f} %" if quality["facts"] else "–"
    return (
        name_of(name), f"{shown(ours, 1)} ms", f"{theirs / ours:.2f}x" if ours and theirs else "–",
        ms(alone[TTFT]["p50"]), shown(alone[T]["p50"], 2), knee, f"{shown(goodput, 2)}/s",
        f"{quality['equal']} of {quality['compared']}" if quality["compared"] else "–", percent(quality["divergence"]),
        facts, ms(turns["first"]["p50"]), ms(turns["later"]["p50"]), shown(arm["cost_ratio"], 1),
    )  # fmt: skip


def _table(heads: Sequence[str], rows: Sequence[Sequence[object]]) -> list[str]:
    lines = [f"| {' | '.join(heads)} |", f"|{' --- |' * len(heads)}"]
    return lines + [f"| {' | '.join(map(str, row))} |" for row in rows]
