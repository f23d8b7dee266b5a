"""Which chains pay: `python -m bench.speed.chains --out build/chains.json`. Seconds, not servers.

A strict answer is the target's own whatever is drafted. So one look at every position of an answer (the chain that the
draft would write there, its probabilities, how many the target would accept) is enough to play any policy of chain
lengths exactly, and to price it by the cost model: in target forwards, a round costs s / c + v(D), with s forwards of
the draft and D = chain + 1 verified rows. v is a line that `bench.speed` measures; on a GPU it is flat.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from bench.fidelity import engine
from bench.fidelity.engine import Exam, Round
from bench.provenance import made_by
from demo.evaluate import prompt_ids
from demo.heldout import SEED, held_out, served_patches

LONGEST = 14
STOPS = (0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8)
FIXED = (2, 4, 6, 8, 10, 14)
LOOKUP_NGRAM = 3  # tokens that must have stood before (FLy, arXiv 2511.22972, drafts by lookup where they have)
BONUS_LABEL = 3
WORDS = (
    "Strict answers of the demo pair, played exactly; decoding speed-up by the cost model. D: verified rows, the chain "
    "and one more. In brackets: if each chain were drafted beside the verify forward of the one before, at no cost to "
    "it, and thrown away unless that was accepted whole (arXiv 2603.19610)."
)


@dataclass(frozen=True)
class Position:
    """What a round would find that begins behind token i of an answer.

    Attributes:
        confidence: the draft's probability of each of its LONGEST tokens.
        accepted: how many of them the target would accept.
    """

    confidence: tuple[float, ...]
    accepted: int


@dataclass(frozen=True)
class Recorded:
    """A strict answer: its tokens (the first one is the prefill's), a position for each but the last, its context."""

    tokens: tuple[int, ...]
    positions: tuple[Position, ...]
    prompt: tuple[int, ...]


@dataclass(frozen=True)
class Chain:
    """One round of a policy: tokens drafted, of which `accepted` are right, by `steps` forwards of the draft."""

    length: int
    accepted: int
    steps: float


@dataclass
class Played:
    """The rounds of a policy over an answer so far."""

    answer: Recorded
    place: int = 0  # token behind which the next round begins
    recent: float = 0.7  # running mean of the share of chains that was accepted


# A policy looks at where an answer stands and drafts.
Policy = Callable[[Played], Chain]


def fixed(length: int) -> Policy:
    """Chains of one length; the last token's forward is spared (`drafting.lag`)."""

    def policy(played: Played) -> Chain:
        return Chain(length, min(length, played.answer.positions[played.place].accepted), length)

    return policy


def read_last(length: int) -> Policy:
    """Chains of one length whose last token is always read: K + 1 forwards, what a GPU does."""

    def policy(played: Played) -> Chain:
        return Chain(length, min(length, played.answer.positions[played.place].accepted), length + 1)

    return policy


def stopping(stop: float, longest: int = LONGEST) -> Policy:
    """`drafting.stop`: until the product of the draft's probabilities is below `stop`."""

    def policy(played: Played) -> Chain:
        position, reach, length = played.answer.positions[played.place], 1.0, 0
        while length < longest and reach >= stop:
            reach, length = reach * position.confidence[length], length + 1
        return Chain(length, min(length, position.accepted), length)

    return policy


def following(stop: float, memory: float = 0.8) -> Policy:
    """As long as what was accepted lately lets expect: the longest chain whose end is reached with chance `stop`."""

    def policy(played: Played) -> Chain:
        length, reach = 1, played.recent
        while length < LONGEST and reach * played.recent >= stop:
            length, reach = length + 1, reach * played.recent
        accepted = min(length, played.answer.positions[played.place].accepted)
        # Of the tokens that the target judged: the accepted ones and the one that it refused.
        share = accepted / (accepted + (accepted < length))
        played.recent = memory * played.recent + (1 - memory) * share
        return Chain(length, accepted, length)

    return policy


def looking_up(otherwise: Policy, ngram: int = LOOKUP_NGRAM) -> Policy:
    """What followed the last time that the last `ngram` tokens stood in the context, where they have; read at once."""

    def policy(played: Played) -> Chain:
        answer, place = played.answer, played.place
        context = (*answer.prompt, *answer.tokens[: place + 1])
        last = context[-ngram:]
        for begin in range(len(context) - ngram - 1, -1, -1):
            if context[begin : begin + ngram] == last:
                copied = context[begin + ngram : begin + ngram + LONGEST]
                rest = answer.tokens[place + 1 :]
                same = next((i for i, pair in enumerate(zip(copied, rest)) if pair[0] != pair[1]), len(copied))  # noqa: B905
                return Chain(len(copied), min(same, len(rest)), 1.0)
        return otherwise(played)

    return policy


def knowing() -> Policy:
    """What no policy can beat: chains that end where the target refuses."""

    def policy(played: Played) -> Chain:
        length = min(LONGEST, played.answer.positions[played.place].accepted + 1)
        return Chain(length, min(length, played.answer.positions[played.place].accepted), length)

    return policy


def play(answers: Sequence[Recorded], policy: Policy, c: float, verify: Callable[[int], float]) -> dict[str, float]:
    """Rounds, T, forwards a round and the cost model's speed-up of a policy over all answers."""
    rounds = tokens = accepted = whole = 0
    steps = cost = hidden = 0.0
    for answer in answers:
        played = Played(answer)
        while played.place < len(answer.positions):
            chain = policy(played)
            rounds += 1
            accepted += chain.accepted
            steps += chain.steps
            whole += chain.accepted == chain.length
            price = chain.steps / c + verify(chain.length + 1)
            cost += price
            # ParallelVLM: the next chain is drafted beside the verify forward, and is of use if this one is accepted.
            hidden += max(chain.steps / c, verify(chain.length + 1)) if chain.accepted == chain.length else price
            played.place += chain.accepted + 1
        tokens += len(answer.positions)
    return {
        "T": accepted / rounds,
        "draft_steps": steps / rounds,
        "speedup": tokens / cost,
        "speedup_overlapped": tokens / hidden,
        "whole_chains": whole / rounds,
    }


def record(pair: Path, clips: int) -> list[Recorded]:
    """Strict answers to the describing question, with a look at every position."""
    engine.K = LONGEST
    models = engine.load(pair)
    chosen = list(held_out(clips))
    prompts = [prompt_ids(models[0].vocabulary, clip, 0) for clip in chosen]
    exam = Exam.of(models, prompts, served_patches(chosen))
    positions: list[list[Position]] = [[] for _ in chosen]

    def watch(seen: Round) -> None:
        matches = (seen.draft_token[:, 1:] == seen.choice[:, :-1]).long().cumprod(1).sum(1).tolist()
        confidences = seen.draft_logprob[:, 1:].exp().tolist()
        columns = zip(seen.rows.tolist(), seen.is_live.tolist(), confidences, matches, strict=True)
        for row, is_live, confidence, accepted in columns:
            if is_live:
                positions[row].append(Position(tuple(confidence), accepted))

    def one_token(seen: Round) -> tuple[torch.Tensor, torch.Tensor]:
        labels = torch.full_like(seen.choice, -1)
        labels[:, 0] = BONUS_LABEL
        return labels, seen.choice

    transcripts = exam.run(one_token, watch)
    return [
        Recorded(tuple(each.tokens), tuple(found[: len(each.tokens) - 1]), tuple(prompt))
        for each, found, prompt in zip(transcripts, positions, prompts, strict=True)
    ]


def policies() -> dict[str, Policy]:
    """What is compared."""
    return {
        **{f"{k} tokens, last one read (a GPU's round)": read_last(k) for k in (10,)},
        **{f"{k} tokens": fixed(k) for k in FIXED},
        **{f"follows what was accepted lately, {stop:g}": following(stop) for stop in STOPS},
        **{f"stops below {stop:g}": stopping(stop) for stop in STOPS},
        "10 tokens, looked up where the context repeats itself": looking_up(fixed(10)),
        "stops below 0.6, looked up where the context repeats itself": looking_up(stopping(0.6)),
        "knows where the target refuses": knowing(),
    }


def main() -> None:
    """Record, play, print and write."""
    parser = argparse.ArgumentParser(prog="python -m bench.speed.chains", description=__doc__)
    parser.add_argument("--out", type=Path, default=Path("build/chains.json"))
    parser.add_argument("--clips", type=int, default=60)
    parser.add_argument("--pair", type=Path, default=Path("demo/pair"))
    parser.add_argument("--ratios", type=float, nargs="+", default=[5.0, 10.0])
    parser.add_argument("--slopes", type=float, nargs="+", default=[0.04, 0.0], help="of v, for each verified row more")
    args = parser.parse_args()
    about = made_by("bench.speed.chains")
    answers = record(args.pair, args.clips)
    rows: list[dict[str, Any]] = []
    for c in args.ratios:
        for slope in args.slopes:
            for name, policy in policies().items():
                found = play(answers, policy, c, lambda rows, slope=slope: 1.0 + slope * (rows - 1))
                rows.append({"policy": name, "c": c, "slope": slope, **{k: round(v, 3) for k, v in found.items()}})
    settings = {"clips": args.clips, "clip_seed": SEED, "tokens": sum(len(each.positions) for each in answers)}
    args.out.parent.mkdir(parents=True, exist_ok=True)
    args.out.write_text(json.dumps({"provenance": about, "settings": settings, "rows": rows}, indent=1) + "\n")
    text = f"{WORDS}\n\n{settings['clips']} clips, {settings['tokens']} tokens.\n\n{table(rows)}\n"
    args.out.with_suffix(".md").write_text(f"# Which chains pay\n\n{text}")
    print(text)


def table(rows: Sequence[dict[str, Any]]) -> str:
    """Markdown: a line a policy, a column a cost ratio and slope of v."""
    settings = list(dict.fromkeys((row["c"], row["slope"]) for row in rows))
    names = [f"c = {c:g}, v = 1 + {slope:g} (D - 1)" for c, slope in settings]
    lines = [
        f"| chains | T | forwards a round | accepted whole | {' | '.join(names)} |",
        "|---" * (4 + len(names)) + "|",
    ]
    for policy in dict.fromkeys(row["policy"] for row in rows):
        mine = [row for row in rows if row["policy"] == policy]
        speedups = [f"{row['speedup']:.2f}x ({row['speedup_overlapped']:.2f}x)" for row in mine]
        first = mine[0]
        lines.append(
            f"| {policy} | {first['T']:.2f} | {first['draft_steps']:.1f} | {first['whole_chains']:.0%} "
            f"| {' | '.join(speedups)} |"
        )
    return "\n".join(lines)


if __name__ == "__main__":
    main()
