"""LVSPEC answers everything that SGLang asks of an algorithm, in the way that SGLang asks."""

from __future__ import annotations

import ast
import inspect
import re
from collections.abc import Iterator
from pathlib import Path

import pytest
from sglang.srt.speculative.spec_info import SpeculativeAlgorithm
from sglang.srt.speculative.spec_registry import CustomSpecAlgo, get_spec

from sgl_lvspec import algorithm, startup
from sgl_lvspec.algorithm import LVSpecAlgorithm
from sgl_lvspec.seams import SourceTree

# What SGLang calls a variable or attribute that holds an algorithm.
HOLDERS = ("spec_algorithm", "spec_algo", "speculative_algorithm", "algo")
MENTION = re.compile(rf"\b(?:{'|'.join(HOLDERS)}|from_string\([^)]*\))\s*\.\w")
# Folders where `algo` is something else; and `upper`, of the name before it is looked up.
ELSEWHERE = ("distributed/device_communicators", "dllm/algorithm")
# Asked behind a test for another algorithm's name: `if cfg.speculative_algorithm not in ("EAGLE", "EAGLE3"): return`.
NEVER_ASKED_OF_US = [("get_platform_worker_cls", "speculative/adaptive_spec_params.py")]


def _questions() -> Iterator[tuple[str, str]]:
    """(attribute, file) for everything that SGLang reads off an algorithm."""
    root = SourceTree.installed().root / "sglang" / "srt"
    for path in root.rglob("*.py"):
        name = path.relative_to(root).as_posix()
        source = path.read_text(encoding="utf-8")
        if name.startswith(ELSEWHERE) or not MENTION.search(source):
            continue
        for node in ast.walk(ast.parse(source)):
            if isinstance(node, ast.Attribute) and _holds_an_algorithm(node.value) and node.attr != "upper":
                yield node.attr, name


def _holds_an_algorithm(node: ast.expr) -> bool:
    match node:
        case ast.Name(id=name) | ast.Attribute(attr=name):
            return name in HOLDERS
        case ast.Call(func=ast.Attribute(value=ast.Name(id="SpeculativeAlgorithm"), attr="from_string")):
            return True
    return False


@pytest.fixture(scope="module")
def lvspec() -> CustomSpecAlgo:
    """The algorithm as SGLang gets it by name."""
    algorithm.register()
    return SpeculativeAlgorithm.from_string("lvspec")


def test_everything_sglang_asks_has_an_answer(lvspec: CustomSpecAlgo) -> None:
    questions = set(_questions())
    asked = {attribute for attribute, _ in questions}
    assert {"is_none", "need_topk", "create_future_map", "carries_draft_hidden_states"} <= asked, "the scan sees calls"
    assert len(asked) >= 25, f"the scan found only {sorted(asked)}"
    assert sorted((name, file) for name, file in questions if not hasattr(lvspec, name)) == NEVER_ASKED_OF_US


def test_answers_take_what_sglangs_own_algorithms_take(lvspec: CustomSpecAlgo) -> None:
    for name, theirs in vars(SpeculativeAlgorithm).items():
        ours = getattr(type(lvspec), name, None)
        if name.startswith("_") or not inspect.isfunction(theirs) or ours is None:
            continue
        assert list(inspect.signature(ours).parameters) == list(inspect.signature(theirs).parameters), name
        defaults = [p.default for p in inspect.signature(theirs).parameters.values()]
        assert [p.default for p in inspect.signature(ours).parameters.values()] == defaults, name


def test_answers_are_standalones_except_where_a_chain_needs_less(lvspec: CustomSpecAlgo) -> None:
    standalone = SpeculativeAlgorithm.STANDALONE
    questions = [
        name
        for name, function in vars(SpeculativeAlgorithm).items()
        if inspect.isfunction(function) and list(inspect.signature(function).parameters) == ["self"]
    ]
    assert "is_standalone" in questions
    differing = {
        name: (getattr(standalone, name)(), getattr(lvspec, name)())
        for name in questions
        if hasattr(lvspec, name) and getattr(standalone, name)() != getattr(lvspec, name)()
    }
    assert differing == {"need_topk": (True, False)}


def test_only_what_must_differ_is_overridden() -> None:
    """An override that repeats SGLang's default would hide a change of that default."""
    repeated = []
    for name, ours in vars(LVSpecAlgorithm).items():
        if inspect.isfunction(ours) and list(inspect.signature(ours).parameters) == ["self"]:
            theirs = getattr(CustomSpecAlgo, name, None)
            if theirs is not None and theirs(None) == ours(None):
                repeated.append(name)
    # Said on purpose: what SGLang may change its mind about, and we may not.
    assert repeated == ["supports_prefill_shared_read_done"]


def test_the_name_is_found_in_any_case_and_registered_once(lvspec: CustomSpecAlgo) -> None:
    algorithm.register()
    for name in ("LVSPEC", "lvspec", "LvSpec"):
        assert SpeculativeAlgorithm.from_string(name) is lvspec
    assert isinstance(lvspec, LVSpecAlgorithm)
    assert lvspec.name == "LVSPEC"
    assert get_spec("LVSPEC") is lvspec


def test_start_up_is_ours_and_overlap_is_supported(lvspec: CustomSpecAlgo, monkeypatch: pytest.MonkeyPatch) -> None:
    assert lvspec.validate_server_args is startup.validate
    assert lvspec.supports_overlap is True
    seen: list[object] = []
    monkeypatch.setattr(startup, "set_defaults", seen.append)
    lvspec.handle_server_args("arguments")  # type: ignore[arg-type]
    assert seen == ["arguments"]


def test_the_relay_is_sglangs_own_and_knows_its_algorithm(
    lvspec: CustomSpecAlgo, monkeypatch: pytest.MonkeyPatch
) -> None:
    from sglang.srt.managers import overlap_utils

    seen: list[tuple[object, ...]] = []
    monkeypatch.setattr(overlap_utils, "FutureMap", lambda *args: seen.append(args))
    lvspec.create_future_map("cpu", "pool", needs_cpu_seq_lens=False, needs_confidence_relay=True)  # type: ignore[attr-defined]
    assert seen == [("cpu", lvspec, "pool", False, True)]


def test_the_sources_named_here_exist() -> None:
    root = SourceTree.installed().root / "sglang" / "srt"
    assert all((root / Path(folder)).is_dir() for folder in ELSEWHERE)
