"""A run's results as one JSON object and as Markdown; `plot` draws T against the keep ratio."""

from __future__ import annotations

import itertools
import json
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

from bench.context.plan import FULL

WORDS = (
    "T: accepted draft tokens a round, without the target's own. Draft's pool, prefill, seeing and step: size of its "
    "KV pool, reading one prompt, its vision tower, one forward of a chain. First token: median over clips, beside the "
    "server without speculation. Faster: tokens a second behind the first token, and from request to end, by those of "
    "the server without speculation; medians of ratios clip by clip. Equal: strict answers that are the target's own, "
    "token by token. In brackets: 95 % intervals (bootstrap over clips)."
)
COLUMNS = (
    "policy", "keep", "tokens kept", "T strict", "T loose", "draft's pool", "draft's prefill + seeing", "draft's step",
    "first token, 1st question (without)", "2nd question (without)", "decoding faster", "end to end faster",
    "loose: decoding, end to end", "equal",
)  # fmt: skip


def document(about: dict[str, Any], settings: dict[str, Any], rows: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Everything that a run found, as plain JSON."""
    return {"provenance": about, "settings": settings, "rows": list(rows)}


def write(found: dict[str, Any], out: Path) -> None:
    """JSON and Markdown, side by side."""
    out.parent.mkdir(parents=True, exist_ok=True)
    out.write_text(json.dumps(found, indent=1, allow_nan=False) + "\n")
    out.with_suffix(".md").write_text(markdown(found))


def markdown(found: dict[str, Any]) -> str:
    """The result as one table a kind of clip."""
    settings, about = found["settings"], found["provenance"]
    machine = about["hardware"]
    where = (
        f"K = {settings['K']}, greedy, one request at a time. Pair `{settings['pair']}`, loose requests as preset "
        f"`{settings['preset']}`. {about['utc']}, commit {about['git'][:10]}, {machine['processor']} "
        f"({machine['cores']} cores), torch {about['versions']['torch']}, {settings['seconds']} s."
    )
    parts = ["# What the draft sees of the video", where, WORDS]
    if not settings["complete"]:
        parts.append("**The run was not finished; rows are missing.**")
    for frames, rows in _by_kind(found["rows"]):
        first = rows[0]
        parts += [
            f"## {frames} frames, {first['visual_tokens']:.0f} visual tokens a clip; clips: {first['clips']}",
            table(COLUMNS, (_cells(each) for each in rows)),
        ]
        if any(each["measured_as"] for each in rows):
            parts.append("\\* At keep 1 every policy is `full`, which was measured once.")
    return "\n\n".join(parts) + "\n"


def _by_kind(rows: Sequence[dict[str, Any]]) -> Iterator[tuple[int, list[dict[str, Any]]]]:
    for frames, of in itertools.groupby(sorted(rows, key=lambda each: each["frames"]), lambda each: each["frames"]):
        yield frames, list(of)


def _cells(row: dict[str, Any]) -> tuple[str, ...]:
    kept = row["read_visual"] / row["clips"]
    return (
        row["policy"] + ("\\*" if row["measured_as"] else ""),
        f"{row['keep']:g}",
        f"{kept:.0f}",
        _number(row, "T_strict"),
        _number(row, "T_loose"),
        f"{row['draft_pool_bytes'] / 2**20:.2f} MiB",
        f"{_ms(row['draft_prefill_ms'])} + {_ms(row['draft_seeing_ms'])}",
        _ms(row["draft_step_ms"]),
        f"{_ms(row['ttft_first_ms'])} ({_ms(row['ttft_first_plain_ms'])})",
        f"{_ms(row['ttft_second_ms'])} ({_ms(row['ttft_second_plain_ms'])})",
        _number(row, "decode_speedup", "x"),
        _number(row, "e2e_speedup", "x"),
        f"{_short(row['decode_speedup_loose'])}x, {_short(row['e2e_speedup_loose'])}x",
        f"{row['strict_equal']:.0%}",
    )


def _number(row: dict[str, Any], name: str, unit: str = "") -> str:
    low, high = row[f"{name}_ci"]
    ends = "" if low is None else f" [{low:.2f}, {high:.2f}]"
    return _short(row[name]) + unit + ends


def _short(value: float | None) -> str:
    return "–" if value is None else f"{value:.2f}"


def _ms(value: float | None) -> str:
    if value is None:
        return "–"
    return f"{value:.0f} ms" if value >= 100 else f"{value:.3g} ms"


def table(names: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """Markdown of a table."""
    return "\n".join(f"| {' | '.join(each)} |" for each in (names, ["---"] * len(names), *rows))


def plot(found: dict[str, Any], path: Path) -> None:
    """T of strict requests against the keep ratio: a panel a kind of clip, a line a policy."""
    import matplotlib as mpl

    mpl.use("Agg")
    mpl.rcParams["svg.hashsalt"] = "context"  # the same figures make the same file
    import matplotlib.pyplot as plt

    kinds = list(_by_kind(found["rows"]))
    figure, panels = plt.subplots(1, len(kinds), figsize=(5.5 * len(kinds), 4.5), squeeze=False, layout="constrained")
    for axes, (frames, rows) in zip(panels[0], kinds, strict=True):
        policies = list(dict.fromkeys(each["policy"] for each in rows))
        for place, policy in enumerate(policies):
            line = sorted((each for each in rows if each["policy"] == policy), key=lambda each: each["keep"])
            line = [each for each in line if each["T_strict"] is not None]
            keeps, values = [each["keep"] for each in line], [each["T_strict"] for each in line]
            if policy == FULL and values:
                axes.axhline(values[-1], color="0.6", linewidth=1, linestyle="--", label=FULL)
                continue
            below, above = (
                [abs((each["T_strict_ci"][end] or each["T_strict"]) - each["T_strict"]) for each in line]
                for end in (0, 1)
            )
            axes.errorbar(
                keeps, values, yerr=[below, above], fmt="-o", markersize=4, linewidth=1, elinewidth=0.6, capsize=2,
                color=f"C{place}", label=policy,
            )  # fmt: skip
        axes.set_xscale("log")
        ticks = sorted({each["keep"] for each in rows})
        axes.set_xticks(ticks, [f"{tick:g}" for tick in ticks])
        axes.minorticks_off()
        axes.set_xlabel("keep: share of the video's tokens that the draft reads")
        axes.set_title(f"{frames} frames, {rows[0]['visual_tokens']:.0f} visual tokens")
        axes.set_ylabel(f"T, strict: accepted draft tokens a round (of {found['settings']['K']})")
        axes.grid(alpha=0.3)
        axes.legend(fontsize=8)
    figure.savefig(path, metadata={"Date": None} if path.suffix == ".svg" else None)
    plt.close(figure)
