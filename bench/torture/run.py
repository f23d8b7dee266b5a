"""A storm in waves on a server that is up, each wave followed by a look at what is left: the results as one object."""

from __future__ import annotations

import itertools
import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import requests
from tokenizers import Tokenizer

from bench.torture import faults
from bench.torture.aftermath import EVICTED, RETRACTED, Server, growth
from bench.torture.media import Media
from bench.torture.oracle import Oracle
from bench.torture.question import GENERATE, Question, catalogue
from bench.torture.request import ABORT, BAD, HANG_UP, HEALTH, Request
from bench.torture.storm import Plan, Storm
from bench.torture.trouble import Troublemaker
from bench.torture.verdict import Judge
from sgl_lvspec.presets import PRESETS

SERVER_PRESET = "balanced"


@dataclass(frozen=True)
class Limits:
    """How long a storm is.

    Attributes:
        numbers: of requests, from the first to the one behind the last; None: until the time is over.
        seconds: how long it goes on.
        least: requests that it goes on for, however long it takes; where there is no last number.
        waves: the storm is cut into so many.
        memory: by how much resident memory may grow from the first wave to the last; None: is only measured.
    """

    first: int
    last: int | None
    seconds: float
    least: int
    waves: int
    clients: int
    memory: float | None


def words_of(target: Path) -> list[str]:
    """Text of every token id of a target, "" where it is no text."""
    tokenizer = Tokenizer.from_file(str(target / "tokenizer.json"))
    size = tokenizer.get_vocab_size()
    special = {number for number, token in tokenizer.get_added_tokens_decoder().items() if token.special}
    words = ["" if number in special else tokenizer.decode([number]) for number in range(size)]
    return words + [""] * 4096  # a padded vocabulary has rows that are no token


def plan_of(seed: int, media: Media, words: Sequence[str], questions: int, block: int, without: Sequence[str]) -> Plan:
    """The storm of a seed. Words that answers may be stopped by or biased to: those of more than two letters."""
    known = [number for number, word in enumerate(words) if len(word.strip()) > 2]
    return Plan(seed, catalogue(media, known, questions, seed), block, tuple(without))


def probes_of(questions: Sequence[Question]) -> list[Question]:
    """What is asked after each wave: plain questions about nothing, a video, and several."""
    kinds = ("text, plain", "video, plain", "videos, plain")
    found = (next((each for each in questions if each.name == kind and each.most >= 8), None) for kind in kinds)
    probes = [each for each in found if each is not None]
    assert all(each.path == GENERATE for each in probes), "probes are compared by their ids"
    return probes


