"""Records and arms made by hand, for arithmetic that can be checked on paper."""

from __future__ import annotations

from typing import Any

from loadtest.outcome import Played, Window
from loadtest.record import Record


def record(**values: Any) -> Record:
    """A whole answer of five tokens after 100 ms, one token each 50 ms; `values` change it."""
    usual: dict[str, Any] = {
        "arm": "none", "phase": "alone", "step": 0, "key": "alone/0", "scenario": "single", "turn": 1, "planned_s": 0.0,
        "medium": "clip.mp4", "question": "What?", "ttft_ms": 100.0, "total_ms": 300.0, "first_tokens": 1, "tokens": 5,
        "gaps_ms": [50.0] * 4, "prompt_tokens": 90, "cached_tokens": 15, "finish_reason": "stop",
        "ids": [1, 2, 3, 4, 5], "text": "a b c d e",
    }  # fmt: skip
    return Record(**{**usual, **values})


def loose(labels: list[str], **values: Any) -> Record:
    """An answer of arm balanced with these labels."""
    loosened = sum(label in ("filler", "shift") for label in labels)
    usual: dict[str, Any] = {
        "arm": "balanced", "labels": labels, "tokens": len(labels), "ids": list(range(len(labels))),
        "loosened": loosened, "given_up": 0.5 * loosened, "mode": "loose", "preset": "balanced", "rounds": 2,
        "accepted": len(labels) - 2,
    }  # fmt: skip
    return record(**{**usual, **values})


def played(arm: str, *records: Record, windows: tuple[Window, ...] = ()) -> Played:
    """An arm that brought these records."""
    for one in records:
        one.arm = arm
    return Played(arm, list(records), list(windows))
