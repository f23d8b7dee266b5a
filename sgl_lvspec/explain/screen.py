"""What a person sees in a terminal: the answer as it comes, what was loosened in it, the strict answer beside it."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Literal

from rich.console import Console
from rich.table import Table
from rich.text import Text

from sgl_lvspec.client.answer import Answer, Token
from sgl_lvspec.client.token_text import UNFINISHED
from sgl_lvspec.client.word_diff import word_diff

# A style never stands alone: loosened tokens carry a number, differences have brackets.
STYLES = {"match": "", "filler": "yellow underline", "shift": "magenta underline", "bonus": "cyan"}
MEANING = {
    "match": "drafted, and the target's own choice",
    "filler": "drafted, not the target's choice: taken for wording",
    "shift": "drafted, not the target's choice here: the same word nearby",
    "bonus": "written by the target itself",
}
CONTEXT = 14  # characters of the answer before a loosened token


class Screen:
    """Writes to the terminal; without one (a pipe) plain text without colours, unless they are asked for."""

    def __init__(self, color: str = "auto", console: Console | None = None) -> None:
        self.console = console or Console(
            force_terminal={"always": True, "never": False}.get(color),
            color_system=None if color == "never" else "auto",
            highlight=False,
        )
        self._num_loosened = 0

    def heading(self, media: str, question: str, model: str, url: str) -> None:
        """Who is asked what."""
        shown = media if len(media) < 80 else media[:60] + "..."
        self.console.print(Text(f"{shown} -> {model} at {url}", style="dim"))
        self.console.print(Text(f"> {question}\n", style="bold"))

    def token(self, token: Token) -> None:
        """A token that has just come."""
        if token.is_loosened:
            self._num_loosened += 1
        self.console.print(_styled(token, self._num_loosened), end="", soft_wrap=True)

    def explained(self, answer: Answer) -> None:
        """Behind the answer: how it ended, the legend with counts, the numbers, the table.

        Raises:
            ValueError: the server said nothing of the answer.
        """
        self.console.print("\n")
        if answer.summary is None:
            raise ValueError(f"An answer must come with its numbers; found none ({ending(answer) or 'no token'}).")
        if cut := ending(answer):
            self.console.print(f"  {cut}\n", style="bold")
        counts = {**answer.summary["accepted"], "bonus": answer.summary["bonus"]}
        for label, count in counts.items():
            self.console.print(Text.assemble(f"  {count:4d} ", (label, STYLES[label]), f"  {MEANING[label]}"))
        self.console.print()
        for line in numbers(answer):
            self.console.print("  " + line, soft_wrap=True)
        rows = list(loosened(answer.tokens))
        if not rows:
            self.console.print("\n  Nothing was loosened: every token is the target's own choice.")
            return
        self.console.print()
        self.console.print(_table(rows))

    def compared(self, asked: Answer, strict: Answer) -> None:
        """The strict answer, with what differs marked: [-strict only-] and {+this answer only+}."""
        self.console.print(Text("\n  Against strict, which is the target's own answer:", style="bold"))
        if asked.text == strict.text:
            self.console.print("  the same words")
        else:
            self.console.print("  [-strict alone-] {+this answer alone+}\n", markup=False)
            self.console.print(_diff(strict.text, asked.text))
        if cut := ending(asked) or ending(strict):
            self.console.print(f"\n  {cut}: what stands at the end of one may have been left out of the other")
        if asked.tokens_per_s and strict.tokens_per_s:
            ratio = asked.tokens_per_s / strict.tokens_per_s
            self.console.print(
                f"\n  {asked.tokens_per_s:.1f} tokens/s against {strict.tokens_per_s:.1f}: {ratio:.2f} times as fast "
                "behind the first token, one answer each"
            )


def ending(answer: Answer) -> str | None:
    """What a person should know of how an answer ended; None where it said all that it had to say."""
    if answer.finish_reason == "stop":
        return None
    return "cut off at --max-tokens" if answer.finish_reason == "length" else "broken off by the server"


def numbers(answer: Answer) -> list[str]:
    """The measurements of an answer, a line each."""
    told = answer.summary or {}
    because = f" ({told['strict_reason']})" if told.get("strict_reason") else ""
    rounds, drafted = told["rounds"], told["drafted"]
    lines = [f"mode {told['mode']}{because}, preset {told['preset']}"]
    if rounds:
        lines.append(f"{rounds} rounds, {drafted} tokens drafted, T = {told['T']:.2f} accepted drafts a round")
    speed = f"{answer.tokens_per_s:.1f} tokens/s" if answer.tokens_per_s else "one piece"
    first = "no token" if answer.first_s is None else f"first token after {answer.first_s:.2f} s"
    lines.append(
        f"{len(answer.tokens)} tokens, {speed}, {first}, prompt {answer.prompt_tokens} tokens of which "
        f"{answer.cached_tokens} cached"
    )
    given_up = told["logprob_given_up"]
    cost = "more than can be told" if given_up is None else f"{given_up:.2f} nats"
    lines.append(f"loosened {100 * (told['divergence'] or 0):.1f} % of the tokens, log-probability given up: {cost}")
    return lines


def loosened(tokens: Iterable[Token]) -> Iterable[tuple[int, str, Token]]:
    """(position from 1, the text before it, token) of each loosened token."""
    before = ""
    for position, token in enumerate(tokens, 1):
        if token.is_loosened:
            yield position, before[-CONTEXT:], token
        before += token.text


def _table(rows: Iterable[tuple[int, str, Token]]) -> Table:
    table = Table(box=None, pad_edge=True, header_style="bold")
    for name, is_number, width in (
        ("#", True, 3), ("token", True, 5), ("why", False, 6), ("behind", True, 10), ("written", False, 8),
        ("target's own", False, 12), ("relevance", True, 9), ("nats", True, 5),
    ):  # fmt: skip
        justify: Literal["left", "right"] = "right" if is_number else "left"
        table.add_column(name, justify=justify, no_wrap=True, min_width=width, style="dim" if name == "behind" else "")
    for number, (position, before, token) in enumerate(rows, 1):
        assert token.label is not None
        table.add_row(
            str(number),
            str(position),
            Text(token.label, style=STYLES[token.label]),
            Text(_harmless(before).replace("\n", "⏎")),
            Text(_visible(token.text), style=STYLES[token.label]),
            Text(_visible(token.choice or "")),
            "" if token.relevance is None else f"{token.relevance:.3f}",
            "infinite" if token.given_up is None else f"{token.given_up:.2f}",
        )
    return table


def _styled(token: Token, number: int) -> Text:
    text = Text(_harmless(token.text), style=STYLES.get(token.label or "", ""))
    return text.append(f"[{number}]", style="bold yellow") if token.is_loosened else text


def _visible(text: str) -> str:
    """A token with its blanks to be seen."""
    if text in ("", UNFINISHED):
        return "(part of a character)"
    return _harmless(text).replace(" ", "␣").replace("\n", "⏎")


def _harmless(text: str) -> str:
    """Without what a terminal would take for a command: a model may write any character."""
    return "".join(char if char in "\n\t" or char.isprintable() else UNFINISHED for char in text)


def _diff(strict: str, asked: str) -> Text:
    shown = Text()
    for where, text in word_diff(strict, asked):
        if where == "same":
            shown.append(_harmless(text))
        elif where == "first":
            shown.append(f"[-{_harmless(text)}-]", style="red")
        else:
            shown.append(f"{{+{_harmless(text)}+}}", style="green")
    return shown
