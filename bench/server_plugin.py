"""A module of this repository as a plugin of one server alone, found through PYTHONPATH: nothing is installed."""

from __future__ import annotations

import os
from pathlib import Path

_ROOT = Path(__file__).parents[1]


def environment(folder: Path, module: str) -> dict[str, str]:
    """Environment of a server whose processes call `load` of a module, as SGLang does with every installed plugin.

    Args:
        folder: gets the metadata that name the module; its own for each server.
        module: dotted name, from the root of this repository.

    Raises:
        FileExistsError: the folder has them already.
    """
    name = "lvspec_" + module.rpartition(".")[2] + "_of_a_bench"
    metadata = folder / f"{name}-0.dist-info"
    metadata.mkdir(parents=True)
    (metadata / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: 0\n")
    (metadata / "entry_points.txt").write_text(f"[sglang.srt.plugins]\n{name} = {module}:load\n")
    paths = filter(None, (str(folder), str(_ROOT), os.environ.get("PYTHONPATH")))
    return {"PYTHONPATH": os.pathsep.join(paths)}
