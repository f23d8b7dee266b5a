"""Nothing of SGLang is imported, hooked or read without a seam that pins it.

What is found: imports, targets of hooks, attributes of what is annotated with an SGLang class, and inherited
attributes. What is not: attributes of attributes, and of objects annotated with Any; list those by hand.
"""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

import sgl_lvspec
from sgl_lvspec.seams import SEAMS, SourceTree
from sgl_lvspec.seams.expectation import Has, Lacks
from sgl_lvspec.seams.source import Found, NotFoundInSource

PLUGIN = Path(sgl_lvspec.__file__).parent

try:
    TREE = SourceTree.installed()
except ModuleNotFoundError:
    pytest.skip("the sources of sglang are not installed", allow_module_level=True)

MODULES = {path: ast.parse(path.read_text()) for path in PLUGIN.rglob("*.py") if "seams" not in path.parts}


def _definition(dotted: str) -> Found | None:
    """The class behind a name, also of an object that a module makes of one (`envs = Envs()`)."""
    try:
        found = TREE.find(dotted)
        if isinstance(found.node, ast.Assign) and isinstance(found.node.value, ast.Call):
            return TREE.find(f"{found.module}.{ast.unparse(found.node.value.func)}")
    except NotFoundInSource:
        return None
    return found


def _key(dotted: str) -> int | None:
    found = _definition(dotted)
    return None if found is None else id(found.node)


def _pinned_names() -> dict[int | None, set[str]]:
    """Names that a seam pins, by the definition that they belong to."""
    pinned: dict[int | None, set[str]] = {}
    for seam in SEAMS:
        if isinstance(seam.expects, Has | Lacks):
            pinned.setdefault(_key(seam.target), set()).update(seam.expects.names)
        owner, _, name = seam.target.rpartition(".")
        pinned.setdefault(_key(owner), set()).add(name)
    return pinned


PINNED = _pinned_names()
# A seam of a method or a name in a module pins its class or module too.
LISTED = {_key(seam.target) for seam in SEAMS} | {_key(seam.target.rpartition(".")[0]) for seam in SEAMS} - {None}
# ServerArgs is put together from these classes; a field is pinned in the class that declares it.
FIELD_SEAMS = {
    seam.target.rpartition(".")[2] for seam in SEAMS if seam.target.startswith("sglang.srt.arg_groups.fields.")
} | {"model_path"}


def _imports(tree: ast.AST) -> Iterator[tuple[str, str, str]]:
    """(local name, module, imported name) of everything that comes from SGLang."""
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and node.module and node.module.partition(".")[0] == "sglang":
            for alias in node.names:
                yield alias.asname or alias.name, node.module, alias.name
        if isinstance(node, ast.Import):
            assert not any(alias.name.partition(".")[0] == "sglang" for alias in node.names), "use from ... import"


def _file(path: Path) -> str:
    return str(path.relative_to(PLUGIN))


@pytest.mark.parametrize("path", MODULES, ids=_file)
def test_every_import_from_sglang_has_a_seam(path: Path) -> None:
    missing = [
        f"{module}.{name}"
        for _, module, name in _imports(MODULES[path])
        if _key(f"{module}.{name}") not in LISTED and name not in PINNED.get(_key(module), set())
    ]
    assert not missing, f"add seams for {missing} to sgl_lvspec/seams"


@pytest.mark.parametrize("path", MODULES, ids=_file)
def test_every_hooked_name_has_a_seam(path: Path) -> None:
    """Targets of hooks are strings, or f-strings that begin with a constant of the module."""
    constants = {
        node.targets[0].id: node.value.value
        for node in MODULES[path].body
        if isinstance(node, ast.Assign)
        and isinstance(node.targets[0], ast.Name)
        and isinstance(node.value, ast.Constant)
    }
    hooked = []
    for node in ast.walk(MODULES[path]):
        if not (isinstance(node, ast.Call) and ast.unparse(node.func) in ("HookRegistry.register", "late_hooks.apply")):
            continue
        target = node.args[0]
        if isinstance(target, ast.JoinedStr):
            parts = [
                constants[part.value.id] if isinstance(part, ast.FormattedValue) else part.value  # type: ignore[attr-defined]
                for part in target.values
            ]
            hooked.append("".join(parts))
        elif isinstance(target, ast.Constant):
            hooked.append(target.value)
    missing = [target for target in hooked if _key(target) not in LISTED]
    assert not missing, f"add seams for {missing} to sgl_lvspec/seams"


