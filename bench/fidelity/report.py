"""A run's results as one JSON object and as Markdown; `plot` draws the same."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from bench.fidelity.arms import FLY_PLUS, MAIN, MATCHED, NONE, STRICT, Arm
from bench.fidelity.measure import QUESTIONS, Result, Tuned
from bench.fidelity.separation import AREAS, table
from bench.fidelity.statistics import Bootstrap, at_equal, figures

# (baseline's family, what is equal): what the main arm is compared with.
SERVED = "served"
MET = "mismatches_loosened"
ALSO = {"FLy": (FLY_PLUS,)}  # without its window FLy is loosest
COMPARED = (("random", "loosened_share"), ("FLy", "T"), ("probability", "T"), ("entropy", "T"), ("random", "T"))


def document(
    results: Sequence[Result],
    arms: Sequence[Arm],
    tuned: Tuned,
    settings: dict[str, Any],
    resamples: int,
    about: dict[str, Any],
    served: Mapping[str, np.ndarray] | None = None,
) -> dict[str, Any]:
    """Everything that a run found, as plain JSON.

    Args:
        about: `made_by(...)`, taken before the run: what is committed while it runs has no part in it.
        served: marks of a server's answers by preset.
    """
    by_question: dict[str, list[dict[str, Any]]] = {}
    comparisons: list[dict[str, Any]] = []
    for question, name in enumerate(QUESTIONS):
        parts = [result for result in results if (question, NONE) in result.marks]
        if not parts:
            continue
        asked = [arm for arm in arms if (question, arm.name) in parts[0].marks]
        rows = {arm.name: np.concatenate([part.marks[question, arm.name] for part in parts]) for arm in asked}
        bootstrap = Bootstrap.of(len(rows[NONE]), resamples=resamples)
        totals = {arm: bootstrap.totals(each) for arm, each in rows.items()}
        by_question[name] = [
            {
                "name": arm.name,
                "family": arm.family,
                **figures(totals[arm.name], totals[NONE]),
                "settings": arm.settings,
            }
            for arm in asked
        ]
        if question == 0:
            comparisons = _comparisons(totals, asked)
            for preset, marks in (served or {}).items():
                arm = figures(bootstrap.totals(marks), totals[NONE])
                del arm[MET]  # a server does not tell which rounds a mismatch ended
                by_question[name].append({"name": f"{preset}, served", "family": SERVED, **arm})
    scores = {name: np.concatenate([result.scores[name] for result in results]) for name in results[0].scores}
    return {
        "provenance": about,
        "settings": {
            **settings,
            "tuned": {**vars(tuned), "thresholds": {str(k): v for k, v in tuned.thresholds.items()}},
        },
        "strict_answers_that_differ_by_a_tie": sum(result.ties for result in results),
        "arms": by_question.get(QUESTIONS[0], []),
        "comparisons": comparisons,
        "other_questions": {name: found for name, found in by_question.items() if name != QUESTIONS[0]},
        "auc": table(scores, tuned.head),
    }


def _comparisons(totals: dict[str, np.ndarray], arms: Sequence[Arm]) -> list[dict[str, Any]]:
    found = []
    for family, by in COMPARED:
        members = [arm.name for arm in arms if arm.family == family or arm.name in ALSO.get(family, ())]
        if members and MAIN in totals:
            others = [totals[name] for name in (STRICT, *members)]
            found.append({"arm": MAIN, "against": family, **at_equal(totals[MAIN], others, by)})
    return found


def markdown(found: dict[str, Any]) -> str:
    """The result as tables."""
    settings, about, auc = found["settings"], found["provenance"], found["auc"]
    machine = about["hardware"]
    compared = ("against", "equal", "at", "points", "95 %")
    where = (
        f"K = {settings['K']}, greedy, float32, offline. Pair `{settings['pair']}`, scorer of the presets "
        f"`{settings['scorer']}`. {about['utc']}, commit {about['git'][:10]}, {machine['processor']} "
        f"({machine['cores']} cores), torch {about['versions']['torch']}, {settings['seconds']} s."
    )
    words = (
        "T: accepted draft tokens a round, without the target's own. Loosened: share of all committed tokens (and of "
        "the mismatches met). Retention: facts right, of those right without speculation, with a 95 % interval "
        "(bootstrap over clips). Given up: nats a loosened token."
    )
    counted = (
        f"{auc['tokens']} drafted tokens along strict answers, {auc['facts']} with a fact word; {auc['mismatches']} "
        f"mismatches, {auc['facts_among_mismatches']} with a fact word."
    )
    parts = [
        f"# Fidelity of loose verification: {settings['clips']} held-out clips",
        where,
        words,
        _arm_table(found["arms"]),
        "## At equal speed or looseness",
        f"Facts that `{MAIN}` has right beyond each baseline's own curve, in points (hundredths of all facts).",
        _rows(compared, (_comparison(each) for each in found["comparisons"])),
    ]
    for name, arms in found["other_questions"].items():
        parts += [f"## Question: {name} ({arms[0]['n']} clips)", _arm_table(arms, with_json=name == "json")]
    areas = ((each["variant"], *(_area(each[key]) for key in AREAS)) for each in auc["variants"])
    names = ("score", "all tokens", "mismatches", "mismatches, or first word of a clause")
    parts += ["## Facts against wording: AUC", counted, _rows(names, areas)]
    return "\n\n".join(parts) + "\n"


def _arm_table(arms: list[dict[str, Any]], *, with_json: bool = False) -> str:
    names = (
        "arm", "T", "tokens a round", "loosened (mismatches)", "facts right", "retention", "95 %", "as the target",
        "whole answers", "events", "order", "given up", *(("JSON",) if with_json else ()),
    )  # fmt: skip
    return _rows(names, (_arm_row(arm, with_json) for arm in arms))


def _arm_row(arm: dict[str, Any], with_json: bool) -> tuple[str, ...]:
    return (
        arm["name"],
        f"{arm['T']:.2f}",
        f"{arm['tokens_per_round']:.2f}",
        f"{arm['loosened_share']:.1%}" + (f" ({arm[MET]:.0%})" if MET in arm else ""),
        _percent(arm["facts_truth"]),
        _percent(arm["retention"]),
        _between(arm["retention_ci"], _percent),
        _percent(arm["facts_target"]),
        _percent(arm["all_right"]),
        _percent(arm["event"]),
        _percent(arm["order"]),
        f"{arm['logprob_given_up']:.2f}",
        *((_percent(arm["json_valid"]),) if with_json else ()),
    )


def _comparison(each: dict[str, Any]) -> tuple[str, ...]:
    beyond = "" if each["is_measured"] else f", beyond the family: at its {each['family_at']:.3f}"
    ends = _between(each["points_ci"], "{:+.2f}".format)
    return each["against"], each["equal"], f"{each['at']:.3f}{beyond}", f"{each['points']:+.2f}", ends


def _percent(value: float | None) -> str:
    return "–" if value is None else f"{100 * value:.2f}"


def _area(value: float | None) -> str:
    return "–" if value is None else f"{value:.3f}"


def _between(ends: Sequence[float | None], show: Any) -> str:
    low, high = ends
    return "–" if low is None or high is None else f"{show(low)} … {show(high)}"


def _rows(names: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    return "\n".join(f"| {' | '.join(each)} |" for each in (names, ["---"] * len(names), *rows))


def plot(found: dict[str, Any], path: Path) -> None:
    """Retention against T with its intervals, a line a family."""
    import matplotlib as mpl

    mpl.use("Agg")
    mpl.rcParams["svg.hashsalt"] = "fidelity"  # the same figures make the same file
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(figsize=(9, 6), layout="constrained")
    families: dict[str, list[dict[str, Any]]] = {}
    strict = [arm for arm in found["arms"] if arm["family"] == STRICT]
    for arm in found["arms"]:
        if arm["family"] not in (NONE, STRICT) and arm["name"] != MATCHED:
            families.setdefault(arm["family"], []).append(arm)
            for family in (family for family, names in ALSO.items() if arm["name"] in names):
                families.setdefault(family, []).append(arm)
    for place, (family, members) in enumerate(families.items()):
        is_line = family != "presets"
        members = sorted([*strict, *members] if is_line else members, key=lambda arm: arm["T"])
        retention = 100 * np.array([arm["retention"] for arm in members])
        ends = 100 * np.array([arm["retention_ci"] for arm in members], dtype=float).T
        axes.errorbar(
            [arm["T"] for arm in members],
            retention,
            yerr=np.abs(ends - retention),
            fmt="-o" if is_line else "*",
            markersize=4 if is_line else 13,
            linewidth=1,
            elinewidth=0.6,
            capsize=2,
            color=f"C{place}",
            label=family,
            zorder=2 if is_line else 3,
        )
        if not is_line:
            for arm in members:
                axes.annotate(arm["name"], (arm["T"], 100 * arm["retention"]), (7, 5), textcoords="offset points")
    axes.set_xlabel(f"T: accepted draft tokens a round (of {found['settings']['K']})")
    axes.set_ylabel("retention: facts right, % of those without speculation")
    axes.set_title(f"{found['settings']['clips']} held-out clips, 95 % intervals")
    axes.grid(alpha=0.3)
    axes.legend(fontsize=8)
    figure.savefig(path, metadata={"Date": None} if path.suffix == ".svg" else None)
    plt.close(figure)
