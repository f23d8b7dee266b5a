"""The report's sections below the first screen: each takes the run and gives HTML."""

from __future__ import annotations

from html import escape
from typing import Any

from loadtest.arms import BOUNDS
from loadtest.plots import Chart, Series, bars, chart, swatch
from loadtest.tables import Column, table
from loadtest.wording import Json, ms, name_of, percent, shown, slot_of


def ramp(found: Json) -> str:
    """Goodput, throughput and latency against offered load."""
    arms, objective = found["arms"], found["settings"]["objective"]
    if not any(arm["ramp"] for arm in arms.values()):
        return ""

    def lines(value: Any) -> tuple[Series, ...]:
        return tuple(
            Series(
                name_of(name), slot_of(found, name), tuple((s["offered"], value(s)) for s in arm["ramp"]), arm["knee"]
            )
            for name, arm in arms.items()
        )

    x = "offered, requests/s"
    charts = (
        Chart("goodput", "Goodput", x, "in time, requests/s", lines(lambda s: s["goodput"]), diagonal="all in time"),
        Chart("tokens", "Throughput", x, "tokens/s, all answers", lines(lambda s: s["tokens_per_s"])),
        Chart("ttft", "Time to first token, 95th percentile", x, "ms", lines(lambda s: s["ttft"]["p95"]),
              limit=objective["ttft_ms"], limit_name="objective"),
        Chart("tpot", "Time per output token, median", x, "ms", lines(lambda s: s["tpot"]["p50"]),
              limit=objective["tpot_ms"], limit_name="objective"),
    )  # fmt: skip
    legend = "".join(f"<li>{swatch(slot_of(found, name))}{escape(name_of(name))}</li>" for name in arms)
    drawn = "".join(f"<figure><figcaption>{escape(c.title)}</figcaption>{chart(c)}</figure>" for c in charts)
    columns = (
        Column("arm", lambda r: name_of(r["arm"])), Column("offered/s", lambda r: f"{r['offered']:.2f}"),
        Column("arrived", lambda r: r["arrived"]), Column("in time", lambda r: f"{100 * r['good_share']:.0f} %"),
        Column("goodput/s", lambda r: f"{r['goodput']:.2f}"), Column("tokens/s", lambda r: f"{r['tokens_per_s']:.0f}"),
        Column("TTFT p50", lambda r: ms(r["ttft"]["p50"])), Column("p95", lambda r: ms(r["ttft"]["p95"])),
        Column("per token p50", lambda r: ms(r["tpot"]["p50"])), Column("p95", lambda r: ms(r["tpot"]["p95"])),
        Column("cut off", lambda r: r["cut_off"]), Column("errors", lambda r: r["errors"]),
        Column("knee", lambda r: "knee" if r["is_knee"] else ""),
    )  # fmt: skip
    rows = [
        {"arm": name, "is_knee": number == arm["knee"], **step}
        for name, arm in arms.items() for number, step in enumerate(arm["ramp"])
    ]  # fmt: skip
    return (
        "<h2>Under rising load: where the knee is</h2>"
        "<p>Requests arrive at random instants (a Poisson process) that wait for no answer. One is in time "
        "with its first "
        f"token within {objective['ttft_ms']:g} ms and {objective['tpot_ms']:g} ms or less a token behind it; "
        "goodput counts "
        f"those. The knee, ringed, is the last step up to which {100 * found['settings']['knee_share']:.0f} % "
        "of what arrives "
        "is in time. What is unfinished after a step's time for draining is cut off, and counts as not in time.</p>"
        f"<ul class='legend'>{legend}</ul><div class='charts'>{drawn}</div>"
        f"<details><summary>The numbers of the plots</summary>{table('Steps of rising load', columns, rows)}</details>"
    )


