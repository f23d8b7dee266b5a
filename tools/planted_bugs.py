"""Shows that tests can fail: plants one bug after the other into a copy of the tree and runs the test that must see it.

`make planted-bugs`. The table is tests/planted_bugs.toml. Fails when a bug survives its test, when the text that a bug
replaces is gone (the code has changed: plant it anew), or when a test is red without a bug.
"""

from __future__ import annotations

import argparse
import sys
import time
import tomllib
from dataclasses import dataclass
from pathlib import Path

from tools.provenance import as_line, provenance_of
from tools.working_copy import ROOT, working_copy

TABLE = ROOT / "tests" / "planted_bugs.toml"
LIMIT_S = 900.0  # for a test that starts servers and then waits for ranks that wait for each other
FAILED, NOTHING_RAN = 1, 5  # exit statuses of pytest

HEADER = """# Planted bugs

Each bug was planted into a copy of the tree, and the test beside it was run: it must fail. `make planted-bugs` does
it again; `ARGS=--servers` runs those, too, that only a test with a server sees. The bugs are in
[tests/planted_bugs.toml](../../tests/planted_bugs.toml).

| mechanism | bug | file | test that sees it | outcome | s |
|---|---|---|---|---|---|
"""


@dataclass(frozen=True)
class Bug:
    """One line of the table.

    Attributes:
        mechanism: what it breaks.
        bug: what is wrong, in words.
        file, old, new: the text that is replaced, which occurs once.
        test: pytest's name of the test that must fail.
        server: whether that test starts servers.
    """

    mechanism: str
    bug: str
    file: str
    old: str
    new: str
    test: str
    server: bool = False


def read_table(path: Path = TABLE) -> list[Bug]:
    """The bugs in their order.

    Raises:
        TypeError: a field that a bug does not have, or lacks.
    """
    return [Bug(**entry) for entry in tomllib.loads(path.read_text())["bug"]]


def misplanted(bugs: list[Bug], root: Path = ROOT) -> list[str]:
    """What is wrong with the table itself: texts and tests that are not there."""
    wrong = []
    for bug in bugs:
        file, test = root / bug.file, root / bug.test.partition("::")[0]
        found = file.read_text().count(bug.old) if file.is_file() else 0
        if found != 1:
            wrong.append(f"{bug.bug}: {bug.file} holds the text to be replaced {found} times; plant it anew")
        name = bug.test.partition("[")[0].rpartition("::")[2]
        if not test.is_file() or f"def {name}(" not in test.read_text():
            wrong.append(f"{bug.bug}: there is no test {bug.test}")
    return wrong


def report(rows: list[tuple[Bug, str, float]], provenance: dict[str, str]) -> str:
    """The table as Markdown."""
    lines = [
        f"| {bug.mechanism} | {bug.bug} | `{bug.file}` | `{bug.test}` | {outcome} | {seconds:.0f} |"
        for bug, outcome, seconds in rows
    ]
    return HEADER + "\n".join([*lines, "", as_line(provenance), ""])


def main() -> int:
    """Command line; 0 = every bug that was planted was seen."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--servers", action="store_true", help="also bugs that only a test with a server sees")
    parser.add_argument("--only", default="", metavar="WORD", help="bugs that have the word in their line")
    parser.add_argument("--out", type=Path, help="Markdown file for the table")
    options = parser.parse_args()
    bugs = [bug for bug in read_table() if options.only.lower() in f"{bug.mechanism} {bug.bug} {bug.file}".lower()]
    if wrong := misplanted(bugs):
        print("\n".join(wrong), file=sys.stderr)
        return 1
    chosen = [bug for bug in bugs if options.servers or not bug.server]
    rows: list[tuple[Bug, str, float]] = []
    with working_copy() as copy:
        if without := [bug.test for bug in chosen if not bug.server]:
            done = copy.pytest(sorted(set(without)), LIMIT_S)
            if done.returncode:
                print(f"red without a bug:\n{done.stdout[-3000:]}", file=sys.stderr)
                return 1
        for bug in bugs:
            if bug not in chosen:
                rows.append((bug, "not run (server)", 0.0))
                continue
            start = time.monotonic()
            copy.replace(bug.file, bug.old, bug.new)
            done = copy.pytest([bug.test], LIMIT_S)
            copy.restore(bug.file)
            outcome = {FAILED: "seen", 124: "seen (it hangs)", 0: "**survived**", NOTHING_RAN: "**no such test**"}.get(
                done.returncode, f"**pytest ended with {done.returncode}**"
            )
            rows.append((bug, outcome, time.monotonic() - start))
            print(f"{outcome:18} {bug.mechanism}: {bug.bug}", flush=True)
            if outcome.startswith("**"):
                print(done.stdout[-3000:] + done.stderr[-2000:], file=sys.stderr)
    if options.out:
        options.out.write_text(report(rows, provenance_of("tools.planted_bugs")))
    failed = [bug.bug for bug, outcome, _ in rows if outcome.startswith("**")]
    print(f"{len(chosen) - len(failed)} of {len(chosen)} planted bugs were seen")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