@pytest.mark.parametrize("path", MODULES, ids=_file)
def test_every_attribute_of_an_sglang_object_has_a_seam(path: Path) -> None:
    """Attributes of parameters and variables annotated with an SGLang class, and of `self` in a subclass of one."""
    imported = {local: f"{module}.{name}" for local, module, name in _imports(MODULES[path])}
    missing = sorted(
        f"{owner}.{attribute}"
        for owner, attribute in _accesses(MODULES[path], imported)
        if attribute not in PINNED.get(_key(owner), set())
        and not (owner.endswith(".ServerArgs") and attribute in FIELD_SEAMS | {"_lvspec"})
    )
    assert not missing, f"add seams for {missing} to sgl_lvspec/seams"


def _accesses(tree: ast.Module, imported: dict[str, str]) -> Iterator[tuple[str, str]]:
    for function in ast.walk(tree):
        if isinstance(function, ast.FunctionDef | ast.AsyncFunctionDef):
            owners = dict(_annotated(function, imported))
            for node in ast.walk(function):
                if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name) and node.value.id in owners:
                    yield owners[node.value.id], node.attr
    for node in ast.walk(tree):  # modules and classes named directly: mm_schedule.embedding_cache
        if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name) and node.value.id in imported:
            yield imported[node.value.id], node.attr
    for cls in ast.walk(tree):
        if isinstance(cls, ast.ClassDef):
            bases = [imported[base.id] for base in cls.bases if isinstance(base, ast.Name) and base.id in imported]
            ours = _own_attributes(cls)
            for node in ast.walk(cls):
                if isinstance(node, ast.Attribute) and _is_self_or_super(node.value) and node.attr != "__init__":
                    inherited = isinstance(node.value, ast.Call) or node.attr not in ours
                    for base in bases if inherited else []:
                        yield _definer(base, node.attr), node.attr


def _annotated(function: ast.FunctionDef | ast.AsyncFunctionDef, imported: dict[str, str]) -> Iterator[tuple[str, str]]:
    arguments = [*function.args.posonlyargs, *function.args.args, *function.args.kwonlyargs]
    named = [(part.arg, part.annotation) for part in arguments]
    named += [
        (node.target.id, node.annotation)
        for node in ast.walk(function)
        if isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name)
    ]
    for name, annotation in named:
        for part in ast.walk(annotation) if annotation is not None else ():
            if isinstance(part, ast.Name) and part.id in imported and not isinstance(annotation, ast.Subscript):
                yield name, imported[part.id]


def _own_attributes(cls: ast.ClassDef) -> set[str]:
    """What our class defines that SGLang's base does not have."""
    names = {node.name for node in cls.body if isinstance(node, ast.FunctionDef)}
    names |= {
        node.attr
        for node in ast.walk(cls)
        if isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Store) and _is_self_or_super(node.value)
    }
    return names


def _is_self_or_super(node: ast.expr) -> bool:
    return (isinstance(node, ast.Name) and node.id == "self") or (
        isinstance(node, ast.Call) and ast.unparse(node.func) == "super"
    )


def _definer(base: str, attribute: str) -> str:
    """The class of SGLang that a seam for this attribute names: the base itself or one of its own bases."""
    queue = [TREE.find(base)]
    while queue:
        current = queue.pop(0)
        if attribute in PINNED.get(id(current.node), set()) and isinstance(current.node, ast.ClassDef):
            return f"{current.module}.{current.node.name}"
        queue += list(TREE.bases(current))
    return base
