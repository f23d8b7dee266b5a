"""Runs the arms: batches of clips in worker processes, every arm on the same prompts.

tuning clips ──► probability thresholds, chance that matches the main arm, best single head
held-out clips ─► all arms on the describing question, a few on the others ──► marks
"""

from __future__ import annotations

import itertools
import math
import multiprocessing
import queue
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from tqdm import tqdm

from bench.fidelity import arms as arms_
from bench.fidelity.arms import Arm, Tables, decider
from bench.fidelity.baselines import Baseline, strict
from bench.fidelity.engine import TIE, Exam, K, Pair, Transcript, load
from bench.fidelity.marks import mark
from bench.fidelity.separation import Collector, best_head
from bench.fidelity.server_rule import look
from demo.evaluate import prompt_ids
from demo.heldout import SEED, HeldOutClip, held_out, served_patches

BATCH = 50  # clips at once: bounds the memory of the caches
TUNING_SEED = 1_001  # clips that nothing is judged on
TUNING_CLIPS = 50
QUESTIONS = ("describe", "short", "json")


@dataclass(frozen=True)
class Task:
    """A batch of held-out clips: numbers `begin` to `end`, and which arms answer which question about them."""

    begin: int
    end: int
    arms: tuple[tuple[Arm, ...], ...]  # by question
    seed: int = SEED  # of the clips


@dataclass
class Result:
    """What a task found: marks [clips, columns] by (question, arm) and scores by variant."""

    task: Task
    marks: dict[tuple[int, str], np.ndarray] = field(default_factory=dict)
    scores: dict[str, np.ndarray] = field(default_factory=dict)
    own: list[str] = field(default_factory=list)  # what the target alone says to the describing question
    ties: int = 0  # answers in which strict differs from the target alone where two tokens are equally likely


class Answering:
    """The pair and the tables of one process."""

    def __init__(self, pair: Path, calibration: Path, threads: int = 1) -> None:
        torch.set_num_threads(threads)
        self.models: Pair = load(pair)
        self.tables = Tables.of(pair / "target", calibration)

    @property
    def vocabulary(self) -> Any:
        """The target's."""
        return self.models[0].vocabulary

    def exam(self, clips: list[HeldOutClip], question: int, patches: torch.Tensor | None = None) -> Exam:
        """Both models after reading a question about each clip."""
        prompts = [prompt_ids(self.vocabulary, clip, question) for clip in clips]
        return Exam.of(self.models, prompts, served_patches(clips) if patches is None else patches)

    def text(self, transcript: Transcript) -> str:
        """The answer without its end token."""
        return str(self.vocabulary.decode(transcript.tokens))

    def strictly(self, exam: Exam, on_round: Callable[..., None]) -> list[Transcript]:
        """A strict run that is watched."""
        return exam.run(Baseline(strict, self.tables.is_ordinary), on_round)

    def do(self, task: Task, tick: Callable[[], None]) -> Result:
        """Run every arm of a task; `tick` after each."""
        clips = clips_between(task.begin, task.end, task.seed)
        numbers, patches, result = range(task.begin, task.end), served_patches(clips), Result(task)
        collector = Collector(self.tables.calibration)
        for question, of_question in enumerate(task.arms):
            if not of_question:
                continue
            exam = self.exam(clips, question, patches)
            own = exam.alone()
            texts = [self.text(each) for each in own]
            result.own = texts if question == 0 else result.own
            for arm in of_question:
                if arm.kind == arms_.NONE:
                    answers = own
                elif arm.name == arms_.STRICT and question == 0:
                    answers = exam.run(
                        decider(arm, exam, self.tables, numbers), lambda seen, exam=exam: collector.watch(exam, seen)
                    )
                else:
                    answers = exam.run(decider(arm, exam, self.tables, numbers))
                if arm.name == arms_.STRICT:
                    result.ties += ties_of(answers, own)
                rows = [
                    mark(answer, self.text(answer), clip, question, text)
                    for answer, clip, text in zip(answers, clips, texts, strict=True)
                ]
                result.marks[question, arm.name] = np.array(rows, dtype=np.float64)
                tick()
        result.scores = collector.columns()
        return result


def clips_between(begin: int, end: int, seed: int = SEED) -> list[HeldOutClip]:
    """Held-out clips of these numbers."""
    return list(held_out(end - begin, seed, first=begin))


def answers(
    pair: Path, calibration: Path, clips: list[HeldOutClip], arm: Arm, question: int = 0, threads: int = 1
) -> list[list[int]]:
    """Token ids of one arm's answers about some clips, end tokens left out: what a server must answer, too."""
    answering = Answering(pair, calibration, threads)
    exam = answering.exam(clips, question)
    decide = decider(arm, exam, answering.tables, range(len(clips))) if arm.kind != arms_.NONE else None
    found = exam.alone() if decide is None else exam.run(decide)
    eos = answering.vocabulary.eos
    return [[token for token in each.tokens if token != eos] for each in found]


