"""A temporary copy of this tree in which a test may run on changed code, with the environment as it is."""

from __future__ import annotations

import contextlib
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from tools.check_layout import files_of

ROOT = Path(__file__).resolve().parent.parent


@dataclass(frozen=True)
class WorkingCopy:
    """Everything that git tracks or would track; its packages stand before the installed ones."""

    root: Path

    def replace(self, path: str, old: str, new: str) -> None:
        """Change one place of a file.

        Raises:
            LookupError: the file does not hold the old text, or holds it more than once.
        """
        file = self.root / path
        text = file.read_text() if file.is_file() else ""
        if (found := text.count(old)) != 1:
            raise LookupError(f"{path} must hold the text to be replaced once; found it {found} times: {old.strip()!r}")
        file.write_text(text.replace(old, new))

    def restore(self, path: str) -> None:
        """The file as it is in this tree."""
        shutil.copy(ROOT / path, self.root / path)

    def pytest(
        self, arguments: Sequence[str], limit_s: float, before: Sequence[Path] = ()
    ) -> subprocess.CompletedProcess[str]:
        """Run tests here; a run that takes longer counts as failed (124).

        Args:
            before: folders whose packages stand before all others (another SGLang).
        """
        paths = [*before, self.root, self.root / "triton_kernels"]
        environment = {
            **os.environ,
            "PYTHONPATH": os.pathsep.join(map(str, paths)),
            "PYTHONDONTWRITEBYTECODE": "1",  # a changed file may be as old and as long as the one that was cached
            "HF_HUB_OFFLINE": "1",
            "OMP_NUM_THREADS": os.environ.get("OMP_NUM_THREADS", "1"),
        }
        command = [sys.executable, "-m", "pytest", "-q", "-x", "-p", "no:cacheprovider", *arguments]
        try:
            return subprocess.run(
                command, cwd=self.root, env=environment, capture_output=True, text=True, timeout=limit_s, check=False
            )
        except subprocess.TimeoutExpired as error:
            said = error.stdout or b""
            return subprocess.CompletedProcess(command, 124, said.decode() if isinstance(said, bytes) else said, "")


@contextlib.contextmanager
def working_copy(root: Path = ROOT) -> Iterator[WorkingCopy]:
    """The copy, as long as the block lasts."""
    with tempfile.TemporaryDirectory(prefix="lvspec-copy-") as folder:
        for name in files_of(root):
            target = Path(folder) / name
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(root / name, target)
        yield WorkingCopy(Path(folder))
