"""What is done to a server and its requests, by name, and when: a pure function of seed and request number."""

from __future__ import annotations

import random
from collections.abc import Collection
from dataclasses import dataclass
from typing import Any

from bench.torture.request import ABORT, BAD, HANG_UP, HEALTH
from bench.torture.switchboard import INSIDE

PAUSE_ABORT, PAUSE_IN_PLACE, PAUSE_RETRACT = "pause_abort", "pause_in_place", "pause_retract"
FLUSH_PAUSED, FLUSH_REFUSED, ABORT_ALL = "flush_paused", "flush_refused", "abort_all"
WALL_CLOCK, FORWARD_CLOCK = "wall_clock", "forward_clock"
SMALL_POOLS, FORCED_RETRACTION, DRAFT_EVICTION = "small_pools", "forced_retraction", "draft_eviction"

FAULTS = {
    HANG_UP: "the client closes its connection at a random moment",
    ABORT: "/abort_request at a random moment, by id",
    ABORT_ALL: "/abort_request for all that runs",
    BAD: "requests that cannot be served",
    HEALTH: "health checks beside the load",
    PAUSE_ABORT: "/pause_generation in mode abort, then /continue_generation",
    PAUSE_IN_PLACE: "the same in mode in_place",
    PAUSE_RETRACT: "the same in mode retract: everything running is retracted",
    FLUSH_PAUSED: "paused in mode retract, the cache is flushed: both pools lose all that requests hold",
    FLUSH_REFUSED: "a flush while requests run, to be refused",
    "lost_draft": "a quarter, or all, of the draft's state vanishes between rounds",
    "nan_draft": "the draft's logits are NaN for some rounds",
    "rubbish_draft": "the draft answers rubbish for some rounds: a word, ends, special tokens, noise, the unlikeliest",
    "shuffled_slots": "the free lists of target, draft and rows are shuffled",
    "duplicate_slots": "our marks and releases are given every slot twice, in another order",
    WALL_CLOCK: "the time of day jumps by up to an hour, either way",
    FORWARD_CLOCK: "all other clocks jump forward, as after a suspension",
    SMALL_POOLS: "a KV pool smaller than what runs needs: the radix cache evicts, requests are retracted",
    FORCED_RETRACTION: "SGLang's own switch for tests retracts every so many forwards",
    DRAFT_EVICTION: "the draft's pool holds half of what the target's does",
}

# How often in every block of so many requests, and how much of it.
_IN_A_BLOCK: dict[str, tuple[int, tuple[int, int]]] = {
    ABORT_ALL: (1, (0, 0)), PAUSE_ABORT: (1, (0, 0)), PAUSE_IN_PLACE: (1, (0, 0)), PAUSE_RETRACT: (1, (0, 0)),
    FLUSH_PAUSED: (1, (0, 0)), FLUSH_REFUSED: (1, (0, 0)), WALL_CLOCK: (1, (-3600, 3600)), FORWARD_CLOCK: (1, (5, 30)),
    "lost_draft": (4, (1, 6)), "nan_draft": (2, (3, 20)), "rubbish_draft": (2, (5, 40)), "shuffled_slots": (4, (1, 4)),
    "duplicate_slots": (3, (5, 40)),
}  # fmt: skip
OWN = (HANG_UP, ABORT, BAD, HEALTH)  # of a request
ALWAYS = (SMALL_POOLS, FORCED_RETRACTION, DRAFT_EVICTION)  # of the server
assert {*_IN_A_BLOCK, *OWN, *ALWAYS} == set(FAULTS) and set(INSIDE) <= set(_IN_A_BLOCK), "each fault has a time"


@dataclass(frozen=True)
class Order:
    """A fault that begins as request `number` is taken up; `amount`: rounds, calls or seconds."""

    number: int
    fault: str
    amount: int


def orders(seed: int, number: int, block: int, without: Collection[str] = ()) -> list[Order]:
    """Faults that begin with this request. In every block of `block` requests each comes as often as in any other."""
    found = []
    for fault, (times, (least, most)) in _IN_A_BLOCK.items():
        rng = random.Random(f"{fault} {seed} {number // block}")
        at = {offset: rng.randint(least, most) for offset in rng.sample(range(block), times)}
        if number % block in at and fault not in without:
            found.append(Order(number, fault, at[number % block]))
    return found


def settings_of_server(without: Collection[str]) -> tuple[list[str], dict[str, Any]]:
    """Flags and environment of the sabotaged server: what is done to it all the time."""
    flags, environment = ["--chunked-prefill-size", "48", "--max-running-requests", "4"], {}
    # A guard that acts would hold most requests strict once a draft has answered rubbish: nothing would be loosened.
    flags += ["--lvspec-guard", "watch"]
    flags += ["--lvspec-context", "specvlm", "--lvspec-keep", "0.25", "--lvspec-keep-min", "0"]
    if SMALL_POOLS not in without:
        flags += ["--max-total-tokens", "900"]
    if DRAFT_EVICTION not in without:
        flags += ["--lvspec-draft-tokens", "400"]
    if FORCED_RETRACTION not in without:
        environment = {"SGLANG_TEST_RETRACT": "1", "SGLANG_TEST_RETRACT_INTERVAL": "61"}
    return flags, environment
