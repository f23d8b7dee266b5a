"""Finds SGLang's definitions by reading its installed files; imports none of them.

SGLang takes seconds to import and on some machines cannot be imported at all, which is when `lvspec doctor` is
needed most.
"""

from __future__ import annotations

import ast
import importlib.util
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

Definition = ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef | ast.Assign | ast.AnnAssign | ast.Module


class NotFoundInSource(LookupError):  # noqa: N818
    """A dotted name that the installed files do not define."""


@dataclass(frozen=True, slots=True)
class Found:
    """A definition and the module that it stands in."""

    module: str
    node: Definition


@dataclass
class SourceTree:
    """Packages below `root`; every file is parsed once. What is not there is looked for below `beside`."""

    root: Path
    beside: Path | None = None
    _modules: dict[str, ast.Module | None] = field(default_factory=dict, repr=False)

    @classmethod
    def installed(cls, package: str = "sglang") -> SourceTree:
        """The tree that holds the package of this environment.

        Raises:
            ModuleNotFoundError: it is not installed.
        """
        spec = importlib.util.find_spec(package)
        if spec is None or not spec.submodule_search_locations:
            raise ModuleNotFoundError(f"{package} is not installed in this environment")
        return cls(Path(next(iter(spec.submodule_search_locations))).parent)

    def module(self, name: str) -> ast.Module | None:
        """Parsed module, or None when there is no such file."""
        if name not in self._modules:
            self._modules[name] = self._parse(name)
        return self._modules[name]

    def find(self, dotted: str) -> Found:
        """The definition behind a dotted name, through re-exports and base classes.

        Raises:
            NotFoundInSource: saying which part of the name is missing.
        """
        parts = dotted.split(".")
        for split in range(len(parts), 0, -1):
            name = ".".join(parts[:split])
            tree = self.module(name)
            if tree is not None:
                found = Found(name, tree)
                for part in parts[split:]:
                    found = self._member(found, part)
                return found
        raise NotFoundInSource(f"there is no module {parts[0]}")

    def bases(self, found: Found) -> Iterator[Found]:
        """Definitions of a class's bases as far as SGLang defines them."""
        if isinstance(found.node, ast.ClassDef):
            for base in found.node.bases:
                name = base.value if isinstance(base, ast.Subscript) else base
                try:
                    yield self._in_module(found.module, ast.unparse(name))
                except NotFoundInSource:
                    continue  # a base of another package: torch.nn.Module, ABC

    def names(self, found: Found) -> set[str]:
        """What a module or a class (its bases included) defines."""
        if isinstance(found.node, ast.Module):
            return {name for name, _ in _bindings(found.node.body)}
        if not isinstance(found.node, ast.ClassDef):
            raise NotFoundInSource(f"{found.module} defines it as {type(found.node).__name__}, not as a class")
        names = own_names(found.node)
        for base in self.bases(found):
            names |= self.names(base)
        return names

    def _parse(self, name: str) -> ast.Module | None:
        parts = name.split(".")
        is_elsewhere = self.beside is not None and not (self.root / parts[0]).exists()
        path = (self.beside if self.beside is not None and is_elsewhere else self.root).joinpath(*parts)
        for file in (path.with_suffix(".py"), path / "__init__.py"):
            if file.is_file():
                return ast.parse(file.read_text(encoding="utf-8"), filename=str(file))
        return None

    def _member(self, found: Found, part: str) -> Found:
        if isinstance(found.node, ast.Module):
            return self._in_module(found.module, part)
        if isinstance(found.node, ast.ClassDef):
            for name, node in _bindings(found.node.body):
                if name == part and isinstance(node, Definition):
                    return Found(found.module, node)
            for base in self.bases(found):
                try:
                    return self._member(base, part)
                except NotFoundInSource:
                    continue
            raise NotFoundInSource(f"class {found.node.name} of {found.module} has no {part}")
        raise NotFoundInSource(f"{found.module} has nothing below {part}")

    def _in_module(self, module: str, name: str) -> Found:
        """A (dotted) name as the code of `module` would see it."""
        first, _, rest = name.partition(".")
        found = self._bound(module, first)
        for part in rest.split(".") if rest else ():
            found = self._member(found, part)
        return found

    def _bound(self, module: str, name: str) -> Found:
        tree = self.module(module)
        assert tree is not None, f"{module} was found before"
        candidates = [node for bound, node in _bindings(tree.body) if bound in (name, "*")]
        # A class that is later wrapped by an assignment (`ServerArgs = defstruct(...)`) is still that class.
        for kind in ((ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef), (ast.Assign, ast.AnnAssign)):
            for node in candidates:
                if isinstance(node, kind):
                    return Found(module, node)
        for node in candidates:
            if isinstance(node, ast.ImportFrom | ast.Import):
                try:
                    return self._imported(module, node, name)
                except NotFoundInSource:
                    continue  # a star import of a module that has other names
        submodule = f"{module}.{name}"
        submodule_tree = self.module(submodule)
        if submodule_tree is not None:
            return Found(submodule, submodule_tree)
        raise NotFoundInSource(f"{module} defines no {name}")

    def _imported(self, module: str, node: ast.ImportFrom | ast.Import, name: str) -> Found:
        for alias in node.names:
            bound = alias.asname or alias.name
            if isinstance(node, ast.Import):
                if bound.partition(".")[0] == name:
                    return self.find(alias.name if alias.asname else name)
            elif bound in (name, "*"):
                return self.find(f"{self._origin(module, node)}.{name if bound == '*' else alias.name}")
        raise NotFoundInSource(f"{module} imports no {name}")

    def _origin(self, module: str, node: ast.ImportFrom) -> str:
        if not node.level:
            return node.module or ""
        is_package = (self.root.joinpath(*module.split(".")) / "__init__.py").is_file()
        package = module.split(".")[: None if is_package and node.level == 1 else -(node.level - is_package)]
        return ".".join([*package, *([node.module] if node.module else [])])


