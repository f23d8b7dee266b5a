"""Builds the environment that every make target runs in: `python -m tools.environment`, from the repository root.

`make` calls it before every target, so a finished environment costs milliseconds. Needs only Python's standard library,
and must stay readable for Pythons that are too old to build anything, so that they get an error they can act on.
"""

from __future__ import annotations

import argparse
import contextlib
import hashlib
import json
import os
import platform
import shutil
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from tools.pip_run import Progress, SetupError, explain, follow

ROOT = Path(__file__).resolve().parent.parent
STAMP = "lvspec-setup.json"
LOG = "lvspec-setup.log"
OLDEST_PYTHON = (3, 11)  # SGLang 0.5.23 asks for it
FREE_GB = {"cpu": 4, "cuda": 16}  # what is downloaded and what it becomes lie side by side for a while


@dataclass(frozen=True)
class Step:
    """One call of `pip install`; it runs again when one of its input files changes."""

    name: str
    arguments: tuple[str, ...]
    inputs: tuple[str, ...]

    def digest(self, root: Path) -> str:
        """Hash of the arguments and of the input files."""
        total = hashlib.sha256(repr(self.arguments).encode())
        for name in self.inputs:
            total.update(name.encode() + b"\0" + (root / name).read_bytes())
        return total.hexdigest()


def steps_for(device: str) -> list[Step]:
    """What is installed, in order, for `cpu` or `cuda`."""
    local = ("--no-deps", "--no-build-isolation", "--editable")
    sglang, cpu, development, loadtest, constraints = (
        f"requirements/{name}.txt" for name in ("sglang", "cpu", "development", "loadtest", f"constraints-{device}")
    )

    def packages(name: str, *files: str) -> Step:
        chosen = tuple(word for file in files for word in ("-r", file))
        return Step(name, (*chosen, "-c", constraints), (*files, constraints))

    project = Step("sgl-lvspec itself", (*local, "."), ("pyproject.toml",))
    if device == "cuda":
        return [packages("SGLang with its CUDA packages", sglang, development, loadtest), project]
    return [
        packages("packages for CPU serving", cpu, development, loadtest),
        Step("SGLang", ("--no-deps", "-r", sglang), (sglang,)),
        Step(
            "cpu_engine (sgl_kernel for CPU)",
            (*local, "cpu_engine"),
            ("cpu_engine/pyproject.toml", "cpu_engine/build_backend/backend.py"),
        ),
        project,
    ]


def has_nvidia_driver() -> bool:
    """Whether an NVIDIA driver serves this machine or container."""
    if Path("/proc/driver/nvidia/version").exists() or Path("/dev/nvidiactl").exists():
        return True
    if not shutil.which("nvidia-smi"):  # the way in under WSL, where there is no device file of NVIDIA's own
        return False
    with contextlib.suppress(OSError, subprocess.TimeoutExpired):
        listing = subprocess.run(["nvidia-smi", "-L"], capture_output=True, text=True, timeout=20, check=False)
        return listing.returncode == 0 and "GPU" in listing.stdout
    return False


