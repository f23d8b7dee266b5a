"""Checks the rules that keep this repository navigable: who may import whom, size, names, paths (`make check`).

Reads files only, imports nothing of what it checks. Each finding says where, what rule and what to do.
"""

from __future__ import annotations

import ast
import re
import subprocess
import sys
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

LINE_BUDGET = 350  # a file that one can hold in one's head
TEST_LINE_BUDGET = 500
EMPTY_NAMES = frozenset({"utils", "util", "helpers", "helper", "common", "misc"})
# Absolute paths of somebody's machine. Not after a letter, dot or slash: those are parts of a URL or a relative path.
MACHINE_PATH = re.compile(r"(?<![\w./-])/(?:work|root|home|Users)/\w")

PLUGIN, KERNELS, CPU_ENGINE = "sgl_lvspec", "lvspec_kernels", frozenset({"sgl_kernel", "lvspec_cpu_boot"})
OUTSIDE = frozenset({"demo", "bench", "tests", "tools", "loadtest", "examples"})  # not part of what is installed


@dataclass(frozen=True)
class ImportRule:
    """What the Python files under `folder` may import: only these (and the standard library), or all but those."""

    folder: str
    why: str
    only: frozenset[str] | None = None
    never: frozenset[str] = frozenset()

    def allows(self, package: str) -> bool:
        """Whether a module under `folder` may import the top-level name `package`."""
        if self.only is None:
            return package not in self.never
        return package in self.only or package in sys.stdlib_module_names


IMPORT_RULES = (
    ImportRule("sgl_lvspec", "the plugin builds on SGLang and its kernels only", never=OUTSIDE | {"lvspec_cpu_boot"}),
    ImportRule("triton_kernels", "kernels can be used without SGLang", only=frozenset({"torch", "triton", KERNELS})),
    ImportRule("cpu_engine/src", "SGLang imports it before any plugin", only=CPU_ENGINE | {"torch"}),
    ImportRule(
        "demo",
        "the demo pair is made without SGLang and asked over HTTP",
        never=(OUTSIDE - {"demo"}) | CPU_ENGINE | {PLUGIN, KERNELS, "sglang"},
    ),
    ImportRule(
        "loadtest",
        "a load test sees what a client sees: HTTP",
        never=(OUTSIDE - {"loadtest"}) | CPU_ENGINE | {PLUGIN, KERNELS, "sglang", "torch"},
    ),
    ImportRule("examples", "users copy them", never=OUTSIDE | CPU_ENGINE | {KERNELS}),
    # packaging is for what compares versions, in the finished environment.
    ImportRule("tools", "they run before anything is installed", only=frozenset({"tools", "packaging"})),
)

# Inside the plugin: modules that put the stages of a round together. The stages (sub-packages) know nothing of them.
ASSEMBLY = tuple(f"{PLUGIN}.{name}" for name in ("plugin", "algorithm", "startup", "worker", "cli"))


@dataclass(frozen=True, order=True)
class Finding:
    """One violated rule."""

    path: str
    line: int
    message: str

    def __str__(self) -> str:
        return f"{self.path}:{self.line}: {self.message}"


def files_of(root: Path) -> list[str]:
    """Paths, relative to `root`, that git tracks or would track."""
    listing = subprocess.run(
        ["git", "ls-files", "--cached", "--others", "--exclude-standard", "-z"],
        cwd=root,
        capture_output=True,
        text=True,
        check=True,
    )
    return sorted(name for name in set(listing.stdout.split("\0")) if name and (root / name).is_file())


def imports_of(path: str, tree: ast.Module) -> Iterator[tuple[int, str]]:
    """Line and full dotted name of everything that a module imports, at any depth (also for type checking only)."""
    package = list(PurePosixPath(path).with_suffix("").parts[:-1])
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from ((node.lineno, alias.name) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            above = package[: len(package) - node.level + 1] if node.level else []
            module = ".".join([*above, *([node.module] if node.module else [])])
            yield from ((node.lineno, f"{module}.{alias.name}") for alias in node.names)


def check_imports(path: str, tree: ast.Module) -> Iterator[Finding]:
    """The direction of imports, between packages and inside the plugin."""
    rule = next((rule for rule in IMPORT_RULES if path.startswith(rule.folder + "/")), None)
    is_stage = len(PurePosixPath(path).parts) > 2 and path.startswith(PLUGIN + "/")
    for line, name in imports_of(path, tree):
        package = name.partition(".")[0]
        if rule and not rule.allows(package):
            yield Finding(path, line, f"{rule.folder}/ must not import {package}: {rule.why}")
        if path.startswith(PLUGIN + "/"):
            assembly = next((module for module in ASSEMBLY if f"{name}.".startswith(module + ".")), None)
            if assembly and is_stage:
                yield Finding(path, line, f"a stage must not import {assembly}, which is built from the stages")
            elif assembly == f"{PLUGIN}.plugin":
                yield Finding(path, line, f"nothing imports {assembly}: SGLang alone calls it")


def check_python(path: str, source: str) -> Iterator[Finding]:
    """Size, imports, and that the file can be parsed at all."""
    budget = TEST_LINE_BUDGET if path.startswith("tests/") else LINE_BUDGET
    lines = source.count("\n")
    if lines > budget:
        yield Finding(path, budget, f"{lines} lines, the budget is {budget}: split the file by what it is about")
    try:
        tree = ast.parse(source)
    except SyntaxError as error:
        yield Finding(path, error.lineno or 1, f"does not parse: {error.msg}")
        return
    yield from check_imports(path, tree)


def check_name(path: str) -> Iterator[Finding]:
    """Names that say nothing, and the one file that would hide another package."""
    pure = PurePosixPath(path)
    for part in (*pure.parts[:-1], pure.stem):
        if pure.suffix == ".py" and part in EMPTY_NAMES:
            yield Finding(path, 1, f"the name {part!r} says nothing: name it after what it defines")
    if path == "triton_kernels/__init__.py":
        yield Finding(path, 1, "SGLang imports another package of this name, which this file would hide: delete it")


def check_paths(path: str, text: str) -> Iterator[Finding]:
    """No file may know where somebody's checkout or home is."""
    for number, line in enumerate(text.splitlines(), start=1):
        if found := MACHINE_PATH.search(line):
            yield Finding(path, number, f"absolute path {found.group()}...: make it relative to the repository")


def check(root: Path, paths: Iterable[str]) -> list[Finding]:
    """All findings in `paths` (relative to `root`), in order."""
    findings: list[Finding] = []
    for path in paths:
        findings += check_name(path)
        try:
            text = (root / path).read_text(encoding="utf-8")
        except UnicodeDecodeError:
            continue  # weights, clips
        findings += check_paths(path, text)
        if path.endswith(".py"):
            findings += check_python(path, text)
    return sorted(findings)


def main() -> int:
    """Print what is wrong; 0 = nothing."""
    root = Path(__file__).resolve().parent.parent
    findings = check(root, files_of(root))
    print("\n".join(map(str, findings)) or "layout: all rules hold")
    return 1 if findings else 0


if __name__ == "__main__":
    sys.exit(main())