def ties_of(strict_answers: list[Transcript], own: list[Transcript]) -> int:
    """Answers in which strict differs from the target alone by a tie; it must not differ otherwise.

    Raises:
        RuntimeError: strict committed what the target would not have.
    """
    ties = 0
    for number, (ours, theirs) in enumerate(zip(strict_answers, own, strict=True)):
        if ours.tokens == theirs.tokens:
            continue
        pairs = zip(ours.tokens, theirs.tokens, strict=False)
        place = next((i for i, (a, b) in enumerate(pairs) if a != b), min(len(ours.tokens), len(theirs.tokens)))
        if place >= len(theirs.margins) or theirs.margins[place] > TIE:
            raise RuntimeError(
                f"Strict must answer as the target alone; answer {number} differs at token {place}, where the target "
                f"prefers its choice clearly. The engine is wrong: run tests/bench."
            )
        ties += 1
    return ties


@dataclass(frozen=True)
class Tuned:
    """What was chosen on the tuning clips."""

    thresholds: dict[float, float]  # log-probability by the share of mismatches that reaches it
    matched: float  # chance of random relaxation
    head: str


def tune(answering: Answering, scorer: str, seed: int, tick: Callable[[], None], clips: int = TUNING_CLIPS) -> Tuned:
    """Choose what some baselines need on clips of another seed; five runs, `tick` after each."""
    exam = answering.exam(clips_between(0, clips, TUNING_SEED), 0)
    collector, logprobs = Collector(answering.tables.calibration), []

    def watch(seen: Any) -> None:
        collector.watch(exam, seen)
        is_match = seen.draft_token[:, 1:] == seen.choice[:, :-1]
        first = (torch.arange(K) == is_match.long().cumprod(1).sum(1, keepdim=True)) & seen.is_live[:, None]
        logprobs.append(look(seen).logprob[:, :-1][first & ~is_match])

    answering.strictly(exam, watch)
    tick()
    found = torch.cat(logprobs)
    thresholds = {share: torch.quantile(found, 1 - share).item() for share in arms_.PROBABILITY_SHARES}

    def share_of(arm: Arm) -> float:
        done = exam.run(decider(arm, exam, answering.tables, range(clips)))
        tick()
        loosened = sum(label in (1, 2) for each in done for label in each.labels)
        return loosened / sum(len(each.tokens) for each in done)

    main = next(arm for arm in arms_.presets(scorer) if arm.name == arms_.MAIN)
    wanted = share_of(main)
    chances = (0.0, 0.3, 0.6, 0.9)
    shares = [0.0, *(share_of(arms_.by_random("", chance, seed)) for chance in chances[1:])]
    return Tuned(thresholds, round(float(np.interp(wanted, shares, chances)), 4), best_head(collector.columns()))


def tasks_of(count: int, others: int, workers: int, arms: Sequence[Arm], seed: int = SEED) -> list[Task]:
    """Batches of `count` clips; the first `others` clips are also asked the other questions."""
    size = min(BATCH, math.ceil(count / workers))
    few = tuple(arms_.other_questions(list(arms)))
    bounds = sorted({*range(0, count, size), min(others, count), count})
    return [
        Task(begin, end, (tuple(arms), *((few, few) if end <= others else ((), ()))), seed)
        for begin, end in itertools.pairwise(bounds)
    ]


def run(pair: Path, calibration: Path, tasks: list[Task], workers: int, threads: int, bar: tqdm[Any]) -> list[Result]:
    """Results in the order of the tasks, from `workers` processes; `bar` counts finished arms."""
    if workers == 1:
        answering = Answering(pair, calibration, threads)
        return [answering.do(task, bar.update) for task in tasks]
    context = multiprocessing.get_context("spawn")  # a fork would copy torch's thread pools in some state
    ticks: Any = context.Queue()
    with context.Pool(workers, _start, (pair, calibration, threads, ticks)) as pool:
        pending = [pool.apply_async(_do, (task,)) for task in tasks]
        while not all(each.ready() for each in pending):
            for _ in _drained(ticks):
                bar.update()
            for each in pending:
                if each.ready():
                    each.get()  # an error of a worker ends the run at once
        for _ in _drained(ticks, 0.0):
            bar.update()
        return [each.get() for each in pending]


def _drained(ticks: Any, timeout: float = 0.5) -> Iterable[None]:
    def each() -> Iterator[None]:
        while True:
            try:
                ticks.get(timeout=timeout) if timeout else ticks.get_nowait()
            except queue.Empty:
                return
            yield

    return each()


_answering: Answering
_ticks: Any


def _start(pair: Path, calibration: Path, threads: int, ticks: Any) -> None:
    global _answering, _ticks  # a worker process of a pool has no other place
    _answering, _ticks = Answering(pair, calibration, threads), ticks


def _do(task: Task) -> Result:
    return _answering.do(task, lambda: _ticks.put(None))
