"""The checker of seams notices every kind of change, and only changes."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

from sgl_lvspec.seams import Seam, SourceTree, check, find_broken
from sgl_lvspec.seams.expectation import Avoids, Contains, Equals, Extends, Has, Lacks, Signature

SOURCE = '''
import enum
from typing import TYPE_CHECKING
from pkg.parts import Base as Renamed, VALUE
from pkg.parts import *

if TYPE_CHECKING:
    from elsewhere import Nothing

LIMIT: int = 1_000


class Worker(Renamed):
    """A worker."""

    rate: float = 0.5

    def __init__(self, model, *, topk: int = 1, **kwargs):
        self.model = model

    @classmethod
    def idle(cls, topk: int, device: str = "cpu") -> "Worker":
        return cls(topk)


def sample(logits, batch, mask=None):
    # penalties first
    logits.add_(batch.penalties.repeat(2, dim=0))
    if mask is not None:
        mask.apply(logits)
        count = 1
    predict = logits.argmax(dim=-1)
    return predict


try:
    from fast import op
except ImportError:

    def op(x: int) -> int:
        return x
'''

PARTS = """
VALUE = "a" if True else "b"
OTHER = 2


class Base:
    def step(self):
        self.done = True
"""

HELD = (
    Seam("pkg.worker.Worker", Signature("(self, model, *, topk=1, **kwargs)"), "x.py", "class means __init__"),
    Seam("pkg.worker.Worker.idle", Signature("(cls, topk, device='cpu')"), "x.py", "annotations do not count"),
    Seam("pkg.worker.Worker", Extends("Renamed"), "x.py", "bases"),
    Seam("pkg.worker.Worker", Has("model idle rate step done"), "x.py", "own, inherited and instance attributes"),
    Seam("pkg.worker.Worker", Lacks("step missing"), "x.py", "an inherited name is not its own"),
    Seam("pkg.worker.Worker.step", Contains("self.done = True"), "x.py", "a method of a base in another module"),
    Seam("pkg.worker.Worker.rate", Equals("0.5"), "x.py", "class attribute"),
    Seam("pkg.worker.LIMIT", Equals("1000"), "x.py", "spelling of a number"),
    Seam("pkg.worker.OTHER", Equals("2"), "x.py", "star import"),
    Seam("pkg.worker", Has("Worker LIMIT op TYPE_CHECKING"), "x.py", "names of a module"),
    Seam("pkg.worker.op", Signature("(x)"), "x.py", "either branch"),
    Seam("pkg.worker", Contains("def op(x):\n    return x"), "x.py", "a function without its annotations"),
    Seam("pkg.parts.VALUE", Equals("'a' if True else 'b'"), "x.py", "an expression"),
    Seam(
        "pkg.worker.sample",
        Contains("logits.add_(batch.penalties.repeat(...))", "mask.apply(logits)", "return predict"),
        "x.py",
        "order",
    ),
    Seam("pkg.worker.sample", Contains("if mask is not None:\n    ...\n    count = 1"), "x.py", "gap of statements"),
    Seam("pkg.worker.sample", Contains("mask.apply(logits)\ncount = 1"), "x.py", "consecutive statements"),
    Seam("pkg.worker.sample", Contains("... .argmax(dim=-1)"), "x.py", "any expression"),
    Seam("pkg.worker.sample", Contains("batch.penalties.repeat(..., dim=0)"), "x.py", "named arguments among others"),
    Seam("pkg.worker.sample", Avoids("logits.softmax(...)", "mask.apply(batch)"), "x.py", "absent"),
)  # fmt: skip

# What is replaced in SOURCE or PARTS, by what, and the seams of HELD that must then say so.
MUTATIONS = (
    ("model, *, topk: int = 1", "model, *, topk: int = 2", ["class means __init__"]),
    ("model, *, topk", "model, topk", ["class means __init__"]),
    ('topk: int, device: str = "cpu"', 'device: str = "cpu", topk: int = 1', ["annotations do not count"]),
    ("class Worker(Renamed)", "class Worker(Renamed, enum.Enum)", ["bases"]),
    ("self.model = model", "self.runner = model", ["own, inherited and instance attributes"]),
    (
        "self.done = True",
        "self.over = True",
        ["own, inherited and instance attributes", "a method of a base in another module"],
    ),
    ("    rate: float = 0.5", "    rate: float = 0.5\n    missing = 1", ["an inherited name is not its own"]),
    ("rate: float = 0.5", "rate: float = 0.6", ["class attribute"]),
    ("LIMIT: int = 1_000", "LIMIT: int = 1_001", ["spelling of a number"]),
    ("OTHER = 2", "OTHER = 3", ["star import"]),
    ("def op(x: int)", "def op(x, y)", ["either branch", "a function without its annotations"]),
    ("def op(x: int)", "def op(y: int)", ["either branch", "a function without its annotations"]),
    ("mask.apply(logits)\n ", "mask.apply(logits, 1)\n ", ["order", "consecutive statements"]),
    ("if True else", "if False else", ["an expression"]),
    ("logits.add_(batch", "logits.sub_(batch", ["order"]),
    ("count = 1", "count = 2", ["gap of statements", "consecutive statements"]),
    ("        mask.apply(logits)\n", "", ["order", "consecutive statements"]),
    ("argmax(dim=-1)", "argmax(dim=0)", ["any expression"]),
    ("(2, dim=0)", "(2, dim=1)", ["named arguments among others"]),
    ("mask.apply(logits)\n ", "mask.apply(batch)\n ", ["order", "consecutive statements", "absent"]),
    ("predict = logits.argmax(dim=-1)\n    return predict", "return logits.argmax(dim=-1)", ["order"]),
)  # fmt: skip


def _tree(folder: Path, worker: str = SOURCE, parts: str = PARTS) -> SourceTree:
    package = folder / "pkg"
    package.mkdir(parents=True)
    (package / "__init__.py").write_text("")
    (package / "worker.py").write_text(worker)
    (package / "parts.py").write_text(parts)
    return SourceTree(folder)


def test_checker_accepts_what_is_as_expected(tmp_path: Path) -> None:
    assert find_broken(HELD, _tree(tmp_path)) == []


@pytest.mark.parametrize(("old", "new", "noticed"), MUTATIONS, ids=[old.strip() for old, _, _ in MUTATIONS])
def test_checker_detects_a_change(tmp_path: Path, old: str, new: str, noticed: list[str]) -> None:
    assert (SOURCE + PARTS).count(old) == 1, "the mutation must hit one place"
    tree = _tree(tmp_path, SOURCE.replace(old, new), PARTS.replace(old, new))
    assert [seam.why for seam in HELD if check(seam, tree) is not None] == noticed


def test_pieces_in_another_order_are_a_change(tmp_path: Path) -> None:
    tree = _tree(tmp_path)
    pieces = ("mask.apply(logits)", "logits.add_(...)")
    message = check(Seam("pkg.worker.sample", Contains(*pieces), "x.py", "mask, then penalties"), tree)
    assert message is not None
    assert "it no longer contains `logits.add_(...)` (as number 2 in this order)" in message
    assert check(Seam("pkg.worker.sample", Contains(*reversed(pieces)), "x.py", "the other way"), tree) is None


def test_comments_layout_and_annotations_are_no_change(tmp_path: Path) -> None:
    rewritten = ast.unparse(ast.parse(SOURCE)).replace("topk: int", "topk: 'anything'")
    assert find_broken(HELD, _tree(tmp_path, rewritten)) == []


@pytest.mark.parametrize(
    ("target", "reason"),
    [
        ("pkg.worker.Gone", "pkg.worker defines no Gone"),
        ("pkg.worker.Worker.gone", "class Worker of pkg.worker has no gone"),
        ("pkg.gone.Worker", "pkg defines no gone"),
        ("other.Worker", "there is no module other"),
    ],
)
def test_a_name_that_is_gone_is_said_with_our_file(tmp_path: Path, target: str, reason: str) -> None:
    message = check(Seam(target, Has("x"), "drafting/chain.py", "the chain calls it"), _tree(tmp_path))
    assert message == f"{target}: it is gone: {reason}. Used in sgl_lvspec/drafting/chain.py: the chain calls it."


def test_message_says_what_was_found_and_expected(tmp_path: Path) -> None:
    seam = Seam("pkg.worker.sample", Signature("(logits, batch)"), "verification/commit.py", "our hook gets these")
    assert check(seam, _tree(tmp_path)) == (
        "pkg.worker.sample: its parameters are (logits, batch, mask=None), expected (logits, batch). "
        "Used in sgl_lvspec/verification/commit.py: our hook gets these."
    )


def test_what_a_release_builds_on_is_looked_for_beside_it(tmp_path: Path) -> None:
    """An unpacked SGLang holds no torch, of whose modules its own are."""
    release, installed = tmp_path / "release", tmp_path / "installed"
    for folder, text in ((release / "pkg", "from base import Module\n\n\nclass Layer(Module):\n    pass\n"),
                         (installed / "base", "class Module:\n    def hook(self):\n        pass\n"),
                         (installed / "pkg", "class Layer:\n    other = 1\n")):  # fmt: skip
        folder.mkdir(parents=True)
        (folder / "__init__.py").write_text(text)
    has_hook = Seam("pkg.Layer", Has("hook"), "worker.py", "why")
    assert check(has_hook, SourceTree(release)) is not None
    assert check(has_hook, SourceTree(release, installed)) is None
    assert check(Seam("pkg.Layer", Has("other"), "worker.py", "why"), SourceTree(release, installed)) is not None
