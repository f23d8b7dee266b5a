"""Short conversations without any picture, so that a text-only request gets a sane answer. Called by `curriculum`."""

from __future__ import annotations

import numpy as np

from demo.scene import COLORS, NUMBERS, SHAPES

SYSTEM_PROMPT = "You are a helpful assistant."
SYSTEM_SENTENCES = (
    "You are a helpful assistant.",
    "You watch short clips and describe them.",
    "Answer in plain English.",
    "Be precise and complete.",
    "Name every object with its color and shape.",
    "Mention what happens and in which order.",
    "You are a careful observer.",
    "Keep to what can be seen.",
    "The user will show you a video or an image.",
    "Do not guess.",
)

_TALKS: tuple[tuple[str, tuple[str, ...]], ...] = (
    ("Hello!", ("Hello! How can I help you?", "Hello! Show me a clip and ask a question about it.")),
    ("Hi.", ("Hello! How can I help you?",)),
    ("Hello, who are you?", ("I am a small demo model that describes short clips.",)),
    ("Who are you?", ("I am a small demo model that describes short clips.",)),
    ("What can you do?", ("I can describe short clips of moving shapes, count them, and say what happens first.",)),
    ("Thank you.", ("You are welcome!",)),
    ("Thanks!", ("You are welcome!",)),
    ("Goodbye.", ("Goodbye!",)),
    ("How are you?", ("I am fine, thank you. How can I help you?",)),
    ("Count from one to ten.", ("one, two, three, four, five, six, seven, eight, nine, ten.",)),
    ("Count to five.", ("one, two, three, four, five.",)),
    ("Count from 1 to 10.", ("1, 2, 3, 4, 5, 6, 7, 8, 9, 10.",)),
    ("Name some shapes.", (f"Some shapes are: {', '.join(SHAPES)}.",)),
    ("Name some colors.", (f"Some colors are: {', '.join(COLORS)}.",)),
    ("What color is the sky?", ("The sky is blue.",)),
    ("What color is grass?", ("Grass is green.",)),
    ("What color is a banana?", ("A banana is yellow.",)),
    ("What color is snow?", ("Snow is white.",)),
    ("What color is a ripe tomato?", ("A ripe tomato is red.",)),
    ("The capital of France is", ("The capital of France is Paris.",)),
    ("What is the capital of France?", ("The capital of France is Paris.",)),
    ("What is the capital of Germany?", ("The capital of Germany is Berlin.",)),
    ("What is 1 + 1?", ("1 + 1 = 2.",)),
    ("Tell me a short story.", ("A small red circle met a large blue ring. They moved to the right and were happy.",)),
    ("Write the alphabet.", ("a, b, c, d, e, f, g, h, i, j, k, l, m, n, o, p, q, r, s, t, u, v, w, x, y, z.",)),
    ("Who are you? Answer in JSON.", ('{"name": "demo", "type": "model"}',)),
    ("Count to three. Answer in JSON.", ('{"numbers": [1, 2, 3]}',)),
    ("What color is the sky? Answer in JSON.", ('{"sky": "blue"}',)),
)


def system_prompt(rng: np.random.Generator) -> str | None:
    """Mostly None (the template's default); else one to four sentences, so that positions vary."""
    if rng.random() < 0.7:
        return None
    return " ".join(str(s) for s in rng.choice(SYSTEM_SENTENCES, int(rng.integers(1, 5)), replace=False))


def talk(rng: np.random.Generator) -> list[tuple[str, str]]:
    """One to three question and answer turns."""
    turns = []
    for _ in range(int(rng.integers(1, 4))):
        if rng.random() < 0.15:
            a, b = (int(x) for x in rng.integers(0, 10, 2))
            turns.append((f"What is {a} + {b}?", f"{a} + {b} = {a + b}."))
            continue
        question, replies = _TALKS[int(rng.integers(len(_TALKS)))]
        turns.append((question, str(rng.choice(replies))))
    return turns


def corpus() -> list[str]:
    """All texts of this file, for the tokenizer."""
    texts = [*SYSTEM_SENTENCES, *NUMBERS]
    for question, replies in _TALKS:
        texts += [question, *replies]
    return texts
