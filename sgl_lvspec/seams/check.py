"""Compares a seam with SGLang's sources and says in one line what changed and where that matters."""

from __future__ import annotations

import ast
from collections.abc import Iterable
from importlib.metadata import PackageNotFoundError, version

from sgl_lvspec import SGLANG_TESTED
from sgl_lvspec.seams import pattern
from sgl_lvspec.seams.expectation import Avoids, Contains, Equals, Extends, Has, Lacks, Seam, Signature
from sgl_lvspec.seams.source import Found, NotFoundInSource, SourceTree, own_names


def check(seam: Seam, tree: SourceTree) -> str | None:
    """What changed at the seam and where the plugin uses it; None when all is as expected."""
    try:
        found = tree.find(seam.target)
        change = _difference(seam, found, tree)
    except NotFoundInSource as error:
        change = f"it is gone: {error}"
    except SyntaxError as error:
        change = f"its file does not parse: {error}"
    if change is None:
        return None
    return f"{seam.target}: {change}. Used in sgl_lvspec/{seam.used_in}: {seam.why}."


def find_broken(seams: Iterable[Seam], tree: SourceTree) -> list[str]:
    """Messages of all seams that no longer hold."""
    return [message for seam in seams if (message := check(seam, tree)) is not None]


def version_misfit() -> str | None:
    """Why the installed SGLang is not the release that the seams were read from; None when it is."""
    try:
        found = version("sglang")
    except PackageNotFoundError:
        return f"sglang is not installed; install sglang=={SGLANG_TESTED}"
    if found == SGLANG_TESTED:
        return None
    return f"found sglang {found}; the seams are those of {SGLANG_TESTED}"


def _difference(seam: Seam, found: Found, tree: SourceTree) -> str | None:
    node = found.node
    match seam.expects:
        case Signature(text):
            return _signature_difference(text, found, tree)
        case Contains(pieces):
            missing = pattern.in_order(pieces, node)
            place = "" if len(pieces) == 1 else f" (as number {pieces.index(missing or pieces[0]) + 1} in this order)"
            return None if missing is None else f"it no longer contains `{missing}`{place}"
        case Avoids(pieces):
            present = [piece for piece in pieces if any(True for _ in pattern.positions(piece, node))]
            return f"it now contains `{present[0]}`" if present else None
        case Has(names):
            missing_names = sorted(set(names) - tree.names(found))
            return f"it no longer has {', '.join(missing_names)}" if missing_names else None
        case Lacks(names):
            if not isinstance(node, ast.ClassDef):
                return "it is no longer a class"
            added = sorted(set(names) & own_names(node))
            return f"it now has {', '.join(added)} of its own" if added else None
        case Extends(bases):
            ours = tuple(ast.unparse(base) for base in node.bases) if isinstance(node, ast.ClassDef) else ()
            return None if ours == bases else f"its bases are ({', '.join(ours)}), expected ({', '.join(bases)})"
        case Equals(text):
            value = node.value if isinstance(node, ast.Assign | ast.AnnAssign) else None
            source = "no value" if value is None else ast.unparse(value)
            return None if source == _normal(text) else f"it is {source}, expected {_normal(text)}"


def _signature_difference(text: str, found: Found, tree: SourceTree) -> str | None:
    node = found.node
    if isinstance(node, ast.ClassDef):
        node = tree.find(f"{found.module}.{node.name}.__init__").node
    if not isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
        return "it is no longer a function"
    ours, expected = parameters(node), parameters(_function(text))
    return None if ours == expected else f"its parameters are {ours}, expected {expected}"


def parameters(node: ast.FunctionDef | ast.AsyncFunctionDef) -> str:
    """A function's parameters in one spelling, without annotations."""
    every = [*node.args.posonlyargs, *node.args.args, *node.args.kwonlyargs, node.args.vararg, node.args.kwarg]
    annotations = [(part, part.annotation) for part in every if part is not None]
    for part, _ in annotations:
        part.annotation = None
    try:
        return f"({ast.unparse(node.args)})"
    finally:
        for part, annotation in annotations:
            part.annotation = annotation


def _function(text: str) -> ast.FunctionDef:
    node = ast.parse(f"def f{text}: pass").body[0]
    assert isinstance(node, ast.FunctionDef), f"{text} must be a parameter list"
    return node


def _normal(text: str) -> str:
    return ast.unparse(ast.parse(text, mode="eval"))
