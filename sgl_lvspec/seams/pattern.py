"""Finds pieces of code in a syntax tree, whatever their layout, comments and annotations."""

from __future__ import annotations

import ast
from collections.abc import Iterator, Sequence

Position = tuple[int, int]
_GAP = ast.Expr(ast.Constant(...))
_IGNORED = ("ctx", "type_comment", "kind", "returns", "annotation", "decorator_list", "type_params")


def positions(piece: str, tree: ast.AST) -> Iterator[Position]:
    """Where in the tree the piece occurs: (line, column) of each occurrence, in source order.

    Args:
        piece: an expression or consecutive statements; `...` as in `expectation.Contains`.
    """
    wanted = ast.parse(piece).body
    if len(wanted) == 1 and isinstance(wanted[0], ast.Expr):
        expression = wanted[0].value
        found = [
            (node.lineno, node.col_offset)
            for node in ast.walk(tree)
            if isinstance(node, ast.expr) and _equal(expression, node)
        ]
    else:
        found = [
            (body[start].lineno, body[start].col_offset)
            for body in _bodies(tree)
            for start in range(len(body))
            if _equal_bodies([*wanted, _GAP], body[start:])
        ]
    yield from sorted(found)


def in_order(pieces: tuple[str, ...], tree: ast.AST) -> str | None:
    """The first piece that does not occur after the one before it, or None when all do."""
    after: Position = (0, -1)
    for piece in pieces:
        following = [place for place in positions(piece, tree) if place > after]
        if not following:
            return piece
        after = following[0]
    return None


def _bodies(tree: ast.AST) -> Iterator[list[ast.stmt]]:
    for node in ast.walk(tree):
        for _, value in ast.iter_fields(node):
            if isinstance(value, list) and value and isinstance(value[0], ast.stmt):
                yield value


def _is_gap(node: object) -> bool:
    if isinstance(node, ast.Expr):
        node = node.value
    return isinstance(node, ast.Constant) and node.value is Ellipsis


def _equal_bodies(wanted: Sequence[ast.stmt], body: Sequence[ast.stmt]) -> bool:
    """Whether the statements are the wanted ones; a gap stands for any number of them."""
    if not wanted:
        return not body
    if _is_gap(wanted[0]):
        return any(_equal_bodies(wanted[1:], body[skip:]) for skip in range(len(body) + 1))
    return bool(body) and _equal(wanted[0], body[0]) and _equal_bodies(wanted[1:], body[1:])


def _equal(wanted: object, found: object) -> bool:
    if _is_gap(wanted) and isinstance(found, ast.expr):
        return True
    if isinstance(wanted, ast.AST) and isinstance(found, ast.AST):
        if type(wanted) is not type(found):
            return False
        if isinstance(wanted, ast.Call) and isinstance(found, ast.Call) and wanted.args and _is_gap(wanted.args[-1]):
            return _equal_call_start(wanted, found)
        return all(
            _equal(value, getattr(found, name, None)) for name, value in ast.iter_fields(wanted) if name not in _IGNORED
        )
    if isinstance(wanted, list) and isinstance(found, list):
        if any(isinstance(node, ast.stmt) and _is_gap(node) for node in wanted):
            return _equal_bodies(wanted, found)
        return len(wanted) == len(found) and all(map(_equal, wanted, found))
    return wanted == found


def _equal_call_start(wanted: ast.Call, found: ast.Call) -> bool:
    """`f(a, ..., k=b)`: the leading arguments and the named ones are these, whatever else is passed."""
    leading = wanted.args[:-1]
    named = {keyword.arg: keyword.value for keyword in found.keywords}
    return (
        _equal(wanted.func, found.func)
        and len(leading) <= len(found.args)
        and all(map(_equal, leading, found.args))
        and all(keyword.arg in named and _equal(keyword.value, named[keyword.arg]) for keyword in wanted.keywords)
    )
