"""HTML tables that scroll inside their own frame on a narrow screen, and can be reached by keyboard."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from html import escape
from typing import Any


@dataclass(frozen=True)
class Column:
    """A heading, and the cell of a row."""

    heading: str
    cell: Callable[[Mapping[str, Any]], object]
    is_words: bool = False


def table(caption: str, columns: Sequence[Column], rows: Iterable[Mapping[str, Any]]) -> str:
    """The first column heads its row."""
    heads = "".join(f'<th scope="col"{_words(column)}>{escape(column.heading)}</th>' for column in columns)
    lines = []
    for row in rows:
        first, *others = columns
        cells = "".join(f"<td{_words(column)}>{escape(str(column.cell(row)))}</td>" for column in others)
        lines.append(f'<tr><th scope="row">{escape(str(first.cell(row)))}</th>{cells}</tr>')
    return (
        f'<div class="scroll" role="region" aria-label="{escape(caption)}" '
        f'tabindex="0"><table><caption>{escape(caption)}'
        f"</caption><thead><tr>{heads}</tr></thead><tbody>{''.join(lines)}</tbody></table></div>"
    )


def _words(column: Column) -> str:
    return ' class="words"' if column.is_words else ""
