"""A run's results as one JSON object and as Markdown; `plot` draws speed-ups beside the cost model's ceiling."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from bench.context.report import table
from bench.speed.cost import PARTS

WORDS = (
    "Decoding: tokens a second behind the first token, by those of the same questions without speculation, over all "
    "groups; in brackets the least and the greatest of the groups. End to end: prompts and waiting included. T: "
    "accepted and returned drafts a round, without the target's own token. Model: (T + 1) / (s / c + v) with s draft "
    "forwards a round, c the target's forward without speculation by the draft's, v the verify forward by the target's "
    "without speculation, all measured in the same groups; it leaves out SGLang's own work, scoring and rule. Facts: "
    "right in the answers, by those right without speculation; few answers, so see the fidelity bench for quality. "
    "Same: answers that are those without speculation, token by token (in bfloat16 ties can fall either way)."
)
COLUMNS = (
    "arm", "K", "at once", "decoding", "end to end", "T", "s", "c", "v", "model", "of the model", "facts", "same"
)  # fmt: skip
PART_NAMES = {
    "draft_forwards": "draft's forwards", "draft_rest": "rest of drafting", "verify": "verify forward",
    "scoring": "scoring", "rule": "rule", "sglang": "SGLang's rest of the round", "between_rounds": "between rounds",
}  # fmt: skip


def write(found: dict[str, Any], out: Path) -> None:
    """JSON and Markdown, side by side."""
    out.parent.mkdir(parents=True, exist_ok=True)
    out.write_text(json.dumps(found, indent=1, allow_nan=False) + "\n")
    out.with_suffix(".md").write_text(markdown(found))


def markdown(found: dict[str, Any]) -> str:
    """A table of speed-ups and one of a round's parts, for each cost ratio."""
    settings, about = found["settings"], found["provenance"]
    machine, weighed = about["hardware"], settings["weighed"]
    where = (
        f"{settings['dtype']}, greedy, one core a server. {about['utc']}, commit {about['git'][:10]}, "
        f"{machine['processor']} ({machine['cores']} cores), torch {about['versions']['torch']}, "
        f"{settings['seconds']} s. Draft's forward {weighed['draft_step_ms']:.2f} ms, a layer of the heavy target "
        f"{weighed['layer_ms']:.2f} ms."
    )
    parts = ["# How much faster answers come", where, WORDS]
    if not settings["complete"]:
        parts.append("**The run was not finished; rows are missing.**")
    for ratio in dict.fromkeys(row["c_wanted"] for row in found["rows"]):
        rows = [row for row in found["rows"] if row["c_wanted"] == ratio]
        parts += [
            (
                f"## c = {ratio:g}: {settings['layers'][f'{ratio:g}']} layers more than the demo pair's target; "
                f"answers of both alike: {settings[f'same_as_plain_target_at_{ratio:g}']}"
            ),
            table(COLUMNS, (_cells(row) for row in rows)),
            "One round, milliseconds:",
            table(
                ("arm", "K", "at once", *PART_NAMES.values(), "together", "a token alone"),
                (_round_cells(row) for row in rows),
            ),
        ]
    return "\n\n".join(parts) + "\n"


def _cells(row: dict[str, Any]) -> tuple[str, ...]:
    stop = "" if row["stop"] is None else f", stop {row['stop']:g}"
    return (
        row["arm"] + stop,
        f"{row['K']}",
        f"{row['concurrency']}",
        _speedup(row, "decode_speedup"),
        _speedup(row, "e2e_speedup"),
        f"{row['T']:.2f}",
        f"{row['draft_steps']:.1f}",
        f"{row['c']:.1f}",
        f"{row['v']:.2f}",
        f"{row['predicted_speedup']:.2f}x",
        f"{row['of_ceiling']:.0%}",
        f"{row['retention']:.1%}",
        f"{row['equal_ids']:.0%}",
    )


def _round_cells(row: dict[str, Any]) -> tuple[str, ...]:
    return (
        row["arm"],
        f"{row['K']}",
        f"{row['concurrency']}",
        *(f"{row['round_ms'][name]:.2f}" for name in PARTS),
        f"{row['round_ms_total']:.1f}",
        f"{row['step_alone_ms']:.1f}",
    )


def _speedup(row: dict[str, Any], name: str) -> str:
    least, _, greatest = row[f"{name}_groups"]
    spread = f" [{least:.2f}, {greatest:.2f}]" if row["groups"] > 1 else ""
    return f"{row[name]:.2f}x{spread}"


def plot(found: dict[str, Any], path: Path) -> None:
    """Decoding against K at each cost ratio and concurrency: a line an arm, the cost model's ceiling dotted."""
    import matplotlib as mpl

    mpl.use("Agg")
    mpl.rcParams["svg.hashsalt"] = "speed"  # the same figures make the same file
    import matplotlib.pyplot as plt

    rows = found["rows"]
    ratios = list(dict.fromkeys(row["c_wanted"] for row in rows))
    at_once = list(dict.fromkeys(row["concurrency"] for row in rows))
    figure, panels = plt.subplots(
        len(ratios), len(at_once), figsize=(4.2 * len(at_once), 3.6 * len(ratios)), squeeze=False, layout="constrained"
    )
    for line, ratio in zip(panels, ratios, strict=True):
        for axes, concurrency in zip(line, at_once, strict=True):
            here = [row for row in rows if (row["c_wanted"], row["concurrency"]) == (ratio, concurrency)]
            for place, arm in enumerate(dict.fromkeys(row["arm"] for row in here)):
                of_arm = sorted((row for row in here if row["arm"] == arm), key=lambda row: row["K"])
                steps = [row["K"] for row in of_arm]
                axes.plot(
                    steps, [row["decode_speedup"] for row in of_arm], "-o", color=f"C{place}", markersize=3, label=arm
                )
                axes.plot(steps, [row["predicted_speedup"] for row in of_arm], ":", color=f"C{place}", linewidth=1)
            axes.axhline(1.0, color="0.7", linewidth=0.8)
            axes.set_title(f"c = {ratio:g}, {concurrency} at once", fontsize=9)
            axes.set_xlabel("K")
            axes.set_ylabel("decoding faster (dotted: cost model)")
            axes.grid(alpha=0.3)
    panels[0][0].legend(fontsize=7)
    figure.savefig(path, metadata={"Date": None} if path.suffix == ".svg" else None)
    plt.close(figure)
