"""What a seam may expect of SGLang, as data: written in Python's own notation, compared as syntax trees.

Knows nothing of SGLang and imports nothing of it; `check` compares, `source` finds.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Signature:
    """A function's parameters, or a class's `__init__`: names, order, kinds and defaults, without annotations."""

    text: str  # as in "(batch, draft_tokens, *, topk, device='cuda')"


@dataclass(frozen=True, slots=True)
class Contains:
    """Pieces of code that occur in the target, each after the one before it.

    A piece is one expression or some consecutive statements. `...` stands for any expression, as the last argument of
    a call for all further arguments, and as a statement for any statements.
    """

    pieces: tuple[str, ...]

    def __init__(self, *pieces: str) -> None:
        object.__setattr__(self, "pieces", pieces)


@dataclass(frozen=True, slots=True)
class Avoids:
    """Pieces of code that do not occur in the target: a gap of SGLang that we fill."""

    pieces: tuple[str, ...]

    def __init__(self, *pieces: str) -> None:
        object.__setattr__(self, "pieces", pieces)


@dataclass(frozen=True, slots=True)
class Has:
    """Names (separated by spaces) that a class with its bases or a module defines, instance attributes among them."""

    names: tuple[str, ...]

    def __init__(self, *names: str) -> None:
        object.__setattr__(self, "names", tuple(name for part in names for name in part.split()))


@dataclass(frozen=True, slots=True)
class Lacks:
    """Names (separated by spaces) that a class itself does not define: what we add, until SGLang does."""

    names: tuple[str, ...]

    def __init__(self, *names: str) -> None:
        object.__setattr__(self, "names", tuple(name for part in names for name in part.split()))


@dataclass(frozen=True, slots=True)
class Extends:
    """The bases of a class, as its source names them."""

    bases: tuple[str, ...]

    def __init__(self, *bases: str) -> None:
        object.__setattr__(self, "bases", bases)


@dataclass(frozen=True, slots=True)
class Equals:
    """The value that a name is assigned, as source."""

    text: str


Expectation = Signature | Contains | Avoids | Has | Lacks | Extends | Equals


@dataclass(frozen=True, slots=True)
class Seam:
    """One thing about SGLang that the plugin relies on.

    Attributes:
        target: dotted name of a module, class, function or value, re-exports allowed.
        expects: what must be true of it.
        used_in: our file, relative to `sgl_lvspec/`.
        why: what breaks when it no longer is.
    """

    target: str
    expects: Expectation
    used_in: str
    why: str

    @property
    def name(self) -> str:
        """Readable and unique enough for a test's id."""
        kind = type(self.expects).__name__.lower()
        detail = "+".join(getattr(self.expects, "names", ()))
        return f"{self.target.removeprefix('sglang.').removeprefix('srt.')}:{kind}{':' + detail if detail else ''}"
