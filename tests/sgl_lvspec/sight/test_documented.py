"""docs/answers.md names everything that a client or an operator can see."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

import sgl_lvspec
from sgl_lvspec.guard import counters as guard_counters
from sgl_lvspec.guard.desk import Attended
from sgl_lvspec.sight import counters
from sgl_lvspec.sight.request_sight import PER_TOKEN, SUMMARY, summary_of
from sgl_lvspec.sight.tally import NAMES
from tests.sgl_lvspec.sight.answering import request

PAGE = (Path(sgl_lvspec.__file__).parents[1] / "docs" / "answers.md").read_text()
METRICS = {
    node.value
    for module in (counters, guard_counters)
    for node in ast.walk(ast.parse(Path(module.__file__).read_text()))
    if isinstance(node, ast.Constant) and isinstance(node.value, str) and node.value.startswith("lvspec:")
}
ATTENDED = Attended(None, None, acts=True).summary()  # type: ignore[arg-type]


@pytest.mark.parametrize("key", sorted({*summary_of(request("a")), *ATTENDED, *PER_TOKEN, *NAMES}))
def test_every_key_is_explained(key: str) -> None:
    assert f"`{key}`" in PAGE


def test_every_metric_is_named() -> None:
    assert len(METRICS) == 16
    assert [name for name in METRICS if f"`{name}`" not in PAGE] == []
    assert f'meta_info["{SUMMARY}"]' in PAGE
