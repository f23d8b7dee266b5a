"""Puts the measured numbers into the model card: `python -m demo.card` rewrites the block between its two marks.

Reads `demo/pair/evaluation.json` as `demo.evaluate --out` wrote it, so that the card quotes nothing by hand.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

PAIR = Path(__file__).parent / "pair"
BEGIN, END = "<!-- measured: begin -->", "<!-- measured: end -->"
ATTRIBUTES = (
    "count", "background", "color", "shape", "size", "motion", "event", "event_thing", "new_color", "order", "relation",
    "exists", "all_facts", "all_right",
)  # fmt: skip


def _source(part: dict[str, Any]) -> str:
    made = part["provenance"]
    versions = ", ".join(f"{name} {made['versions'][name]}" for name in ("torch", "transformers"))
    return f"{part['clips']} clips, `{' '.join(made['argv'])}`, float32, CPU, {versions}, {made['utc'][:10]}"


def tables(result: dict[str, Any]) -> str:
    """Markdown tables of an evaluation result."""
    lines = ["| share right | " + " | ".join(ATTRIBUTES) + " |", "|---|" + "---|" * len(ATTRIBUTES)]
    for role, groups in sorted(result["accuracy"].items(), reverse=True):
        for question in ("describe", "short", "json"):
            for level in ("clear", "hard"):
                cells = groups[question].get(level, {})
                numbers = " | ".join(f"{cells[a]:.3f}" if a in cells else "-" for a in ATTRIBUTES)
                lines.append(f"| {role}, {question}, {level} ({cells.get('facts', 0)} facts) | {numbers} |")
    lines.append("")
    for role, groups in sorted(result["accuracy"].items(), reverse=True):
        lines.append(f"* {role}: JSON answers that parse {groups['json_valid']:.3f} ({_source(groups)})")
    chains = result["chain"]
    lines += [
        "",
        f"| strict chain, K = {chains['K']} | T | rounds | facts agreed | other words agreed | share of facts |",
        "|---|---|---|---|---|---|",
    ]
    for question in ("describe", "short", "json"):
        row = chains[question]
        lines.append(
            f"| {question} | {row['T']:.2f} | {row['rounds']} | {row['agreement_fact_words']:.3f} "
            f"| {row['agreement_other_words']:.3f} | {row['share_fact_words']:.3f} |"
        )
    return "\n".join([*lines, "", _source(chains)])


def rewritten(card: str, result: dict[str, Any]) -> str:
    """The card with the block between the marks replaced by the tables of `result`."""
    if BEGIN not in card or END not in card:
        raise ValueError(f"The model card needs the marks {BEGIN} and {END}; put both back where the numbers belong.")
    head, rest = card.split(BEGIN)
    return f"{head}{BEGIN}\n{tables(result)}\n{END}{rest.split(END)[1]}"


if __name__ == "__main__":
    path = PAIR / "README.md"
    path.write_text(rewritten(path.read_text(), json.loads((PAIR / "evaluation.json").read_text())))
