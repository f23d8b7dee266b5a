"""What one user does: which media, which questions, how long the pauses, and whether the answer is heard to its end.

A conversation is drawn from a seeded generator, so that every arm meets the same one.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass

from loadtest.media import IMAGE_QUESTIONS, Library, Medium

MAX_TOKENS = 128
SMALL_TALK = ("Hello, who are you?", "What can you do?", "Count from one to ten.", "Tell me a short story.")


@dataclass(frozen=True)
class Conversation:
    """One user's visit.

    Attributes:
        key: names it; the same in every arm.
        scenario: name of the kind of user, a key of `SCENARIOS`.
        media: sent with the first question.
        questions: one a turn; each waits for the answer to the one before.
        pause_s: between an answer and the next question.
        read_s: pause after each piece of an answer: a slow reader.
        hang_up_after: tokens after which the connection is closed; None hears the answer out.
    """

    key: str
    scenario: str
    media: tuple[Medium, ...]
    questions: tuple[str, ...]
    pause_s: float = 0.0
    read_s: float = 0.0
    hang_up_after: int | None = None
    max_tokens: int = MAX_TOKENS


class Draw:
    """Draws conversations; each fresh clip is handed out once before any is handed out again."""

    def __init__(self, library: Library, seed: int) -> None:
        self.library = library
        self.rng = random.Random(f"conversations {seed}")
        self._next_fresh = 0

    def fresh(self) -> Medium:
        """A clip that nobody has asked about, as long as there is one."""
        clips = self.library.fresh or self.library.popular
        self._next_fresh += 1
        return clips[(self._next_fresh - 1) % len(clips)]

    def conversation(self, scenario: str, key: str) -> Conversation:
        """One visit of that kind of user."""
        return SCENARIOS[scenario](self, key)


def single(draw: Draw, key: str) -> Conversation:
    """One question about a clip of the user's own: two in three ask for a description."""
    clip = draw.fresh()
    question = clip.questions[0] if draw.rng.random() < 2 / 3 else draw.rng.choice(clip.questions)
    return Conversation(key, "single", (clip,), (question,))


def chat(draw: Draw, key: str) -> Conversation:
    """Three or four questions about one clip, with a short pause for reading and typing."""
    clip = draw.fresh()
    first, *others = dict.fromkeys((*clip.questions[:1], "How many objects are there?", "What happens first?",
                                    "What color is the background?"))  # fmt: skip
    asked = draw.rng.sample(others, draw.rng.randint(2, len(others)))
    return Conversation(key, "chat", (clip,), (first, *asked), pause_s=draw.rng.uniform(0.2, 0.8))


def popular(draw: Draw, key: str) -> Conversation:
    """One question about one of a few clips that everybody watches."""
    clip = draw.rng.choice(draw.library.popular)
    return Conversation(key, "popular", (clip,), (draw.rng.choice(clip.questions),))


def mixed(draw: Draw, key: str) -> Conversation:
    """Text alone, an image, or a clip."""
    kind = draw.rng.choices(("text", "image", "video"), (0.3, 0.2, 0.5))[0]
    if kind == "text":
        return Conversation(key, "mixed", (), (draw.rng.choice(SMALL_TALK),))
    if kind == "image" and draw.library.images:
        still = draw.rng.choice(draw.library.images)
        return Conversation(key, "mixed", (still,), (draw.rng.choice(still.questions or IMAGE_QUESTIONS),))
    clip = draw.fresh()
    return Conversation(key, "mixed", (clip,), (draw.rng.choice(clip.questions),))


def slow(draw: Draw, key: str) -> Conversation:
    """Takes a breath after each piece of the answer; the server must neither wait for it nor lose what it wrote."""
    clip = draw.rng.choice(draw.library.popular)
    return Conversation(key, "slow", (clip,), (clip.questions[0],), read_s=0.15)


def hang_up(draw: Draw, key: str) -> Conversation:
    """Closes the connection in the middle of the answer."""
    clip = draw.rng.choice(draw.library.popular)
    return Conversation(key, "hang-up", (clip,), (clip.questions[0],), hang_up_after=draw.rng.randint(5, 30))


SCENARIOS: dict[str, Callable[[Draw, str], Conversation]] = {
    "single": single,
    "chat": chat,
    "popular": popular,
    "mixed": mixed,
    "slow": slow,
    "hang-up": hang_up,
}
