"""A row of the result: one arm on one server at one concurrency, beside the arm without speculation."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Sequence
from typing import Any

from bench.fidelity.marks import mark_text
from bench.speed.cost import PARTS, joined, predicted
from bench.speed.measure import Group
from bench.speed.plan import NONE, Server
from demo.heldout import HeldOutClip


def rows_of(
    found: dict[str, list[Group]],
    server: Server,
    concurrency: int,
    clips: Sequence[HeldOutClip],
    read: Callable[[Sequence[int]], str],
) -> list[dict[str, Any]]:
    """Rows of all arms but `none`, which each is compared with group by group.

    Args:
        found: the same groups of every arm.
        read: text of token ids.
    """
    alone = found[NONE]
    own = [[read(answer.ids) for answer in group.answers] for group in alone]
    rows = []
    for arm, groups in found.items():
        if arm == NONE:
            continue
        total, total_alone = joined([group.cost for group in groups]), joined([group.cost for group in alone])
        model = predicted(total_alone, total)
        decode = [ours.cost.rate / none.cost.rate for ours, none in zip(groups, alone, strict=True)]
        whole = [ours.end_to_end_rate / none.end_to_end_rate for ours, none in zip(groups, alone, strict=True)]
        speedup = total.rate / total_alone.rate
        row = {
            "arm": arm,
            "K": server.steps,
            "stop": server.stop,
            "concurrency": concurrency,
            "groups": len(groups),
            "decode_speedup": speedup,
            "decode_speedup_groups": [min(decode), statistics.median(decode), max(decode)],
            "e2e_speedup": _rate(groups) / _rate(alone),
            "e2e_speedup_groups": [min(whole), statistics.median(whole), max(whole)],
            **model,
            "measured_cost": (model["T"] + 1) / speedup,
            "of_ceiling": speedup / model["predicted_speedup"],
            "drafted": total.drafted / total.requests,
            "retention": _facts(groups, clips, own, read) / _facts(alone, clips, own, read),
            "equal_ids": _equal(groups, alone),
            "tokens": sum(len(answer.ids) for group in groups for answer in group.answers),
            "round_ms": {name: total.parts[name] / total.rounds for name in PARTS},
            "round_ms_total": 1e3 * total.seconds / total.rounds,
            "step_alone_ms": 1e3 * total_alone.seconds / total_alone.rounds,
            "target_alone_ms": total_alone.target_ms,
        }
        rows.append({name: _rounded(value) for name, value in row.items()})
    return rows


def _rate(groups: Sequence[Group]) -> float:
    """Tokens a second from requests to last answers."""
    return sum(len(a.ids) for group in groups for a in group.answers) / sum(group.seconds for group in groups)


def _facts(
    groups: Sequence[Group],
    clips: Sequence[HeldOutClip],
    own: Sequence[Sequence[str]],
    read: Callable[[Sequence[int]], str],
) -> float:
    """Facts right in all answers."""
    return sum(
        mark_text(read(answer.ids), clips[clip % len(clips)], 0, alone)["facts_right"]
        for group, texts in zip(groups, own, strict=True)
        for clip, answer, alone in zip(group.clips, group.answers, texts, strict=True)
    )


def _equal(groups: Sequence[Group], alone: Sequence[Group]) -> float:
    """Share of the answers that are those without speculation, token by token."""
    pairs = [
        (a.ids, b.ids) for g, h in zip(groups, alone, strict=True) for a, b in zip(g.answers, h.answers, strict=True)
    ]
    return sum(a == b for a, b in pairs) / len(pairs)


def _rounded(value: Any) -> Any:
    if isinstance(value, float):
        return round(value, 4)
    if isinstance(value, dict):
        return {name: _rounded(each) for name, each in value.items()}
    return [_rounded(each) for each in value] if isinstance(value, list) else value
