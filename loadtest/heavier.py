"""Has a heavier copy of a pair made by another process, so that speculation has something to save: `--cost-ratio`."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

LAYERS_A_RATIO = 2.0  # added layers for each unit of c above 1 on a CPU; what came out stands in the report
DRAFT_LAYERS = 2  # or the server's own milliseconds would hide what the draft's forwards cost


def heavier_pair(target: str, draft: str, cost_ratio: float, folder: Path) -> tuple[str, str]:
    """Folders of a target and a draft that say what the given ones say.

    Raises:
        ValueError: a ratio of 1 or less, or a pair that cannot be copied so.
    """
    if cost_ratio <= 1:
        raise ValueError(f"--cost-ratio must be above 1, or 0 for the pair as it is; found {cost_ratio:g}. Correct it.")
    layers = round(LAYERS_A_RATIO * (cost_ratio - 1))
    made = folder / "made.json"
    wanted = {"target": target, "draft": draft, "layers": layers, "draft_layers": DRAFT_LAYERS}
    ours, small = folder / "target", folder / "draft"
    if made.is_file() and json.loads(made.read_text()) == wanted:
        return str(ours), str(small)
    command = [sys.executable, "-m", "bench.speed.heavy_target", "--target", target, "--draft", draft]
    command += ["--layers", str(layers), "--draft-layers", str(DRAFT_LAYERS), "--out", str(folder)]
    result = subprocess.run(command, capture_output=True, text=True, check=False)
    if result.returncode:
        raise ValueError(
            f"a heavier pair must be made; found status {result.returncode}:\n{result.stderr.strip()[-800:]}"
        )
    made.write_text(json.dumps(wanted) + "\n")
    return str(ours), str(small)
