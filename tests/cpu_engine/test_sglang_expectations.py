"""The installed SGLang, read as text: what it takes from `sgl_kernel` on its CPU branches, compared with what is here.

Nothing of SGLang is imported here; a new release that wants another name fails here by name.
"""

from __future__ import annotations

import ast
import functools
import importlib.metadata
import importlib.util
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

import sgl_kernel

_SPEC = importlib.util.find_spec("sglang")
pytestmark = pytest.mark.skipif(_SPEC is None, reason="sglang is not installed: nothing to compare with")
VERSION = importlib.metadata.version("sglang") if _SPEC else ""
ROOT = Path(_SPEC.submodule_search_locations[0]) if _SPEC else Path()

# Folders and files of SGLang that a text, image or video server with speculation runs on a CPU. There every name
# counts; elsewhere only those that end in `_cpu`: files for other backends import from the CUDA package unguarded.
OUR_PATHS = (
    "kernels/ops/kvcache/",
    "kernels/ops/sampling/",
    "kernels/ops/speculative/",
    "srt/distributed/",
    "srt/managers/",
    "srt/mem_cache/",
    "srt/model_executor/",
    "srt/models/qwen2",
    "srt/models/qwen3_vl",
    "srt/multimodal/",
    "srt/sampling/",
    "srt/speculative/",
)

# Wanted on a CPU branch and refused here. None of these files is imported on our paths.
REFUSED = {
    "kernels/ops/speculative/reconstruct_tree.py": "only NGRAM speculation",
    "srt/layers/attention/linear/gdn_backend.py": "only models with linear attention",
    "srt/layers/attention/linear/kda_backend.py": "only models with linear attention",
    "srt/layers/attention/linear/kernels/gdn_triton.py": "only models with linear attention",
    "srt/models/grok.py": "only Grok",
}
REMEDY = "implement it in cpu_engine, or add the file to REFUSED in this test with the reason"


@functools.cache
def sglang_files() -> list[tuple[str, ast.Module]]:
    """Path and syntax tree of SGLang's files that mention sgl_kernel and run on an ordinary CPU."""
    files = []
    for folder in ("srt", "kernels"):
        for path in sorted((ROOT / folder).rglob("*.py")):
            relative = path.relative_to(ROOT).as_posix()
            text = path.read_text(encoding="utf-8")
            if "sgl_kernel" in text and not relative.startswith("srt/hardware_backend/"):
                files.append((relative, ast.parse(text)))
    return files


def holds_on_cpu(test: ast.expr) -> bool | None:
    """Whether a platform condition is true on a CPU without AMX; None for a condition about anything else."""
    if isinstance(test, ast.BoolOp):
        values = [holds_on_cpu(value) for value in test.values]
        decisive = isinstance(test.op, ast.Or)
        return decisive if decisive in values else None if None in values else not decisive
    if isinstance(test, ast.UnaryOp) and isinstance(test.op, ast.Not):
        value = holds_on_cpu(test.operand)
        return None if value is None else not value
    call = test.func if isinstance(test, ast.Call) else test
    words = (call.attr if isinstance(call, ast.Attribute) else getattr(call, "id", "")).lower().strip("_").split("_")
    if words == ["is", "cpu"]:
        return True
    return False if {"amx", "cuda", "gpu", "hip", "hpu", "mps", "musa", "npu", "xpu"} & set(words) else None


def reached_on_cpu(statements: list[ast.stmt], is_certain: bool = True) -> Iterator[tuple[ast.stmt, bool]]:
    """Yield the simple statements that a CPU process can reach, and whether importing the file is enough for that.

    Under a condition about something else than the platform, and inside a function, a statement may be reached. Inside
    `try` with a handler for ImportError a missing name is expected, so those are left out.
    """
    for statement in statements:
        if isinstance(statement, ast.If):
            value = holds_on_cpu(statement.test)
            if value is not False:
                yield from reached_on_cpu(statement.body, is_certain and value is True)
            if value is not True:
                yield from reached_on_cpu(statement.orelse, is_certain and value is False)
        elif isinstance(statement, ast.Try):
            handled = " ".join(
                ast.unparse(handler.type) if handler.type else "Exception" for handler in statement.handlers
            )
            if not any(name in handled for name in ("ImportError", "ModuleNotFoundError", "Exception")):
                yield from reached_on_cpu(statement.body, is_certain)
        elif isinstance(statement, ast.ClassDef | ast.With):
            yield from reached_on_cpu(statement.body, is_certain)
        elif isinstance(statement, ast.FunctionDef | ast.AsyncFunctionDef | ast.For | ast.While):
            yield from reached_on_cpu(statement.body, False)
        else:
            yield statement, is_certain


