"""One HTML file that answers at a glance: which arm is faster, at what quality, where the knee is."""

from __future__ import annotations

from html import escape
from pathlib import Path

from loadtest import sections
from loadtest.arms import NONE, STRICT
from loadtest.wording import Json, ms, name_of, percent, shown, slot_of

TPOT, TTFT, RATE = "time per output token", "TTFT", "tokens a second"
LITTLE_TO_SAVE = 2.5


def page(found: Json) -> str:
    """The whole report."""
    style = (Path(__file__).parent / "style.css").read_text()
    body = "\n".join(
        part(found)
        for part in (
            _head,
            _glance,
            sections.ramp,
            sections.turns,
            sections.quality,
            sections.latency,
            sections.errors,
            _how,
        )
    )
    return (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>Load test of video chat: {escape(_arms_line(found))}</title><style>\n{style}</style></head>\n"
        f"<body><main>\n{body}\n</main></body></html>\n"
    )


def _arms_line(found: Json) -> str:
    return ", ".join(name_of(arm) for arm in found["arms"])


def _head(found: Json) -> str:
    verdict, about = found["verdict"], found["about"]
    if verdict["passed"]:
        state = '<div class="verdict passed" role="status"><strong>Passed.</strong> ' + _promise(found) + "</div>"
    else:
        reasons = "".join(
            f"<pre>required  {escape(p['required'])}\nfound     {escape(p['found'])}\ndo this   {escape(p['do'])}</pre>"
            for p in verdict["problems"]
        )
        state = f'<div class="verdict failed" role="alert"><strong>Failed.</strong>{reasons}</div>'
    notes = "".join(f'<div class="verdict note">{escape(note)}</div>' for note in verdict["notes"])
    when = escape(about["utc"].replace("T", " ")[:16])
    return (
        f"<h1>Load test of video chat</h1><p class='soft'>{escape(_arms_line(found))}: the same requests at the same "
        f"instants, one server after another. {when} UTC, {escape(about['processor'])}, {about['cores']} cores.</p>"
        f"{state}{notes}"
    )


def _promise(found: Json) -> str:
    arms = found["arms"]
    parts = ["Every answer ended with a finish reason, and no error was unexpected."]
    if STRICT in arms and NONE in arms:
        told = arms[STRICT]["quality"]
        if told["equal"] == told["compared"]:
            parts.append(f"All {told['compared']} strict answers are those without speculation, token by token.")
        else:
            parts.append(
                f"{told['equal']} of {told['compared']} strict answers are those without speculation; see below."
            )
    loose = [arm for arm in arms if arm not in (NONE, STRICT)]
    if loose:
        parts.append(f"Loosening kept to the bounds of {', '.join(map(escape, loose))}.")
    return " ".join(parts)


def _median(arm: Json, metric: str) -> float | None:
    value = arm["alone"][metric]["p50"]
    return None if value is None else float(value)


def _times(arm: Json, plain: Json | None, metric: str) -> float | None:
    """How many times quicker than without speculation, by medians of a duration."""
    ours, theirs = _median(arm, metric), _median(plain, metric) if plain else None
    return theirs / ours if ours and theirs else None


def _glance(found: Json) -> str:
    arms, plain = found["arms"], found["arms"].get(NONE)
    cards = []
    for name, arm in arms.items():
        tpot, times = _median(arm, TPOT), _times(arm, plain, TPOT)
        big = "–" if tpot is None else f"{tpot:.0f} ms"
        beside = "" if name == NONE or times is None else f" · {times:.2f}x"
        rows = [
            ("time to first token", ms(_median(arm, TTFT))),
            ("tokens/s of one answer", shown(_median(arm, RATE), 1)),
            ("knee", _knee(arm)),
            ("most goodput", _goodput(arm)),
            ("T", shown(_median(arm, "T"), 2)),
            *_quality_rows(name, arm, plain),
        ]
        listed = "".join(f"<dt>{escape(key)}</dt><dd>{escape(value)}</dd>" for key, value in rows if value != "–")
        cards.append(
            f'<section class="card s{slot_of(found, name)}"><h3>{escape(name_of(name))}</h3>'
            f'<div class="big">{big}{beside}</div><div class="soft small">per output token, one question at a '
            "time</div>"
            f"<dl>{listed}</dl></section>"
        )
    return f"<h2>At a glance</h2><p>{_sentence(found)}</p><div class='cards'>{''.join(cards)}</div>"