@dataclass
class Environment:
    """A virtual environment and the stamp that says how far its setup came.

    A stamp that names a running step means that pip was cut off there; such an environment is built anew, because half
    a package looks like a whole one.
    """

    path: Path
    device: str
    root: Path = ROOT
    done: dict[str, str] = field(default_factory=dict)
    running: str | None = None

    @property
    def key(self) -> dict[str, str]:
        """What the whole environment depends on; root, because editable installs and scripts hold absolute paths."""
        return {"device": self.device, "python": dotted(sys.version_info[:2]), "root": str(self.root)}

    @property
    def python(self) -> Path:
        """The environment's interpreter."""
        return self.path / "bin" / "python"

    def load(self) -> bool:
        """Take over what the stamp says is done; False when there is nothing that can be built upon."""
        try:
            stamp = json.loads((self.path / STAMP).read_text())
        except (OSError, ValueError):
            return False
        if not isinstance(stamp, dict) or stamp.get("key") != self.key or stamp.get("running"):
            return False
        self.done = stamp.get("done", {})
        return self.python.exists()

    def save(self) -> None:
        """Write the stamp in one move, so that a reader never sees half of it."""
        new = self.path / (STAMP + ".new")
        new.write_text(json.dumps({"key": self.key, "done": self.done, "running": self.running}, indent=1))
        new.replace(self.path / STAMP)

    def pending(self) -> list[Step]:
        """The steps that still have to run."""
        return [step for step in steps_for(self.device) if self.done.get(step.name) != step.digest(self.root)]

    def create(self) -> None:
        """Make an empty virtual environment in place of whatever an earlier setup left."""
        if self.path.exists():
            if any(self.path.iterdir()) and not (self.path / STAMP).exists():
                raise SetupError(
                    f"a place for the environment at {self.path}",
                    "a folder there that this setup did not make, so it will not delete it",
                    "remove the folder, choose another (make setup VENV=...), or use it as it is (SETUP=no)",
                )
            shutil.rmtree(self.path)
        free_gb = shutil.disk_usage(self.path.parent).free / 1e9
        if free_gb < FREE_GB[self.device]:
            raise SetupError(
                f"{FREE_GB[self.device]} GB of free disk for the environment",
                f"{free_gb:.1f} GB at {self.path.parent}",
                "free some space, or put it elsewhere: make setup VENV=/another/disk/venv",
            )
        self.path.mkdir(parents=True)
        self.running, self.done = "venv", {}
        self.save()
        made = subprocess.run(
            [sys.executable, "-m", "venv", str(self.path)], capture_output=True, text=True, check=False
        )
        if made.returncode != 0:
            said = (made.stdout + made.stderr).strip()
            shutil.rmtree(self.path)
            raise SetupError(
                f"a Python that can make virtual environments ({sys.executable} -m venv)",
                said.splitlines()[-1] if said else f"exit status {made.returncode}",
                "install the venv module of that Python (Debian, Ubuntu: the package python3-venv), "
                "or choose another Python: make setup PYTHON=python3.12",
            )
        self.running = None
        self.save()

    def install(self, step: Step, progress: Progress) -> None:
        """Run one step and record it.

        Raises:
            SetupError: pip failed; the log says how.
        """
        self.done.pop(step.name, None)
        self.running = step.name
        self.save()
        progress.say(step.name)
        command = [str(self.python), "-m", "pip", "install", "--disable-pip-version-check", "--no-input"]
        output, status = follow([*command, "--progress-bar", "off", *step.arguments], self.root, progress)
        (self.path / LOG).write_text(output)
        if status != 0:
            if "Installing collected packages" not in output:  # pip gave up before it touched anything
                self.running = None
                self.save()
            raise explain(step.name, output, self.path / LOG)
        self.done[step.name] = step.digest(self.root)
        self.running = None
        self.save()


def dotted(version: tuple[int, ...]) -> str:
    """(3, 11) as 3.11."""
    return ".".join(map(str, version))


@contextlib.contextmanager
def alone(folder: Path) -> Iterator[None]:
    """Hold a lock on `folder`, so that two make commands at once do not build the same environment."""
    import fcntl

    handle = os.open(folder, os.O_RDONLY)
    try:
        fcntl.flock(handle, fcntl.LOCK_EX)
        yield
    finally:
        os.close(handle)


def disk_use_gb(folder: Path) -> float:
    """What `folder` occupies on disk."""
    return sum(path.lstat().st_blocks * 512 for path in folder.rglob("*")) / 1e9


def check_machine() -> None:
    """Refuse what cannot work before anything is downloaded."""
    if sys.version_info < OLDEST_PYTHON:
        raise SetupError(
            f"Python {dotted(OLDEST_PYTHON)} or newer",
            f"Python {platform.python_version()} at {sys.executable}",
            "install one and name it: make setup PYTHON=python3.12",
        )
    if sys.platform != "linux":
        raise SetupError(
            "Linux (also in a container or under WSL 2)",
            platform.platform(),
            "run it in a Linux container; SGLang and Triton have no packages for this system",
        )


def setup(environment: Environment, quiet: bool) -> None:
    """Bring `environment` to the state that the requirement files describe."""
    if environment.load() and not environment.pending():
        if not quiet:
            print(f"{environment.path} is ready ({environment.device}); nothing to do")
        return
    with alone(environment.root):
        progress = Progress()
        if not environment.load():
            progress.say(f"new environment {environment.path} ({environment.device})")
            environment.create()
        for step in environment.pending():
            environment.install(step, progress)
        size = disk_use_gb(environment.path)
        progress.say(f"{environment.path} is ready: {size:.1f} GB on disk, {progress.elapsed_s:.0f} s")


def main() -> int:
    """Command line; 0 = ready, 1 = an error that was explained, 130 = interrupted."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--venv", type=Path, default=ROOT / ".venv", help="where the environment is built")
    parser.add_argument(
        "--device", choices=("auto", "cpu", "cuda"), default="auto", help="auto: cuda where there is an NVIDIA driver"
    )
    parser.add_argument("--quiet", action="store_true", help="say nothing when there is nothing to do")
    options = parser.parse_args()
    try:
        check_machine()
        device = options.device
        if device == "auto":
            device = "cuda" if has_nvidia_driver() else "cpu"
        setup(Environment(options.venv.absolute(), device), options.quiet)
    except SetupError as error:
        print(f"setup failed\n{error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("\nsetup was interrupted; the next make setup starts over", file=sys.stderr)
        return 130
    return 0


if __name__ == "__main__":
    sys.exit(main())
