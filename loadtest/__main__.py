"""The headless load test: `python -m loadtest`, `make loadtest`. Arms in turn, then files and a verdict."""

from __future__ import annotations

import dataclasses
import json
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import Any

from loadtest.api import api_named
from loadtest.arms import Arm, Server, ServerError, started
from loadtest.heavier import heavier_pair
from loadtest.media import CLIP_SEED, Library, generate, samples
from loadtest.options import Options, options
from loadtest.outcome import Played
from loadtest.plan import Phase, Plan, pace_of
from loadtest.processor import this_processor
from loadtest.progress import Progress
from loadtest.provenance import provenance
from loadtest.report import page
from loadtest.result import document, write
from loadtest.summary import markdown
from loadtest.verdict import judge, loosened_ids

PAIR_FILES = "pair"


def main(argv: list[str] | None = None) -> int:
    """0: all is well. 1: the run failed, the report says why. 2: nothing could be measured. 130: interrupted."""
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, _interrupt)
    try:
        chosen = options(argv)
        return run(chosen, sys.argv[1:] if argv is None else argv)
    except (ValueError, ServerError) as error:
        print(f"\nthe load test did not run\n{error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("\ninterrupted; the servers that were started have been ended", file=sys.stderr)
        return 130


def run(chosen: Options, argv: list[str]) -> int:
    """Measure, write, judge."""
    begin = time.monotonic()
    progress = Progress(begin)
    about = provenance(argv)
    chosen.out.mkdir(parents=True, exist_ok=True)
    library = _library(chosen, progress)
    score = Score(Plan(chosen.sizes, library, chosen.seed))
    models = _models(chosen, progress)
    arms: list[Played] = []
    for arm in chosen.arms:
        arm_begin = time.monotonic()
        with _server(arm, chosen, models, progress) as server:
            played = _play(arm, server, score, chosen, progress)
        played.seconds = time.monotonic() - arm_begin
        arms.append(played)
        progress.line(f"{arm.name:>9}  done: {len(played.records)} requests in {played.seconds:.0f} s")
    for played in arms:
        played.marks = _marks(played, chosen, progress)
    dtype = str(arms[0].about.get("dtype") or chosen.dtype or "float32")
    verdict = judge(arms, dtype)
    settings: dict[str, Any] = {
        "seed": chosen.seed, "api": chosen.api, "sizes": dataclasses.asdict(chosen.sizes), "dtype": dtype,
        "target": chosen.target, "draft": chosen.draft, "cost_ratio_wanted": chosen.cost_ratio or None,
        "pace": score.pace, "running_servers": sorted(chosen.urls), "clip_seed": CLIP_SEED,
        "seconds": round(time.monotonic() - begin),
    }  # fmt: skip
    found = document(about, settings, score.phases, arms, chosen.objective, verdict)
    write(chosen.out, found, arms, chosen.objective)
    report = chosen.out / "report.html"
    report.write_text(page(found))
    (chosen.out / "report.md").write_text(markdown(found))
    progress.line(f"written: {report}, report.md, run.json, metrics.csv, requests.csv, locust.csv, answers.jsonl")
    for note in verdict.notes:
        progress.line(f"note: {note}")
    if verdict.problems:
        print(f"\nthe load test FAILED, {len(verdict.problems)} reasons", file=sys.stderr)
        print("\n\n".join(map(str, verdict.problems)), file=sys.stderr)
        return 1
    progress.line(f"passed in {time.monotonic() - begin:.0f} s")
    return 0


def _library(chosen: Options, progress: Progress) -> Library:
    videos, images = samples()
    fresh = []
    if chosen.sizes.fresh_clips:
        progress.line(f"making {chosen.sizes.fresh_clips} clips")
        fresh = generate(chosen.out / "clips", chosen.sizes.fresh_clips)
    return Library(tuple(videos), tuple(images), tuple(fresh))


def _models(chosen: Options, progress: Progress) -> list[str]:
    """Arguments of `demo.serve` for the pair, which is made heavier first where that is asked for."""
    target, draft = chosen.target, chosen.draft
    if chosen.cost_ratio:
        progress.line(f"making a pair whose target costs about {chosen.cost_ratio:g} of the draft's forwards")
        target, draft = heavier_pair(chosen.target, chosen.draft, chosen.cost_ratio, chosen.out / PAIR_FILES)
    # In float32 a CPU is as slow with a chain of rows as its sums are many. Where it multiplies bfloat16 itself it
    # waits for the weights instead, as large models do, which is what a heavier pair is for; emulated it is slower.
    is_quick = this_processor().has_bfloat16 and chosen.cost_ratio
    dtype = chosen.dtype or ("bfloat16" if is_quick else None)
    return ["--target", target, "--draft", draft, *(["--dtype", dtype] if dtype else [])]


@contextmanager
def _server(arm: Arm, chosen: Options, models: list[str], progress: Progress) -> Iterator[Server]:
    if arm.name in chosen.urls:
        server = Server(chosen.urls[arm.name])
        server.call("/model_info")
        yield server
        return
    with started(arm, models, chosen.out / f"server-{arm.name}.log", progress.show) as server:
        yield server


class Score:
    """The phases of a run; those under load are drawn once the first arm has shown its pace."""

    def __init__(self, plan: Plan) -> None:
        """Draw what needs no pace."""
        self._plan, self.opening = plan, plan.opening()
        self.loaded: list[Phase] = []
        self.pace: float | None = None

    @property
    def phases(self) -> list[Phase]:
        """All that have been drawn."""
        return [*self.opening, *self.loaded]

    def draw(self, pace: float) -> list[Phase]:
        """The phases under load: at the pace of the arm that asks first, and the same ones for all others."""
        if self.pace is None:
            self.pace, self.loaded = pace, self._plan.loaded(pace)
        return self.loaded


def _play(arm: Arm, server: Server, score: Score, chosen: Options, progress: Progress) -> Played:
    from loadtest.play import Player  # patches the process for gevent

    about, before = server.about(), server.counters()
    player = Player(arm, server.url, api_named(chosen.api), server.flush, progress.show, chosen.answer_limit_s)
    try:
        player.play(score.opening)
        opened = server.counters()
        player.play(score.loaded or score.draw(pace_of(player.played.records)))
    finally:
        player.close()
    played, after = player.played, server.counters()
    played.about = about
    played.counters = {name: value - before.get(name, 0.0) for name, value in after.items()}
    played.counters_alone = {name: value - before.get(name, 0.0) for name, value in opened.items()}
    loosened = sorted({token for record in played.records for token in loosened_ids(record)})
    played.words = server.words(loosened)
    return played


def _marks(played: Played, chosen: Options, progress: Progress) -> tuple[int, int] | None:
    """Facts right and facts of the answers about generated clips; the truth is known to another process."""
    told = [r for r in played.records if r.is_whole and r.number is not None and r.turn == 1]
    if not told:
        return None
    progress.show(f"{played.arm:>9}  marking {len(told)} answers")
    answers = [{"number": r.number, "question": r.question, "text": r.text} for r in told]
    result = subprocess.run(
        [sys.executable, "-m", "demo.mark_answers", "--seed", str(CLIP_SEED)],
        input=json.dumps(answers), capture_output=True, text=True, check=False,
    )  # fmt: skip
    if result.returncode:
        raise ValueError(f"answers must be marked; found status {result.returncode}: {result.stderr.strip()[-500:]}")
    marks = [mark for mark in json.loads(result.stdout) if mark is not None]
    return (sum(right for right, _ in marks), sum(total for _, total in marks)) if marks else None


def _interrupt(_number: int, _frame: FrameType | None) -> None:
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)  # the ending is bounded in time; a second Ctrl-C would leave servers
    if "gevent" in sys.modules:
        import gevent

        hub = gevent.get_hub()
        if gevent.getcurrent() is not hub.parent:  # raised here it would be a visitor's error, with a traceback
            hub.loop.run_callback(hub.parent.throw, KeyboardInterrupt)
            return
    raise KeyboardInterrupt


if __name__ == "__main__":
    assert Path("demo").is_dir(), "run it in the repository's root, where demo/ lies"
    sys.exit(main())
