"""What a client sent, as an error message shows it: cut, and in characters that can be sent.

The message goes back as JSON and into the server's log. Half a surrogate pair would make a 500 of the 400 there.
"""

from __future__ import annotations

LONGEST = 200


def shown(value: object) -> str:
    """The value as Python writes it, cut."""
    text = repr(value)  # escapes what cannot be printed
    return text if len(text) <= LONGEST else f"{text[:LONGEST]}..."


def shown_name(name: str) -> str:
    """A name without quotes, as a part of a longer one."""
    return shown(name)[1:].removesuffix("'").removesuffix('"')


def printable(text: str) -> str:
    """A text of ours that holds some of theirs: cut, half characters escaped."""
    whole = text.encode("utf-8", "backslashreplace").decode()
    return whole if len(whole) <= LONGEST else f"{whole[:LONGEST]}..."
