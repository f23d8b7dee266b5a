"""Which releases of SGLang the plugin fits: every seam against the sources of each, and the strict tests on one.

`make upgrades` downloads the wheels of the named releases and of the newest one on the package index into
build/upgrades, without what they depend on, and installs nothing. `--run RELEASE` puts such a wheel before the
installed SGLang and runs the tests of strict token ids on it, in a copy of this tree that says it was tested with that
release. What the plugin accepts (`SGLANG_TESTED`) follows from a run, never from seams alone.
"""

from __future__ import annotations

import argparse
import json
import re
import shutil
import subprocess
import sys
import time
import zipfile
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from tools.pip_run import SetupError, explain
from tools.provenance import as_line, provenance_of
from tools.working_copy import ROOT, working_copy

FOLDER = ROOT / "build" / "upgrades"
RELEASES = ("0.5.22", "0.5.23")  # the tested one and its neighbours; the newest is looked up
NEWEST = "newest"
RUN_LIMIT_S = 3600.0
STRICT_TESTS = "tests/server/test_strict_ids.py"
ERROR = re.compile(r"\b\w+(Error|Exception): .+")  # of the server, whose log a test that cannot start it shows


@dataclass
class Release:
    """What was found about one release.

    Attributes:
        version: of SGLang.
        seams: how many there are.
        broken: message of each that does not hold, and our file that relies on it.
        run: outcome of the strict tests on it; None where they were not run.
    """

    version: str
    seams: int
    broken: list[dict[str, str]]
    run: dict[str, Any] | None = None
    notes: list[str] = field(default_factory=list)

    @property
    def verdict(self) -> str:
        """In words, no more than was seen."""
        if self.run is not None:
            return "works: strict tests pass" if self.run["passed"] else "does not work: strict tests fail"
        return "seams hold, not run" if not self.broken else "does not fit"

    def by_part(self) -> dict[str, list[str]]:
        """Messages by the part of the plugin that relies on them: its first folder, or its file."""
        parts: dict[str, list[str]] = defaultdict(list)
        for entry in self.broken:
            parts[entry["used_in"].partition("/")[0].removesuffix(".py")].append(entry["message"])
        return dict(sorted(parts.items()))


def download(release: str, folder: Path = FOLDER) -> Path:
    """The release's wheel, from the package index unless it is there already.

    Raises:
        SetupError: pip could not get it.
    """
    known = sorted(folder.glob(f"sglang-{release}-*.whl"))
    if release != NEWEST and known:
        return known[-1]
    folder.mkdir(parents=True, exist_ok=True)
    name = "sglang" if release == NEWEST else f"sglang=={release}"
    command = [
        sys.executable,
        "-m",
        "pip",
        "download",
        "--no-deps",
        "--only-binary",
        ":all:",
        "--dest",
        str(folder),
        name,
    ]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    said = done.stdout + done.stderr
    if done.returncode:
        log = folder / "pip.log"
        log.write_text(said)
        raise explain(name, said, log)
    named = re.findall(r"(sglang-[\w.+-]+\.whl)", said)
    if not named:
        raise SetupError(f"a wheel of {name}", said.strip().splitlines()[-1], "look at what pip says")
    return folder / named[-1]


def unpack(wheel: Path) -> Path:
    """Folder beside the wheel that holds its packages and their metadata."""
    folder = wheel.parent / wheel.name.split("-")[1]
    if not folder.is_dir():
        unfinished = folder.with_suffix(".unfinished")
        shutil.rmtree(unfinished, ignore_errors=True)
        with zipfile.ZipFile(wheel) as archive:
            archive.extractall(unfinished)
        unfinished.rename(folder)
    return folder


def compare(folder: Path, root: Path = ROOT) -> Release:
    """Every seam against the release in `folder`, by the code of the plugin in `root`."""
    done = subprocess.run(
        [sys.executable, "-m", "sgl_lvspec.seams", str(folder)], cwd=root, capture_output=True, text=True, check=False
    )
    if done.returncode:
        raise SetupError(
            f"seams that can be compared with {folder}", done.stderr.strip()[-500:], "look at what it says"
        )
    found = json.loads(done.stdout)
    return Release(folder.name, found["seams"], found["broken"])


