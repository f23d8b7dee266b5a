"""Puts groups of requests to the servers, arm by arm, and keeps what each said, took and cost."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

from bench.context.client import Answer, Endpoint
from bench.speed.cost import Cost, cost_of
from bench.speed.observer import Lines
from bench.speed.plan import NONE, in_turn, request_of


@dataclass(frozen=True)
class Observed:
    """A server and what its observer writes."""

    endpoint: Endpoint
    lines: Lines


@dataclass(frozen=True)
class Group:
    """What one arm made of one group.

    Attributes:
        clips: numbers of the clips.
        seconds: from the first request's start to the last answer's end.
    """

    clips: tuple[int, ...]
    answers: tuple[Answer, ...]
    seconds: float
    cost: Cost

    @property
    def end_to_end_rate(self) -> float:
        """Tokens a second, prompts and waiting included."""
        return sum(len(answer.ids) for answer in self.answers) / self.seconds


def run_group(server: Observed, arm: str, clips: Sequence[int], bodies: Sequence[dict[str, Any]]) -> Group:
    """Ask all of a group at once, from empty caches."""
    server.endpoint.flush()
    server.lines.read()
    asked = [request_of(arm, body, number) for number, body in zip(clips, bodies, strict=True)]
    with ThreadPoolExecutor(len(asked)) as pool:
        began = time.perf_counter()
        answers = tuple(pool.map(server.endpoint.ask, asked))
        seconds = time.perf_counter() - began
    returned = {body["rid"]: len(answer.ids) for body, answer in zip(asked, answers, strict=True)}
    return Group(tuple(clips), answers, seconds, cost_of(server.lines.read(), returned))


def run_arms(
    alone: Observed,
    ours: Observed,
    arms: Sequence[str],
    groups: Sequence[Sequence[int]],
    bodies: Sequence[dict[str, Any]],
    tick: Callable[[], None],
) -> dict[str, list[Group]]:
    """Every group by every arm, one after the other and never two at once."""
    found: dict[str, list[Group]] = {arm: [] for arm in arms}
    for number, clips in enumerate(groups):
        for arm in in_turn(arms, number):
            server = alone if arm == NONE else ours
            chosen = [bodies[clip % len(bodies)] for clip in clips]
            found[arm].append(run_group(server, arm, clips, chosen))
            tick()
    return found
