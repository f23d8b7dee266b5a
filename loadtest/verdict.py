"""What makes a run fail: strict answers that are not the target's own, answers that do not end as they should,
loosening out of its bounds, errors that nobody provoked."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from loadtest.arms import BOUNDS, GRACE, NONE, STRICT, Bounds
from loadtest.figures import comparable, errors_by_kind
from loadtest.outcome import Played
from loadtest.record import LOOSENED, Record

# bfloat16 has 8 bits of mantissa: logits near 16 are 0.125 apart, and a sum in another order may move each by one step.
TIE_NATS = {"float32": 0.0, "bfloat16": 0.25, "float16": 0.05}
EXAMPLES = 3


@dataclass(frozen=True)
class Problem:
    """A reason to fail, as a person needs it."""

    required: str
    found: str
    do: str

    def __str__(self) -> str:
        return f"required  {self.required}\nfound     {self.found}\ndo this   {self.do}"


@dataclass(frozen=True)
class Verdict:
    """Why the run fails; and what was noticed but is allowed."""

    problems: tuple[Problem, ...]
    notes: tuple[str, ...]


def judge(arms: Sequence[Played], dtype: str) -> Verdict:
    """Of a whole run; `dtype` of the servers decides whether ties may fall either way."""
    problems: list[Problem] = []
    notes: list[str] = []
    plain = next((arm for arm in arms if arm.arm == NONE), None)
    for arm in arms:
        problems += _unexpected(arm)
        if arm.arm == STRICT and plain is not None:
            found, said = _strict(arm, plain, dtype)
            problems += found
            notes += said
        if arm.arm != NONE:
            problems += _bounds(arm)
            if not any(record.loosened is not None for record in arm.records):
                notes.append(
                    f"{arm.arm}: answers say nothing of loosening (the chat API's do not), so no bounds were checked."
                )
    return Verdict(tuple(problems), tuple(notes))


def _unexpected(arm: Played) -> Iterable[Problem]:
    for kind, count in errors_by_kind(arm.records).items():
        first = next(record for record in arm.records if record.error == kind)
        is_silent = kind == "no finish reason"
        yield Problem(
            "a finish reason at the end of every answer"
            if is_silent
            else f"no errors from the server of arm {arm.arm}",
            f"{kind}, {count} of {len(arm.records)} requests; the first is {_name(first)}: "
            f"{first.detail or 'no words'}",
            f"look into the server's log around {first.sent_s:.0f} s of phase {first.phase}",
        )
    # What is neither whole nor an error nor ended by us would be counted nowhere.
    lost = [r for r in arm.records if not r.is_whole and r.error is None and r.ended_by_us is None]
    if lost:
        yield Problem(
            "a finish reason at the end of every answer", f"none in {_names(lost)}", "look into the server's log"
        )
    if not any(record.is_whole for record in arm.records):
        yield Problem(f"answers from arm {arm.arm}", "none that came whole", "see the errors by kind in the report")


def _strict(arm: Played, plain: Played, dtype: str) -> tuple[list[Problem], list[str]]:
    pairs = comparable(arm.records, plain.records)
    if not pairs:
        return [Problem("strict answers to compare", "none that came whole in both arms", "see the errors by kind")], []
    others = [(ours, theirs) for ours, theirs in pairs if ours.ids != theirs.ids]
    ties = [pair for pair in others if is_tie(*pair, TIE_NATS.get(dtype, 0.0))]
    # Requests side by side share matrices whose shape moves the last bit: that is judged in float32 only.
    unseen = [pair for pair in others if dtype != "float32" and not pair[1].near]
    wrong = [pair for pair in others if pair not in ties and pair not in unseen]
    notes = []
    if ties or unseen:
        notes.append(
            f"strict: {len(others)} of {len(pairs)} answers differ from those without speculation in {dtype}: "
            f"{len(ties)} at a tie of the target's two likeliest tokens, {len(unseen)} under load, where "
            "batches differ and "
            "ties cannot be told. In float32 none may differ."
        )
    if not wrong:
        return [], notes
    ours, theirs = wrong[0]
    place = first_difference(ours.ids, theirs.ids)
    return [
        Problem(
            "every strict answer equal to the one without speculation, token by token",
            f"{len(wrong)} of {len(pairs)} differ; the first is {_name(ours)} at token {place + 1}: "
            f"{_around(ours.ids, place)} for {_around(theirs.ids, place)}",
            "compare the two servers' flags (same target, dtype, attention backend, video time?); "
            "then it is a defect: report it with this request",
        )
    ], notes


def first_difference(ours: Sequence[int], theirs: Sequence[int]) -> int:
    """Index of the first token that differs; the shorter length where one continues the other."""
    return next((i for i, (a, b) in enumerate(zip(ours, theirs, strict=False)) if a != b), min(len(ours), len(theirs)))


def is_tie(ours: Record, theirs: Record, nats: float) -> bool:
    """Whether our first other token was as likely to the target as its own, within `nats`."""
    place = first_difference(ours.ids, theirs.ids)
    if nats <= 0 or place >= len(theirs.near) or place >= len(ours.ids):
        return False
    likely = theirs.near[place]
    best = max(logprob for logprob, _ in likely)
    return any(token == ours.ids[place] and best - logprob <= nats for logprob, token in likely)


def _bounds(arm: Played) -> Iterable[Problem]:
    bounds = BOUNDS[arm.arm]
    told = [record for record in arm.records if record.loosened is not None and record.tokens]
    too_many = [r for r in told if (r.loosened or 0) > allowed(bounds, r.tokens) + 1e-6]
    if too_many:
        r = max(too_many, key=lambda record: record.loosened_share or 0)
        yield Problem(
            f"at most {bounds.max_share:g} of an answer (or of {GRACE} tokens) loosened in arm {arm.arm}",
            f"{len(too_many)} answers with more; {_name(r)} has {r.loosened} of {r.tokens} tokens",
            "a defect: report it with this request",
        )
    labelled = [r for r in told if r.labels is not None]
    long_runs = [r for r in labelled if bounds.max_run is not None and longest_run(r.labels or []) > bounds.max_run]
    if long_runs:
        r = long_runs[0]
        yield Problem(
            f"at most {bounds.max_run} loosened tokens in a row in arm {arm.arm}",
            f"{longest_run(r.labels or [])} in {_name(r)}; so in {len(long_runs)} of {len(labelled)} answers",
            "a defect: report it with this request",
        )
    uneven = [
        r for r in labelled
        if r.is_whole and (len(r.labels or []) != r.tokens or sum(x in LOOSENED for x in r.labels or []) != r.loosened)
    ]  # fmt: skip
    if uneven:
        yield Problem(
            "a label for each token, and as many loosened ones as the summary counts",
            f"neither in {_names(uneven)}", "a defect: report it with this request",
        )  # fmt: skip
    text_only = [r for r in told if not r.has_media and (r.loosened or r.mode != STRICT)]
    if text_only:
        yield Problem("text-only requests to be strict", f"loosened or loose: {_names(text_only)}", "report it")
    if bounds.protects_digits:
        digits = [r for r in labelled if any(any(map(str.isdigit, arm.words.get(i, ""))) for i in loosened_ids(r))]
        if digits:
            yield Problem("no loosened token with a digit", f"one in {_names(digits)}", "a defect: report it")


def allowed(bounds: Bounds, tokens: int) -> float:
    """Loosened tokens that an answer of so many tokens may have."""
    return bounds.max_share * max(GRACE, tokens)


def longest_run(labels: Sequence[str]) -> int:
    """Most loosened tokens in a row."""
    longest = current = 0
    for label in labels:
        current = current + 1 if label in LOOSENED else 0
        longest = max(longest, current)
    return longest


def loosened_ids(record: Record) -> list[int]:
    """Ids of the loosened tokens of an answer with labels."""
    return [token for token, label in zip(record.ids, record.labels or [], strict=False) if label in LOOSENED]


def _name(record: Record) -> str:
    return f"{record.key} turn {record.turn} ({record.question!r} about {record.medium or 'nothing'})"


def _names(records: Sequence[Record]) -> str:
    shown = "; ".join(_name(record) for record in records[:EXAMPLES])
    return shown if len(records) <= EXAMPLES else f"{shown}; and {len(records) - EXAMPLES} more"


def _around(ids: Sequence[int], place: int) -> str:
    return f"ids {list(ids[place : place + 4])}" if place < len(ids) else "the end"