def run_strict_tests(version: str, folder: Path) -> dict[str, Any]:
    """The strict tests with that SGLang before the installed one: its packages, all others as they are."""
    start = time.monotonic()
    with working_copy() as copy:
        source = (copy.root / "sgl_lvspec/__init__.py").read_text()
        tested = re.search(r'SGLANG_TESTED = "[^"]+"', source)
        assert tested is not None, "sgl_lvspec says which release it was tested with"
        copy.replace("sgl_lvspec/__init__.py", tested.group(), f'SGLANG_TESTED = "{version}"')
        done = copy.pytest(["-rf", STRICT_TESTS], RUN_LIMIT_S, before=[folder])
    lines = done.stdout.strip().splitlines()
    errors = [found.group() for line in lines if (found := ERROR.search(line))]
    return {
        "tests": STRICT_TESTS,
        "passed": done.returncode == 0,
        "summary": lines[-1] if lines else f"pytest ended with {done.returncode}",
        "errors": list(dict.fromkeys(errors))[-3:],
        "seconds": round(time.monotonic() - start),
    }


def report(releases: Sequence[Release], provenance: dict[str, str]) -> str:
    """The findings as Markdown."""
    lines = [
        "# SGLang releases",
        "",
        "Every seam ([`sgl_lvspec/seams`](../../sgl_lvspec/seams)) against the sources of each release, by `make",
        "upgrades`. Seams that hold say that what the plugin reads is as it was; that a release **works** a run says.",
        "",
        "| release | seams that hold | verdict | strict tests |",
        "|---|---|---|---|",
    ]
    for release in releases:
        run = "not run" if release.run is None else f"{release.run['summary']}"
        holding = f"{release.seams - len(release.broken)} of {release.seams}"
        lines.append(f"| {' '.join([release.version, *release.notes])} | {holding} | {release.verdict} | {run} |")
    for release in releases:
        if release.broken:
            lines += ["", f"## What {release.version} has otherwise", ""]
            for part, messages in release.by_part().items():
                lines += [f"* **{part}**", *(f"    * {message}" for message in messages)]
        if release.run is not None and release.run["errors"]:
            lines += ["", f"How the run on {release.version} ended:", "", "```"]
            lines += [*release.run["errors"], "```"]
    lines += ["", as_line(provenance), ""]
    return "\n".join(lines)


def main() -> int:
    """Command line; 0 = told (a release that does not fit is no failure), 1 = could not be found out."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("releases", nargs="*", default=[*RELEASES, NEWEST], help=f"versions, or {NEWEST}")
    parser.add_argument("--run", action="append", default=[], metavar="RELEASE", help="run the strict tests on it, too")
    parser.add_argument("--out", type=Path, default=FOLDER / "upgrades.json", help="JSON file; Markdown goes beside it")
    options = parser.parse_args()
    found: dict[str, Release] = {}
    try:
        for wanted in dict.fromkeys([*options.releases, *options.run]):
            folder = unpack(download(wanted))
            if folder.name not in found:
                found[folder.name] = compare(folder)
            release = found[folder.name]
            if wanted == NEWEST:
                release.notes.append("(newest)")
            if folder.name in options.run and release.run is None:
                release.run = run_strict_tests(folder.name, folder)
            print(
                f"{folder.name}: {release.verdict}, {len(release.broken)} of {release.seams} seams broken", flush=True
            )
    except SetupError as error:
        print(f"releases could not be compared\n{error}", file=sys.stderr)
        return 1
    provenance, releases = provenance_of("tools.upgrades"), list(found.values())
    options.out.parent.mkdir(parents=True, exist_ok=True)
    told = {"provenance": provenance, "releases": [{**asdict(each), "verdict": each.verdict} for each in releases]}
    options.out.write_text(json.dumps(told, indent=1) + "\n")
    options.out.with_suffix(".md").write_text(report(releases, provenance))
    print(f"wrote {options.out} and {options.out.with_suffix('.md')}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
