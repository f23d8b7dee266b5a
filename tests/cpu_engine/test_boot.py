"""What happens at interpreter start: light, silent where a GPU is, and never against the user's own settings."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

# -S: without site, so that an installed copy's .pth line does not act before the code under test. Where site is needed,
# that line has imported its own copy already, which has to go.
START = """
import sys
sys.path.insert(0, {sources!r})
sys.modules.pop("lvspec_cpu_boot", None)
import lvspec_cpu_boot as boot
boot._DRIVER_PATHS = {drivers!r}
"""
REPORT = """
import json, os
names = ("SGLANG_USE_CPU_ENGINE", "TORCHDYNAMO_DISABLE")
print(json.dumps({"env": {n: os.environ[n] for n in names if n in os.environ},
                  "has_finder": boot.TorchvisionSchemaFinder in sys.meta_path}))
"""
DEFAULTS = {"SGLANG_USE_CPU_ENGINE": "1", "TORCHDYNAMO_DISABLE": "1"}


def run(code: str, env: dict[str, str] | None = None, flags: tuple[str, ...] = ("-S",)) -> str:
    clean = {k: v for k, v in os.environ.items() if k not in DEFAULTS}
    done = subprocess.run(
        [sys.executable, *flags, "-c", code], env=clean | (env or {}), capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def activate(sources: Path, env: dict[str, str] | None = None, drivers: tuple[str, ...] = ()) -> dict:
    code = START.format(sources=str(sources), drivers=drivers) + "boot.activate()" + REPORT
    return json.loads(run(code, env))


def test_defaults_without_a_driver(sources: Path) -> None:
    assert activate(sources) == {"env": DEFAULTS, "has_finder": True}


def test_a_set_variable_is_left_alone(sources: Path) -> None:
    got = activate(sources, {"TORCHDYNAMO_DISABLE": "0"})
    assert got == {"env": DEFAULTS | {"TORCHDYNAMO_DISABLE": "0"}, "has_finder": True}


@pytest.mark.parametrize("value", ["0", ""])
def test_switching_the_engine_off_switches_everything_off(sources: Path, value: str) -> None:
    got = activate(sources, {"SGLANG_USE_CPU_ENGINE": value})
    assert got == {"env": {"SGLANG_USE_CPU_ENGINE": value}, "has_finder": False}


def test_nothing_happens_beside_an_nvidia_driver(sources: Path, tmp_path: Path) -> None:
    assert activate(sources, drivers=("/nonexistent", str(tmp_path))) == {"env": {}, "has_finder": False}


def test_asking_for_the_engine_by_hand_wins_over_a_driver(sources: Path, tmp_path: Path) -> None:
    got = activate(sources, {"SGLANG_USE_CPU_ENGINE": "1"}, (str(tmp_path),))
    assert got == {"env": DEFAULTS, "has_finder": True}


def test_the_driver_check_looks_at_real_places(sources: Path) -> None:
    code = START.format(sources=str(sources), drivers=()).partition("boot._DRIVER_PATHS")[0]
    paths = json.loads(run(code + "import json; print(json.dumps(boot._DRIVER_PATHS))"))
    assert "/proc/driver/nvidia/version" in paths
    assert "/dev/nvidiactl" in paths


def test_start_takes_less_than_five_milliseconds_and_imports_nothing(sources: Path) -> None:
    code = f"""
import os, sys, time  # os: the site module, which reads .pth files, has loaded it
sys.path.insert(0, {str(sources)!r})
before = set(sys.modules)
begin = time.process_time()
import lvspec_cpu_boot; lvspec_cpu_boot.activate()
elapsed_ms = (time.process_time() - begin) * 1000
new = sorted(set(sys.modules) - before)
import json; print(json.dumps([elapsed_ms, new]))
"""
    runs = [json.loads(run(code)) for _ in range(5)]
    # Processor time, because the machine may be busy; the best of five, because the first may compile the module.
    assert min(elapsed_ms for elapsed_ms, _ in runs) < 5
    assert [new for _, new in runs] == [["__future__", "lvspec_cpu_boot"]] * 5


def test_torchvision_imports_beside_a_cpu_torch(sources: Path) -> None:
    pytest.importorskip("torch")
    code = START.format(sources=str(sources), drivers=()) + (
        "import os; del os.environ['SGLANG_USE_CPU_ENGINE']; boot.activate()\n"
        "import importlib.util\n"
        "print(importlib.util.find_spec('torchvision') is not None, 'torch' in sys.modules)\n"
        "import torchvision, torch\n"
        "print(hasattr(torch.ops.torchvision, 'nms'), hasattr(torch.ops.torchvision, 'qnms'))\n"
    )
    if run("import importlib.util; print(importlib.util.find_spec('torchvision'))", flags=()).strip() == "None":
        pytest.skip("torchvision is not installed")
    # The 0 keeps an installed copy's .pth line from doing the work. Looking for torchvision does not import torch.
    assert run(code, {"SGLANG_USE_CPU_ENGINE": "0"}, flags=()).split() == ["True", "False", "True", "True"]


def test_a_torchvision_whose_library_loads_is_left_alone(sources: Path, tmp_path: Path) -> None:
    # A stand-in for torch: registering a schema a second time is an error there, so define() must not be reached.
    (tmp_path / "torch.py").write_text("from types import SimpleNamespace\nops = SimpleNamespace(torchvision=None)\n")
    package = tmp_path / "torchvision"
    package.mkdir()
    (package / "__init__.py").write_text("from . import extension\n")
    (package / "extension.py").write_text(
        "import torch\ntorch.ops.torchvision = torch.SimpleNamespace(nms='its own', qnms='its own')\n"
    )
    code = START.format(sources=str(sources), drivers=()) + (
        f"sys.path.insert(0, {str(tmp_path)!r})\n"
        "boot.activate()\n"
        "import torchvision, torch\n"
        "print(torchvision.__file__, torch.ops.torchvision.nms)\n"
    )
    assert run(code).strip() == f"{package / '__init__.py'} its own"
