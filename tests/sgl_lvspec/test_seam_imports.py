"""What the seams read from SGLang's sources is what Python gets when it imports them.

A decorator, a conditional definition or a class built at import time could make the two differ.
"""

from __future__ import annotations

import ast
import inspect
import pkgutil
from typing import Any

import pytest
from sglang.srt.server_args import ServerArgs

from sgl_lvspec.seams import SEAMS, Seam
from sgl_lvspec.seams.expectation import Equals, Lacks, Signature

FIELDS = "sglang.srt.arg_groups.fields."


def _seams(kind: type) -> list[Seam]:
    return [seam for seam in SEAMS if isinstance(seam.expects, kind)]


@pytest.mark.parametrize("seam", _seams(Signature), ids=lambda seam: seam.name)
def test_signatures_are_those_of_the_imported_functions(seam: Seam) -> None:
    function: Any = pkgutil.resolve_name(seam.target)
    if isinstance(function, type):
        function = function.__init__
    function = inspect.unwrap(getattr(function, "__func__", function))
    expected: ast.FunctionDef = ast.parse(f"def f{seam.expects.text}: pass").body[0]  # type: ignore[union-attr, assignment]
    names = [
        part.arg
        for part in (
            *expected.args.args, *filter(None, [expected.args.vararg]), *expected.args.kwonlyargs,
            *filter(None, [expected.args.kwarg]),
        )
    ]  # fmt: skip
    assert list(inspect.signature(function).parameters) == names


def test_defaults_of_fields_are_those_of_real_server_arguments() -> None:
    server_args = ServerArgs(model_path="target")
    fields = {seam.target.rpartition(".")[2]: seam for seam in _seams(Equals) if seam.target.startswith(FIELDS)}
    assert len(fields) >= 35
    found = {name: getattr(server_args, name) for name in fields}
    assert found == {name: ast.literal_eval(seam.expects.text) for name, seam in fields.items()}  # type: ignore[union-attr]


@pytest.mark.parametrize("seam", _seams(Lacks), ids=lambda seam: seam.name)
def test_gaps_are_gaps_of_the_imported_classes(seam: Seam) -> None:
    cls = pkgutil.resolve_name(seam.target)
    assert set(vars(cls)) & set(seam.expects.names) == set()  # type: ignore[union-attr]
