"""The kernels' tests with compiled kernels on CUDA tensors: `make gpu-test`.

Needs torch, Triton, pytest and hypothesis; the tests that compare with SGLang or FlashInfer run where those are
installed, and say so where not. On a machine without a GPU it says that and ends well.

Each file of tests runs in a process of its own, several at once: compiling some 300 variants is what takes long.
"""

from __future__ import annotations

import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor, as_completed
from pathlib import Path

from bench.gpu.machine import has_gpu

ROOT = Path(__file__).parents[2]
TESTS = "tests/lvspec_kernels"
ANY_PYTEST = ("-o", "minversion=7.0")  # what the project pins need not be on a machine that was lent
NOTHING_CHOSEN = 5  # pytest's exit status where -k leaves no test of a file


def commands(more: list[str]) -> list[list[str]]:
    """One for each file, the largest first."""
    files = sorted((ROOT / TESTS).glob("test_*.py"), key=lambda path: -path.stat().st_size)
    names = [f"{TESTS}/{path.name}" for path in files]
    return [
        [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", *ANY_PYTEST, name, *more] for name in names
    ]


def environment(of: dict[str, str]) -> dict[str, str]:
    """This environment, with kernels compiled and their package found."""
    paths = [str(ROOT / "triton_kernels"), str(ROOT), *filter(None, [of.get("PYTHONPATH")])]
    return {**of, "TRITON_INTERPRET": "0", "PYTHONPATH": os.pathsep.join(paths)}


def run_all(commands: list[list[str]], env: dict[str, str], processes: int) -> int:
    """Run them, print what each said once it has ended.

    Returns:
        0 if all tests passed, else the first other exit status.
    """

    def output_of(command: list[str]) -> subprocess.CompletedProcess[str]:
        return subprocess.run(command, cwd=ROOT, env=env, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
                              check=False)  # fmt: skip

    failed = []
    with ThreadPoolExecutor(processes) as pool:
        running = {pool.submit(output_of, command): command for command in commands}
        for done in as_completed(running):
            result = done.result()
            print(f"$ {' '.join(running[done])}\n{result.stdout}", flush=True)
            if result.returncode not in (0, NOTHING_CHOSEN):
                failed.append(result.returncode)
    print("gpu-test: " + (f"{len(failed)} of {len(commands)} files failed" if failed else "all passed"))
    return failed[0] if failed else 0


def main() -> int:
    """Run the tests; arguments go to pytest."""
    if not has_gpu():
        print("gpu-test: skipped: no GPU")
        return 0
    processes = max(1, min(8, (os.cpu_count() or 1) // 2))
    return run_all(commands(sys.argv[1:]), environment(dict(os.environ)), processes)


if __name__ == "__main__":
    sys.exit(main())
