"""The interchangeable wordings of every phrase, and the `Style` that prefers one of them.

A style maps (slot, context) to a preferred wording. Most slots are loose: two models of different style agree on the
facts and disagree on the words. Some are nearly fixed, so that "uncertain word" and "unimportant word" are not the
same thing. Called by `answers`.
"""

from __future__ import annotations

import zlib

import numpy as np

LOOSE = 0.66  # probability of the preferred wording
FIRM = 0.97
FIRM_SLOTS = frozenset({"noun", "relative", "bg", "still_end", "first"})

SLOTS: dict[str, tuple[str, ...]] = {
    "open": (
        "The video shows {n} {noun}",
        "In this clip, we can see {n} {noun}",
        "This short clip features {n} {noun}",
        "The scene contains {n} {noun}",
        "There {be} {n} {noun} in the video,",
        "We can observe {n} {noun}",
    ),
    "noun": ("object", "shape", "figure", "item"),
    "bg": (
        "on a {bg} background.",
        "against a plain {bg} backdrop.",
        "over a {bg} surface.",
        "in front of a {bg} wall.",
    ),
    "nth0": ("First, there is a", "The first is a", "To begin with, we see a", "Most notably, there is a"),
    "nth1": ("Next, there is a", "The second is a", "In addition, we see a", "Besides that, there is a"),
    "nth2": ("Finally, there is a", "The third is a", "Lastly, we see a", "The remaining shape is a"),
    "adjective": ("", "solid ", "bright ", "plain ", "flat "),
    "relative": (" that", " which", "; it", ", and it"),
    "move": ("moves", "drifts", "glides", "slides", "travels", "floats"),
    "manner": ("slowly", "steadily", "smoothly", "gently", "gradually"),
    "move_end": ("", " across the frame", " through the scene", " over time", " without stopping"),
    "rest": ("stays", "remains", "sits", "stands"),
    "rest_end": ("", " the whole time", " in its place", " throughout the clip"),
    "when": ("Midway through the clip,", "Partway through,", "After a moment,", "At some point,", "During the video,"),
    "first": ("First,", "At first,", "Early in the clip,"),
    "later": ("Later on,", "After that,", "Then,", "A little later,", "Shortly afterwards,"),
    "appears": ("appears in the frame", "appears suddenly", "appears out of nowhere", "comes into view"),
    "vanishes": (
        "vanishes from view",
        "vanishes completely",
        "disappears all of a sudden",
        "disappears and does not return",
    ),
    "bounces": ("bounces off the edge", "bounces back the other way", "bounces against the border"),
    "turns": ("turns {c}", "changes to {c}", "becomes {c}"),
    "passes": ("passes {r} the {o}",),
    "nothing": (
        "Nothing special happens to it.",
        "Nothing else happens to it.",
        "No event involves it.",
        "Apart from that, it does not change.",
    ),
    "quiet": ("Nothing special happens in the clip.", "No event takes place.", "The clip has no particular event."),
    "close": (
        "Nothing else changes during the clip.",
        "The rest of the scene stays the same.",
        "No other events take place.",
        "Overall, the scene is simple and calm.",
        "The background does not change at any time.",
    ),
    "count": ("There {be} {n} {noun}:", "I count {n} {noun}:", "The clip has {n} {noun}:", "We see {n} {noun}:"),
    "color": ("It is a {x}", "That is a {x}", "The clip shows a {x}"),
    "at_first": (" at first, and it", " to begin with; then it", " in the beginning, but it"),
    "bg_answer": ("The background is {bg}.", "The background is plain {bg}.", "It is a {bg} background."),
    "yes": ("Yes, there is a {x}.", "Yes, the clip shows a {x}.", "Yes, we can see a {x}."),
    "no": ("No, there is nothing {c} in the clip.", "No, nothing {c} can be seen.", "No, the clip shows nothing {c}."),
    "single": ("Only this happens:", "There is a single event:", "Just this takes place:"),
    "image_open": (
        "The image shows {n} {noun}",
        "In this picture, we can see {n} {noun}",
        "This still frame contains {n} {noun}",
    ),
    "still_end": ("Nothing else can be seen.", "That is all there is.", "The rest of the picture is empty."),
    "compare": ("The first video shows", "In the first clip, we see"),
    "compare_next": ("The second video shows", "In the second clip, we see"),
}


class Style:
    """A writer's habits: the preferred wording of every (slot, context).

    Args:
        seed: picks the habits.
        shift: share of the habits redrawn (with `shift_seed`), 0..1: how a second writer differs from the first.
        steady: always use the preferred wording, whatever `rng` says.
    """

    def __init__(self, seed: int = 1, shift: float = 0.0, shift_seed: int = 7, *, steady: bool = False) -> None:
        self.seed, self.shift, self.shift_seed, self.steady = seed, shift, shift_seed, steady
        self._habits: dict[tuple[str, str], int] = {}

    def _habit(self, slot: str, context: str) -> int:
        key = (slot, context)
        if key not in self._habits:
            count = len(SLOTS[slot])
            choice = int(np.random.default_rng(zlib.crc32(f"{self.seed}|{slot}|{context}".encode())).integers(count))
            other = np.random.default_rng(zlib.crc32(f"shift {self.shift_seed}|{slot}|{context}".encode()))
            if count > 1 and other.random() < self.shift:
                choice = (choice + 1 + int(other.integers(count - 1))) % count
            self._habits[key] = choice
        return self._habits[key]

    def pick(self, slot: str, context: object, rng: np.random.Generator) -> str:
        """One wording of `slot`: the habit of this context, or now and then another."""
        options = SLOTS[slot]
        choice = self._habit(slot, str(context))
        firmness = FIRM if slot in FIRM_SLOTS else LOOSE
        if not self.steady and len(options) > 1 and rng.random() > firmness:
            choice = (choice + 1 + int(rng.integers(len(options) - 1))) % len(options)
        return options[choice]