def own_names(node: ast.ClassDef) -> set[str]:
    """Names that a class body binds and attributes that its methods set on `self`."""
    names = {name for name, _ in _bindings(node.body)}
    for method in node.body:
        if not isinstance(method, ast.FunctionDef | ast.AsyncFunctionDef):
            continue
        for part in ast.walk(method):
            if (
                isinstance(part, ast.Attribute)
                and isinstance(part.ctx, ast.Store)
                and isinstance(part.value, ast.Name)
                and part.value.id in ("self", "cls")
            ):
                names.add(part.attr)
    return names


def _bindings(body: list[ast.stmt]) -> Iterator[tuple[str, ast.stmt]]:
    """(name, statement) for everything that a body binds, whatever branch it stands in."""
    for node in body:
        match node:
            case ast.ClassDef() | ast.FunctionDef() | ast.AsyncFunctionDef():
                yield node.name, node
            case ast.Assign():
                for target in node.targets:
                    for part in ast.walk(target):
                        if isinstance(part, ast.Name):
                            yield part.id, node
            case ast.AnnAssign(target=ast.Name(id=name)):
                yield name, node
            case ast.Import() | ast.ImportFrom():
                for alias in node.names:
                    bound = alias.asname or alias.name
                    yield bound if isinstance(node, ast.ImportFrom) else bound.partition(".")[0], node
            case ast.If() | ast.For() | ast.While():
                yield from _bindings(node.body)
                yield from _bindings(node.orelse)
            case ast.With():
                yield from _bindings(node.body)
            case ast.Try():
                yield from _bindings(node.body)
                for handler in node.handlers:
                    yield from _bindings(handler.body)
                yield from _bindings(node.orelse)
                yield from _bindings(node.finalbody)
            case _:
                pass