def _quality_rows(name: str, arm: Json, plain: Json | None) -> list[tuple[str, str]]:
    told, rows = arm["quality"], []
    if name != NONE and plain is not None:
        rows.append(("answers equal", f"{told['equal']} of {told['compared']}"))
    if name not in (NONE, STRICT):
        rows.append(("tokens loosened", percent(told["divergence"])))
    if told["facts"]:
        rows.append(("facts right", f"{100 * told['facts_right'] / told['facts']:.1f} %"))
    return rows


def _sentence(found: Json) -> str:
    """Which arm is faster, and by how much, in words."""
    arms, plain = found["arms"], found["arms"].get(NONE)
    medians = {name: _median(arm, TPOT) for name, arm in arms.items()}
    known = {name: value for name, value in medians.items() if value is not None}
    if len(known) < 2:
        return "One arm alone: there is nothing to compare it with."
    best = min(known, key=lambda name: known[name])
    parts = [f"<strong>Fastest for one user: {escape(name_of(best))}</strong>"]
    if plain is not None and best != NONE:
        parts[0] += f", {known[NONE] / known[best]:.2f} times as fast a token as without speculation"
    parts[0] += "."
    knees = {name: arm["ramp"][arm["knee"]]["rate"] for name, arm in arms.items() if arm["knee"] is not None}
    if knees:
        furthest = max(knees.values())
        holders = [name_of(name) for name in knees if knees[name] == furthest]
        others = ", ".join(
            f"{escape(name_of(name))} {knees[name]:g}" if name in knees else f"{escape(name_of(name))} none"
            for name in arms if knees.get(name) != furthest
        )  # fmt: skip
        parts.append(
            f"<strong>Most load: {escape(' and '.join(holders))}</strong>, in time up to {furthest:g} requests a second"
            + (f" ({others})." if others else ".")
        )
    ratio = next((arm["cost_ratio"] for arm in arms.values() if arm["cost_ratio"]), None)
    if ratio:
        parts.append(f"A token of this target costs {ratio:.1f} forwards of its draft: that is what there is to save.")
        if ratio < LITTLE_TO_SAVE:
            parts.append(
                "Below three or so, drafting costs what it wins; <code>make loadtest C=5</code> has a heavier one."
            )
    return " ".join(parts)


def _how(found: Json) -> str:
    about, settings = found["about"], found["settings"]
    servers = {name_of(n): ", ".join(f"{k} {v}" for k, v in a["server"].items() if v is not None)
               for n, a in found["arms"].items()}  # fmt: skip
    facts = {
        "command": about["command"], "commit": about["commit"],
        "changed files": ", ".join(about["changed_files"]) or "none",
        "versions": ", ".join(f"{name} {version}" for name, version in about["versions"].items()),
        "hardware": f"{about['processor']}, {about['cores']} cores",
        "load average before it": f"{about['load_average_at_start']} (others at work slow every arm, not evenly)",
        "seed": f"{settings['seed']} (arrivals, questions), {settings['clip_seed']} (clips)",
        "pair": f"{settings['target']}, {settings['draft']}"
        + (f"; made heavier, c of {settings['cost_ratio_wanted']:g} wanted" if settings["cost_ratio_wanted"] else ""),
        "API": f"/{settings['api']}" if settings["api"] == "generate" else "/v1/chat/completions",
        "took": f"{settings['seconds']} s",
        **servers,
    }  # fmt: skip
    phases = "".join(
        f"<li>{escape(p['title'])}: {p['conversations']} conversations"
        + (f", {', '.join(f'{rate:g}' for rate in p['rates'])} a second" if p["rates"] else "") + "</li>"
        for p in found["phases"]
    )  # fmt: skip
    listed = "".join(f"<dt>{escape(key)}</dt><dd>{escape(str(value))}</dd>" for key, value in facts.items())
    return (
        "<h2>How it was measured</h2><p>Every arm got these phases, each from an empty radix "
        f"cache:</p><ul>{phases}</ul>"
        f'<dl class="facts">{listed}</dl><p class="small soft">Beside this file: run.json (all of it), '
        "metrics.csv (every "
        "metric by phase, step and kind of user), requests.csv, locust.csv, answers.jsonl.</p>"
    )


def _knee(arm: Json) -> str:
    if not arm["ramp"]:
        return "–"
    if arm["knee"] is None:
        return f"below {arm['ramp'][0]['rate']:g}/s"
    reached = arm["ramp"][arm["knee"]]["rate"]
    return f"{'at least ' if arm['knee'] == len(arm['ramp']) - 1 else ''}{reached:g}/s"


def _goodput(arm: Json) -> str:
    return f"{max(step['goodput'] for step in arm['ramp']):.2f}/s" if arm["ramp"] else "–"