def run(
    url: str, plain_url: str, log: Path, folder: Path, plan: Plan, words: Sequence[str], limits: Limits,
    tell: Callable[[str], None],
) -> dict[str, Any]:  # fmt: skip
    """Storm a sabotaged server (`plugin.environment` of `folder`); the rest of a report is the caller's."""
    oracle = Oracle(plain_url)
    judge = Judge(oracle, words, PRESETS[SERVER_PRESET])
    server = Server(url, log, folder, probes_of(plan.questions), oracle)
    makers = list[Troublemaker]()

    def trouble_of(under_way: Callable[[], list[Request]]) -> Troublemaker:
        makers.append(Troublemaker(url, server.board, under_way, plan.seed + len(makers)))
        return makers[-1]

    storm = Storm(url, plan, judge, trouble_of, tell)
    at_first, began = server.metrics(), time.monotonic()
    numbers = itertools.count(limits.first) if limits.last is None else iter(range(limits.first, limits.last))
    per_wave = None if limits.last is None else -(-(limits.last - limits.first) // limits.waves)
    for wave in range(1, limits.waves + 1):
        deadline = began + limits.seconds * wave / limits.waves
        storm.run(
            numbers if per_wave is None else itertools.islice(numbers, per_wave), limits.clients,
            lambda end=deadline, least=limits.least * wave // limits.waves: (
                not server.is_alive or (time.monotonic() > end and storm.sent >= least)
            ),
        )  # fmt: skip
        makers[-1].settle()
        tell(f"wave {wave} of {limits.waves} is over; looking at what is left\n")
        try:
            server.calm(f"{wave}")
        except requests.exceptions.RequestException as error:
            server.wrong.append(f"{wave}: the server does not answer: {error}"[:500])
        if not server.is_alive:
            server.wrong.append(f"{wave}: a process of the server is gone; its log ends: {server.last_words()}")
            break
        if wave < limits.waves:
            storm.trouble = trouble_of(storm.under_way)
    seconds = time.monotonic() - began
    at_last = server.metrics() if server.is_alive else at_first
    gained = {name: at_last.get(name, 0.0) - at_first.get(name, 0.0) for name in at_last}
    wrong = [*server.wrong, *(line for maker in makers for line in maker.wrong)]
    rows = _fault_rows(storm, makers, server, gained, plan)
    wrong += [
        f"{row['fault']} was ordered {row['times']} times and never hit"
        for row in rows
        if row["times"] and not row["hit"]
    ]
    grown = growth(server.waves) if server.waves else {}
    if limits.memory is not None:
        wrong += [
            f"{process} grew by {share:.2%} in the second half of the waves" for process, share in grown.items()
            if share > limits.memory
        ]  # fmt: skip
    sent = storm.sent
    return {
        "requests": sent, "seconds": round(seconds), "failed": storm.failed + len(wrong), "wrong": wrong,
        "numbers": [limits.first, limits.first + sent - 1], "kinds": dict(storm.counts),
        "outcomes": dict(judge.outcomes), "questions_compared": oracle.asked, "faults": rows, "waves": server.waves,
        "memory_growth": grown, "memory_verdict": "not judged" if limits.memory is None else "judged",
        "failures": storm.failures, "fault_log": [entry.told() for maker in makers for entry in maker.log],
    }  # fmt: skip


def _fault_rows(
    storm: Storm, makers: Sequence[Troublemaker], server: Server, gained: dict[str, float], plan: Plan
) -> list[dict[str, Any]]:
    """For each fault: how often it was ordered, how often it happened, and what was seen of it."""
    entries = [entry for maker in makers for entry in maker.log]
    log = server.log.read_text(errors="replace")
    always = {
        faults.SMALL_POOLS: {
            "tokens evicted from the radix cache": gained.get(EVICTED, 0.0),
            "retractions because the pool was full": float(log.count("KV cache pool is full. Retract requests")),
        },
        faults.FORCED_RETRACTION: {
            "times": float(log.count("Testing retraction")),
            "requests, by whatever cause": gained.get(RETRACTED, 0.0),
        },
        faults.DRAFT_EVICTION: {
            "tokens evicted": gained.get("lvspec:draft_evicted_total", 0.0),
            "prompts without room": gained.get("lvspec:draft_unread_prompts_total", 0.0),
        },
    }  # fmt: skip
    missed = {HANG_UP: "was answered before", ABORT: "was answered before"}
    rows = []
    for fault in faults.FAULTS:
        if fault in plan.without:
            continue
        if fault in always:
            seen = always[fault]
            rows.append({"fault": fault, "times": 1, "hit": int(sum(seen.values())), "seen": seen})
        elif fault in (HANG_UP, ABORT, BAD, HEALTH):
            counts = storm.own_faults[fault]
            hit = sum(count for what, count in counts.items() if what != missed.get(fault))
            rows.append({"fault": fault, "times": sum(counts.values()), "hit": hit, "seen": dict(counts)})
        else:
            mine = [entry for entry in entries if entry.order.fault == fault]
            seen = Counter[str](entry.saw for entry in mine if not entry.hit and entry.saw)
            if fault in faults.INSIDE:
                seen[faults.INSIDE[fault]] = server.board.made(fault)
            rows.append({"fault": fault, "times": len(mine), "hit": sum(bool(e.hit) for e in mine), "seen": dict(seen)})
    return rows