def turns(found: Json) -> str:
    """Time to first token of first and later turns."""
    values, rows = [], []
    for name, arm in found["arms"].items():
        told = arm["turns"]
        if not told["first"]["count"]:
            continue
        slot = slot_of(found, name)
        values += [
            (f"{name_of(name)}, turn 1", slot, told["first"]["p50"]),
            (f"{name_of(name)}, later", slot, told["later"]["p50"]),
        ]
        rows.append({"arm": name, **told})
    if not rows:
        return ""
    columns = (
        Column("arm", lambda r: name_of(r["arm"])),
        Column("turn 1, p50", lambda r: ms(r["first"]["p50"])), Column("p95", lambda r: ms(r["first"]["p95"])),
        Column("n", lambda r: r["first"]["count"]),
        Column("later turns, p50", lambda r: ms(r["later"]["p50"])), Column("p95", lambda r: ms(r["later"]["p95"])),
        Column("n", lambda r: r["later"]["count"]), Column("later by first", lambda r: shown(r["ratio"], 2)),
        Column("cached tokens, turn 1", lambda r: shown(r["first_cached"]["p50"], 0)),
        Column("later", lambda r: shown(r["later_cached"]["p50"], 0)),
    )  # fmt: skip
    return (
        "<h2>Several turns about one video</h2><p>Time to the first token, median. Turn 1 brings a clip that "
        "the server has "
        "not seen; later turns find it in the radix cache and bring it along all the same, so it is decoded again.</p>"
        f"<figure>{bars(values, 'ms')}</figure><div "
        f"style='height:12px'></div>{table('Time to first token by turn', columns, rows)}"
    )


def quality(found: Json) -> str:
    """Answers beside those without speculation."""
    columns = (
        Column("arm", lambda r: name_of(r["arm"])),
        Column("answers equal", lambda r: f"{r['equal']} of {r['compared']}" if r["compared"] else "–"),
        Column("asked alone", lambda r: f"{r['judged_equal']} of {r['judged']}" if r["judged"] else "–"),
        Column("tokens loosened", lambda r: percent(r["divergence"])),
        Column("at most", lambda r: f"{100 * BOUNDS[r['arm']].max_share:.0f} %" if r["arm"] in BOUNDS else "–"),
        Column("nats given up a loosened token", lambda r: shown(r["given_up"], 2)),
        Column("facts right", lambda r: f"{r['facts_right']} of {r['facts']}" if r["facts"] else "–"),
        Column("share", lambda r: f"{100 * r['facts_right'] / r['facts']:.1f} %" if r["facts"] else ""),
    )
    rows = [{"arm": name, **arm["quality"]} for name, arm in found["arms"].items()]
    return (
        "<h2>At what quality</h2><p>Answers are compared request by request, by token id, at temperature 0; a "
        "later turn only "
        "where the turns before it were answered alike. A loose answer differs by design: what counts is "
        "whether it states "
        "what the clip shows. Facts (count, background, colours, shapes, sizes, motions, events) are marked by "
        "rule against what "
        "each generated clip was made from; so few answers tell of accidents, not of tenths of a percent.</p>"
        f"{table('Quality', columns, rows)}"
    )


def _percentile(name: str) -> Column:
    return Column(name, lambda row: shown(row[name], 2))


def latency(found: Json) -> str:
    """Percentiles of what was asked alone."""
    rows = [
        {"metric": metric, "arm": name, **told}
        for metric in next(iter(found["arms"].values()))["alone"]
        for name, arm in found["arms"].items()
        if (told := arm["alone"][metric])["count"]
    ]
    columns = (
        Column("metric", lambda r: r["metric"]), Column("arm", lambda r: name_of(r["arm"])),
        Column("n", lambda r: r["count"]), *(_percentile(name) for name in ("mean", "p50", "p95", "p99")),
    )  # fmt: skip
    return (
        "<h2>One question at a time</h2><p>The server has nothing else to do. Milliseconds; time per output token is "
        "the time behind the first piece by the server's count of tokens, because speculation sends several in "
        "one piece: "
        "gaps grow while answers come sooner.</p>"
        f"<details><summary>Percentiles</summary>{table('Asked alone', columns, rows)}</details>"
    )


def errors(found: Json) -> str:
    """Errors by kind, and what the client ended itself."""
    rows: list[Json] = []
    for name, arm in found["arms"].items():
        rows += [{"arm": name, "kind": kind, "count": count, "by": "error"} for kind, count in arm["errors"].items()]
        rows += [
            {"arm": name, "kind": kind, "count": count, "by": "ours"} for kind, count in arm["ended_by_us"].items()
        ]
    totals = "; ".join(f"{name_of(n)} {a['whole']} of {a['requests']}" for n, a in found["arms"].items())
    columns = (
        Column("arm", lambda r: name_of(r["arm"])), Column("kind", lambda r: r["kind"], is_words=True),
        Column("requests", lambda r: r["count"]),
        Column("whose doing", lambda r: "an error" if r["by"] == "error" else "the client's own", is_words=True),
    )  # fmt: skip
    listed = table("How answers ended that did not come whole", columns, rows) if rows else "<p>None.</p>"
    return f"<h2>Answers that did not come whole</h2><p>Whole answers: {escape(totals)}.</p>{listed}"
