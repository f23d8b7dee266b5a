"""Looks up known vulnerabilities of everything that is pinned: `make audit`.

pip-audit has an environment of its own, so that auditing changes nothing of what is audited. What it says is judged
here: a finding counts unless JUDGED says why it does not, and a pin that nobody could look up is no good news.

Where no service is reached, `--list FILE` takes a list that lies on the machine, which pip-audit cannot read:
`insecure.json` of Safety DB (github.com/pyupio/safety-db), affected versions by package, as old as its `$meta` says.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
PIP_AUDIT = "pip-audit==2.10.1"
VENV = Path("build/audit")
FILES = {
    "cpu": ("sglang", "cpu", "development", "loadtest", "constraints-cpu"),
    "cuda": ("sglang", "development", "loadtest", "constraints-cuda"),
}
# Findings that do not count, and why: docs/security.md says more. Safety DB's have no id here.
_DISKCACHE = "who writes to its folder runs code; a part of outlines, a grammar backend that must be asked for"
JUDGED: dict[str, str] = dict.fromkeys(("CVE-2025-69872", "diskcache<=5.6.3"), _DISKCACHE)


@dataclass
class Audit:
    """What a run found.

    Attributes:
        known: packages that were looked up.
        findings: (package, version, id, versions that repair it) of each finding that counts.
        judged: (package, id) of each that does not.
        unknown: packages that could not be looked up.
    """

    known: int = 0
    findings: list[tuple[str, str, str, str]] = field(default_factory=list)
    judged: list[tuple[str, str]] = field(default_factory=list)
    unknown: list[str] = field(default_factory=list)

    @classmethod
    def read(cls, report: dict[str, Any], judged: dict[str, str]) -> Audit:
        """Sort pip-audit's JSON report."""
        found = cls()
        for package in report["dependencies"]:
            if "skip_reason" in package:
                found.unknown.append(package["name"])
                continue
            found.known += 1
            for finding in package["vulns"]:
                if any(name in judged for name in (finding["id"], *finding.get("aliases", ()))):
                    found.judged.append((package["name"], finding["id"]))
                else:
                    repaired = ", ".join(finding["fix_versions"]) or "no version that is told"
                    found.findings.append((package["name"], package["version"], finding["id"], repaired))
        return found


def pins(device: str) -> str:
    """All pins of a device's environment, each once, as pip reads them."""
    lines = {
        line.partition("  #")[0].strip()
        for name in FILES[device]
        for line in (ROOT / "requirements" / f"{name}.txt").read_text().splitlines()
        if line.strip() and not line.startswith("#")
    }
    return "\n".join(sorted(lines)) + "\n"


def audited(device: str, service: str) -> dict[str, Any]:
    """pip-audit's report on the pins.

    Raises:
        RuntimeError: it could not be installed, or could not reach its source; says what it said.
    """
    venv = ROOT / VENV
    python = venv / "bin" / "python"
    if not python.exists():
        _run([sys.executable, "-m", "venv", str(venv)], "an environment for pip-audit")
    _run([str(python), "-m", "pip", "install", "--quiet", PIP_AUDIT], f"{PIP_AUDIT} from the package index")
    listed = venv / f"{device}.txt"
    listed.write_text(pins(device))
    command = [
        str(python), "-m", "pip_audit", "--requirement", str(listed), "--no-deps", "--disable-pip",
        "--vulnerability-service", service, "--format", "json", "--progress-spinner", "off",
    ]  # fmt: skip
    ran = subprocess.run(command, capture_output=True, text=True, check=False)
    try:  # it ends with 1 for findings and for its own trouble alike
        report: dict[str, Any] = json.loads(ran.stdout)
    except ValueError as error:
        raise RuntimeError(_told(f"an answer of the vulnerability service {service}", ran.stderr)) from error
    return report


def listed_in(path: Path, listed: str) -> dict[str, Any]:
    """The pins beside a list of Safety DB, in the form of pip-audit's report.

    Raises:
        RuntimeError: the file is no such list.
    """
    from packaging.requirements import Requirement
    from packaging.specifiers import SpecifierSet
    from packaging.utils import canonicalize_name

    try:
        table = json.loads(path.read_text())
        made = datetime.fromtimestamp(table.pop("$meta")["timestamp"], UTC)
        affected = {canonicalize_name(name): specifiers for name, specifiers in table.items()}
    except (OSError, ValueError, KeyError, AttributeError, TypeError) as error:
        need = "insecure.json of Safety DB: {package: [versions, ...], $meta: {timestamp}}"
        raise RuntimeError(_told(need, f"{path}: {error!r}", "take it from github.com/pyupio/safety-db")) from error
    print(f"{path.name} of {made:%Y-%m-%d}: {len(affected)} packages; later findings are not in it")
    packages = []
    for line in listed.splitlines():
        pin = Requirement(line)
        [exact] = pin.specifier
        name, version = canonicalize_name(pin.name), exact.version
        found = [each for each in affected.get(name, ()) if SpecifierSet(each, prereleases=True).contains(version)]
        vulnerabilities = [{"id": name + each, "fix_versions": []} for each in found]
        packages.append({"name": name, "version": version, "vulns": vulnerabilities})
    return {"dependencies": packages}


def _run(command: list[str], need: str) -> None:
    ran = subprocess.run(command, capture_output=True, text=True, check=False)
    if ran.returncode:
        raise RuntimeError(_told(need, ran.stderr))


def _told(need: str, said: str, do: str = "try again where the internet is reached, or with --list") -> str:
    last = (said.strip().splitlines() or ["nothing"])[-1][:300]
    return f"required  {need}\nfound     {last}\ndo this   {do}"


def main(argv: list[str] | None = None) -> int:
    """0: all was looked up, nothing counts; 1: findings; 2: it could not be found out."""
    parser = argparse.ArgumentParser(prog="make audit", description=__doc__)
    parser.add_argument("--device", choices=tuple(FILES), action="append", help="whose environment (default: both)")
    parser.add_argument("--service", choices=("pypi", "osv"), default="pypi", help="where vulnerabilities are listed")
    parser.add_argument("--list", type=Path, help="insecure.json of Safety DB, in place of a service")
    options = parser.parse_args(argv)
    status = 0
    for device in options.device or FILES:
        try:
            listed = None if options.list is None else listed_in(options.list, pins(device))
            audit = Audit.read(listed or audited(device, options.service), JUDGED)
        except RuntimeError as error:
            print(f"{device}: nothing was looked up\n{error}", file=sys.stderr)
            return 2
        print(f"{device}: {audit.known} packages looked up, {len(audit.findings)} findings, {len(audit.judged)} judged")
        for package, version, name, repaired in audit.findings:
            print(f"  {package} {version}: {name} (repaired in {repaired})")
            status = 1
        if audit.unknown:
            print(
                f"required  an entry of {options.service} for every pin\nfound     none for {len(audit.unknown)}: "
                f"{', '.join(audit.unknown[:8])}{', ...' if len(audit.unknown) > 8 else ''}\n"
                "do this   try again where the internet is reached; a package index alone lists no vulnerabilities",
                file=sys.stderr,
            )
            status = status or 2
    return status


if __name__ == "__main__":
    sys.exit(main())
