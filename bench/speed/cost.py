"""What one group of requests cost, read off the observer's lines; and what the cost model says it should have.

    (T + 1) / speed-up = s / c + v

s draft forwards a round (K + 1 where every chain is whole and its last token is read), c what a draft forward is of a
target's for one token a request, v what a verified chain costs of that. It leaves out SGLang's own work, scoring and
rule, so it is a ceiling.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

PARTS = ("draft_forwards", "draft_rest", "verify", "scoring", "rule", "sglang", "between_rounds")


@dataclass(frozen=True)
class Cost:
    """Sums over the decode batches of one group of requests.

    Attributes:
        rounds: batches; tokens: returned of what they committed; seconds: from each one's beginning to the next one's.
        accepted, requests: drafts among the tokens, and request rounds, over all batches.
        steps: forwards of the draft.
        parts: milliseconds of every part of PARTS; they add up to `seconds`.
    """

    rounds: int
    tokens: int
    seconds: float
    accepted: int
    requests: int
    drafted: int
    steps: int
    parts: dict[str, float]

    @property
    def rate(self) -> float:
        """Decoded tokens a second."""
        return self.tokens / self.seconds

    @property
    def target_ms(self) -> float:
        """One forward of the target: for a token a request, or for its chains."""
        return self.parts["verify"] / self.rounds

    @property
    def step_ms(self) -> float:
        """One forward of the draft."""
        return self.parts["draft_forwards"] / self.steps


def cost_of(lines: Sequence[dict[str, Any]], returned: Mapping[str, int]) -> Cost:
    """Add up the decode batches among the observer's lines of one group.

    `returned`: tokens of each request's answer. Its last round may have committed more, behind an end or the limit;
    these are no gain.

    A batch that read a prompt on the way is left out, as prefills are: decoding is what is compared. The time between
    two batches counts where nothing else ran there, and as their mean elsewhere.
    """
    chosen = [
        (place, line)
        for place, line in enumerate(lines)
        if line["kind"] == "decode" and line.get("reading", 0.0) < 1.0  # ms: nothing was read
    ]
    if not chosen:
        raise RuntimeError("a group must decode; found no decode batch in the observer's lines. See the server's log.")
    gaps = [
        lines[place + 1]["began"] - line["ended"]
        for place, line in chosen
        if place + 1 < len(lines) and lines[place + 1]["kind"] == "decode"
    ]
    gap = sum(gaps) / len(gaps) if gaps else 0.0
    parts = dict.fromkeys(PARTS, 0.0)
    for _, line in chosen:
        draft, target = line.get("draft", 0.0), line.get("target_forward", 0.0)
        scoring, rule, steps = (line.get(name, 0.0) for name in ("scoring", "rule", "draft_step"))
        whole = 1e3 * (line["ended"] - line["began"])
        parts["draft_forwards"] += steps
        parts["draft_rest"] += draft - steps
        parts["verify"] += target - scoring
        parts["scoring"] += scoring
        parts["rule"] += rule
        parts["sglang"] += whole - draft - target - rule
        parts["between_rounds"] += 1e3 * gap
    batches = [line for _, line in chosen]
    requests = sum(len(line["rids"]) for line in batches)
    tokens = sum(map(sum, map(_committed, batches)))
    everything = [line for line in lines if line["kind"] == "decode"]
    for rid, count in returned.items():
        mine = [dict(zip(line["rids"], _committed(line), strict=True)).get(rid, 0) for line in everything]
        tokens -= max(0, 1 + sum(mine) - count)  # 1: the prefill's own
    return Cost(
        len(batches),
        tokens,
        sum(parts.values()) / 1e3,
        tokens - requests,
        requests,
        sum((line["drafted"] or 0) * len(line["rids"]) for line in batches),
        sum(line["steps"] for line in batches),
        parts,
    )


def _committed(line: dict[str, Any]) -> list[int]:
    """Tokens that a batch committed, a number a request."""
    accepted = line["accepted"] or [0] * len(line["rids"])
    return [count + 1 for count in accepted]


def joined(costs: Sequence[Cost]) -> Cost:
    """Several groups as one."""
    return Cost(
        *(sum(getattr(cost, name) for cost in costs) for name in ("rounds", "tokens")),
        sum(cost.seconds for cost in costs),
        *(sum(getattr(cost, name) for cost in costs) for name in ("accepted", "requests", "drafted", "steps")),
        {name: sum(cost.parts[name] for cost in costs) for name in PARTS},
    )


def predicted(alone: Cost, ours: Cost) -> dict[str, float]:
    """The cost model's numbers for LVSPEC's groups beside the same without speculation."""
    steps, accepted = ours.steps / ours.rounds, ours.accepted / ours.requests
    ratio, verify = alone.target_ms / ours.step_ms, ours.target_ms / alone.target_ms
    return {
        "T": accepted,
        "draft_steps": steps,
        "c": ratio,
        "v": verify,
        "predicted_cost": steps / ratio + verify,
        "predicted_speedup": (accepted + 1) / (steps / ratio + verify),
    }
