"""What the target says without speculation, from a server or a file, and where an answer parts from it."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path

from sgl_lvspec.testing.endpoint import Answer, Endpoint, EndpointError, Turn, media_url, new_salt

FILE_FORMAT = 1


@dataclass(frozen=True)
class Scenario:
    """Conversations held one after the other over one prefix cache; each of their turns is asked."""

    name: str
    conversations: tuple[tuple[Turn, ...], ...]
    api: str = "chat"  # or "generate"


@dataclass(frozen=True)
class Parting:
    """Where an answer leaves the reference's."""

    position: int
    ours: int | None  # token id there; None after the end
    theirs: int | None
    gap: float | None  # log-probability by which the reference preferred its token; None: ours was no candidate
    excerpt: str


def play(
    endpoint: Endpoint,
    scenario: Scenario,
    said: Sequence[Answer] = (),
    salt: str = "",
    *,
    with_candidates: bool = False,
) -> list[Answer]:
    """All answers of a scenario in order.

    Args:
        endpoint: the server to ask.
        scenario: what to ask.
        said: the reference's answers, which later turns take as the assistant's; without them, the server's own.
        salt: names the prefix cache to use; a new one unless given.
        with_candidates: also ask for each position's most likely tokens.
    """
    ask = endpoint.generate if scenario.api == "generate" else endpoint.chat
    salt = salt or new_salt()
    answers: list[Answer] = []
    for turns in scenario.conversations:
        replies: list[str] = []
        for i in range(len(turns)):
            answers.append(ask(turns[: i + 1], replies, salt, with_candidates=with_candidates))
            replies.append((said or answers)[len(answers) - 1].text)
    return answers


@dataclass
class Reference:
    """Answers by fingerprint of what was asked; missing ones are asked from `endpoint`."""

    endpoint: Endpoint | None
    known: dict[str, tuple[str, list[Answer]]] = field(default_factory=dict)

    def answers(self, asked: Endpoint, scenario: Scenario) -> list[Answer]:
        """The reference's answers to what `asked` is about to be asked.

        Raises:
            EndpointError: a file was given, and it was captured with other videos, questions or lengths.
        """
        key = fingerprint(asked, scenario)
        if key not in self.known:
            if self.endpoint is None:
                raise EndpointError(
                    f"the reference file must hold '{scenario.name}' with these media, questions and --max-tokens; "
                    f"found {sorted({name for name, _ in self.known.values()})} with the ones it was captured with. "
                    "Capture it again with the options of this run."
                )
            self.known[key] = (scenario.name, play(self.endpoint, scenario, with_candidates=True))
        return self.known[key][1]

    @classmethod
    def load(cls, path: Path) -> Reference:
        """Read what `save` wrote."""
        stored = json.loads(path.read_text())
        if stored.get("format") != FILE_FORMAT:
            raise EndpointError(
                f"{path} must have format {FILE_FORMAT}; found {stored.get('format')}: capture it again"
            )
        known = {
            key: (entry["name"], [Answer(**answer) for answer in entry["answers"]])
            for key, entry in stored["scenarios"].items()
        }
        return cls(None, known)

    def save(self, path: Path) -> None:
        """Write all known answers as JSON."""
        scenarios = {
            key: {"name": name, "answers": [asdict(answer) for answer in answers]}
            for key, (name, answers) in self.known.items()
        }
        path.write_text(json.dumps({"format": FILE_FORMAT, "scenarios": scenarios}) + "\n")


def fingerprint(asked: Endpoint, scenario: Scenario) -> str:
    """Equal for equal questions, media contents and lengths, wherever the files lie and whichever server is asked."""
    content = [
        [[turn.question, [_digest(m) for m in turn.videos], [_digest(m) for m in turn.images]] for turn in turns]
        for turns in scenario.conversations
    ]
    shape = asdict(asked.prompt_format) if scenario.api == "generate" else None
    described = json.dumps([scenario.api, content, asked.max_tokens, shape], sort_keys=True)
    return hashlib.sha256(described.encode()).hexdigest()


def find_parting(ours: Answer, theirs: Answer) -> Parting | None:
    """The first difference in token ids, or else in the reason of the end or in the text; None if there is none."""
    if (ours.ids, ours.finish_reason, ours.text) == (theirs.ids, theirs.finish_reason, theirs.text):
        return None
    pairs = enumerate(zip(ours.ids, theirs.ids, strict=False))
    position = next((i for i, (a, b) in pairs if a != b), min(len(ours.ids), len(theirs.ids)))
    our_id, their_id = _at(ours.ids, position), _at(theirs.ids, position)
    gap = None
    if our_id is not None and position < len(theirs.candidates):
        likely = theirs.candidates[position]
        by_id = {token: logprob for logprob, token in likely}
        if our_id in by_id and their_id in by_id:
            gap = by_id[their_id] - by_id[our_id]
    return Parting(position, our_id, their_id, gap, _excerpt(ours, theirs))


def _at(ids: list[int], position: int) -> int | None:
    return ids[position] if position < len(ids) else None


def _excerpt(ours: Answer, theirs: Answer) -> str:
    """Both texts around their first different character, or the reasons of their ends."""
    if ours.text == theirs.text:
        return f"equal text, ended by {ours.finish_reason!r} and {theirs.finish_reason!r}"
    pairs = enumerate(zip(ours.text, theirs.text, strict=False))
    start = next((i for i, (a, b) in pairs if a != b), min(len(ours.text), len(theirs.text)))
    part = slice(max(0, start - 40), start + 40)
    return f"{ours.text[part]!r} against {theirs.text[part]!r}"


def _digest(media: str) -> str:
    return hashlib.sha256(media_url(media).encode()).hexdigest()