def wanted_imports() -> Iterator[tuple[str, str, str]]:
    """Yield (file, module, name) of everything that SGLang imports from `sgl_kernel` on its CPU branches."""
    for path, tree in sglang_files():
        for statement, is_certain in reached_on_cpu(tree.body):
            module = getattr(statement, "module", None) or ""
            if not isinstance(statement, ast.ImportFrom) or module.split(".")[0] != "sgl_kernel":
                continue
            for alias in statement.names:
                if alias.name.endswith("_cpu") or (is_certain and path.startswith(OUR_PATHS)):
                    yield path, module, alias.name


def wanted_ops() -> Iterator[tuple[str, str]]:
    """Yield (file, op) of everything under `torch.ops.sgl_kernel` that SGLang looks up while it imports a file."""
    for path, tree in sglang_files():
        for statement, is_certain in reached_on_cpu(tree.body):
            for node in ast.walk(statement) if is_certain else ():
                if (
                    isinstance(node, ast.Attribute)
                    and ast.unparse(node.value) == "torch.ops.sgl_kernel"
                    and node.attr.endswith("_cpu")
                ):
                    yield path, node.attr


def probed_ops() -> Iterator[tuple[str, str]]:
    """Yield (file, op) of every `hasattr(torch.ops.sgl_kernel, "op")`."""
    for path, tree in sglang_files():
        for node in ast.walk(tree):
            if (
                isinstance(node, ast.Call)
                and ast.unparse(node.func) == "hasattr"
                and ast.unparse(node.args[0]) == "torch.ops.sgl_kernel"
                and isinstance(node.args[1], ast.Constant)
            ):
                yield path, node.args[1].value


def test_every_import_of_the_cpu_branches_is_here() -> None:
    wanted = set(wanted_imports())
    missing = [
        f"sglang {VERSION} imports {name} from {module} in {path}: {REMEDY}"
        for path, module, name in sorted(wanted)
        if path not in REFUSED and not (module == "sgl_kernel" and name in sgl_kernel.__all__)
    ]
    assert not missing, "\n".join(missing)


def test_nothing_is_kept_that_sglang_no_longer_imports() -> None:
    wanted = {name for _, _, name in wanted_imports()}
    assert set(sgl_kernel.__all__) <= wanted, f"sglang {VERSION} imports fewer names; remove the others"


def test_every_schema_looked_up_at_import_is_declared() -> None:
    missing = [
        f"sglang {VERSION} looks up torch.ops.sgl_kernel.{op} while it imports {path}: {REMEDY}"
        for path, op in sorted(set(wanted_ops()))
        if path not in REFUSED and not hasattr(torch.ops.sgl_kernel, op)
    ]
    assert not missing, "\n".join(missing)


def test_the_refused_files_still_want_something() -> None:
    seen = {path for path, *_ in wanted_imports()} | {path for path, _ in wanted_ops()}
    assert set(REFUSED) <= seen, f"sglang {VERSION} no longer needs these entries of REFUSED: {set(REFUSED) - seen}"


def test_no_op_is_declared_that_sglang_probes_for() -> None:
    probed = set(probed_ops())
    assert {op for _, op in probed} >= {"convert_weight_packed"}, "the probe that decides about AMX has moved"
    claimed = [f"{op}, probed in {path}" for path, op in sorted(probed) if hasattr(torch.ops.sgl_kernel, op)]
    assert not claimed, claimed
