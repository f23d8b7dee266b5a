"""What the guard keeps when a draft lies: `python -m bench.fidelity.guarded --clips 100 --out build/guard.json`.

The demo pair and the same target with a draft that gets every fact wrong (`hostile`), each served with the guard and
without it, the loosest preset. The same held-out clips one after the other, a few at a time, to real servers; marks are
those of `bench.fidelity`. Writes the JSON file and the same as Markdown (.md) beside it.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import requests
from prometheus_client.parser import text_string_to_metric_families
from tqdm import tqdm

from bench.context.servers import running
from bench.fidelity.hostile import write_hostile
from bench.fidelity.marks import COLUMNS, mark_text
from bench.fidelity.served import ask, counts
from bench.fidelity.statistics import RESAMPLES, Bootstrap, figures
from bench.provenance import made_by
from demo.heldout import HeldOutClip, held_out
from demo.serve import command_for, environment_for, is_cpu_environment

OWN, HOSTILE = "the pair's own draft", "hostile draft"
STRICT = "strict"
CLIP_SEED = 20261  # no clip of the fidelity bench, and none that the guard's bounds were chosen on
AT_ONCE = 2


@dataclass(frozen=True)
class Arm:
    """One server."""

    draft: str
    guard: str  # as --lvspec-guard


ARMS = tuple(Arm(draft, guard) for draft in (OWN, HOSTILE) for guard in ("off", "on"))


def measure(url: str, clips: Sequence[HeldOutClip], preset: str, own: Sequence[str] | None, bar: Any) -> dict[str, Any]:
    """Texts and marks of a server's answers in the order of the clips, and what its guard says of them.

    `own` are the target's own answers; None: these are those.
    """

    def answer(clip: HeldOutClip) -> tuple[str, dict[str, Any], int]:
        found = ask(url, clip, preset)
        bar.update()
        return found

    with ThreadPoolExecutor(AT_ONCE) as pool:
        found = list(pool.map(answer, clips))
    texts = [text for text, *_ in found]
    rows = []
    for (text, told, tokens), clip, alone in zip(found, clips, own or texts, strict=True):
        marks = mark_text(text, clip, 0, alone) | counts(told, tokens)
        rows.append([marks[name] for name in COLUMNS])
    told = [told for _, told, _ in found]
    return {"texts": texts, "rows": np.array(rows, dtype=np.float64), "told": told}


def guard_of(url: str, told: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """What the guard did, from answers and metrics."""
    metrics = requests.get(f"{url}/metrics", timeout=60).text
    samples = [sample for family in text_string_to_metric_families(metrics) for sample in family.samples]
    held = [each.get("guard") for each in told]
    levels = [each["level"] if each else "as asked" for each in held]
    kept = [each["estimated_retention"] for each in told if each.get("estimated_retention") is not None]
    return {
        "as_asked": levels.count("as asked"), "tightened": levels.count("tightened"), "strict": levels.count("strict"),
        "first_strict": levels.index("strict") + 1 if "strict" in levels else None,
        "estimated_retention": float(np.mean(kept)) if kept else None,
        "drift": next((sample.value for sample in samples if sample.name == "lvspec:guard_drift"), None),
        "breaches": {
            sample.labels["reason"]: sample.value
            for sample in samples
            if sample.name == "lvspec:guard_breaches_total" and sample.value
        },
    }  # fmt: skip


def run(options: argparse.Namespace, folder: Path) -> dict[str, Any]:
    """All arms, one server after the other."""
    clips = list(held_out(options.clips, options.clip_seed))
    write_hostile(options.pair, folder / "hostile")
    pairs = {OWN: options.pair, HOSTILE: folder / "hostile"}
    bootstrap = Bootstrap.of(len(clips))
    found: dict[str, Any] = {"arms": []}
    own: dict[str, Any] | None = None
    with tqdm(total=len(clips) * (len(ARMS) + 1), desc="answers", unit="answer", mininterval=5) as bar:
        for number, arm in enumerate(ARMS):
            with serving(pairs[arm.draft], options.preset, arm.guard, folder / f"{number}.log") as url:
                if own is None:
                    own = measure(url, clips, STRICT, None, bar)
                ours = measure(url, clips, options.preset, own["texts"], bar)
                guard = guard_of(url, ours["told"])
            row = figures(bootstrap.totals(ours["rows"]), bootstrap.totals(own["rows"]))
            found["arms"].append({"draft": arm.draft, "guard_is": arm.guard, **row, "guard": guard})
    return found


def serving(pair: Path, preset: str, guard: str, log: Path) -> Any:
    """A server of a pair, as `make serve` starts it."""
    is_cpu = is_cpu_environment()

    def options(port: int) -> argparse.Namespace:
        more = ["--lvspec-preset", preset, "--lvspec-guard", guard, "--max-running-requests", "4"]
        return argparse.Namespace(
            target=str(pair / "target"), draft=str(pair / "draft"), spec="lvspec", port=port, dtype=None,
            more=[*more, "--skip-server-warmup"],
        )  # fmt: skip

    return running(
        lambda port: command_for(options(port), is_cpu), environment_for(options(0), is_cpu), log, f"guard {guard}"
    )


def markdown(found: dict[str, Any]) -> str:
    """The result for people."""
    about, settings = found["about"], found["settings"]
    said = (
        f"`{' '.join(about['argv'])}`, {about['utc']}, commit {about['git'][:10]}, {about['hardware']['processor']} "
        f"({about['hardware']['cores']} cores), float32. {settings['clips']} held-out clips (seed "
        f"{settings['clip_seed']}), preset `{settings['preset']}`, {AT_ONCE} at a time. The hostile draft exchanges "
        "colors, shapes, sizes, motions, numbers and backgrounds for others of their kind. Held: answers left "
        "as asked / tightened / strict."
    )
    columns = ("draft", "guard", "T", "loosened", "facts right", "retention", "95 %", "estimated retention", "held")
    lines = [
        "# The guard and a draft that lies",
        "",
        said,
        "",
        f"| {' | '.join(columns)} |",
        "|---" * len(columns) + "|",
    ]
    for arm in found["arms"]:
        guard, low_high = arm["guard"], arm["retention_ci"]
        estimate = guard["estimated_retention"]
        lines.append(
            f"| {arm['draft']} | {arm['guard_is']} | {arm['T']:.2f} | {100 * arm['loosened_share']:.1f} % "
            f"| {100 * arm['facts_truth']:.1f} % | {100 * arm['retention']:.1f} % "
            f"| {' … '.join(f'{100 * bound:.1f}' for bound in low_high)} "
            f"| {'–' if estimate is None else f'{100 * estimate:.1f} %'} "
            f"| {guard['as_asked']} / {guard['tightened']} / {guard['strict']} |"
        )
    return "\n".join([*lines, ""])


def main() -> None:
    """The command."""
    parser = argparse.ArgumentParser(prog="python -m bench.fidelity.guarded", description=__doc__)
    parser.add_argument("--clips", type=int, default=100)
    parser.add_argument("--clip-seed", type=int, default=CLIP_SEED)
    parser.add_argument("--preset", default="paper")
    parser.add_argument("--pair", type=Path, default=Path("demo/pair"))
    parser.add_argument("--out", type=Path, default=Path("build/guard.json"))
    options = parser.parse_args()
    if options.clips < 2:
        parser.error("--clips must be 2 or more")
    about = made_by("bench.fidelity.guarded")
    options.out.parent.mkdir(parents=True, exist_ok=True)
    with TemporaryDirectory() as folder:
        found = run(options, Path(folder))
    settings = {name: getattr(options, name) for name in ("clips", "clip_seed", "preset")} | {"resamples": RESAMPLES}
    found = {"about": about, "settings": settings, **found}
    options.out.write_text(json.dumps(found, indent=1, allow_nan=False) + "\n")
    options.out.with_suffix(".md").write_text(markdown(found))
    print(markdown(found))


if __name__ == "__main__":
    main()
