"""`python -m sgl_lvspec.seams FOLDER`: every seam against an unpacked SGLang, as JSON on standard output.

For releases that are not installed (tools/upgrades.py); `lvspec doctor` looks at the installed one.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

from sgl_lvspec import SGLANG_TESTED
from sgl_lvspec.seams import SEAMS, SourceTree, check


def main(arguments: list[str]) -> int:
    """Prints {"tested", "seams", "broken": [{"used_in", "message"}]}; 2 = the folder holds no SGLang."""
    if len(arguments) != 1 or not (Path(arguments[0]) / "sglang" / "__init__.py").is_file():
        print(
            f"required  one folder that holds the package sglang\nfound     {' '.join(arguments) or 'none'}\n"
            "do this   unpack a wheel of it there, and name the folder",
            file=sys.stderr,
        )
        return 2
    try:
        beside = SourceTree.installed("torch").root  # classes of SGLang are modules of torch
    except ModuleNotFoundError:
        beside = None
    tree = SourceTree(Path(arguments[0]), beside)
    found = [(seam, check(seam, tree)) for seam in SEAMS if not seam.target.startswith("flashinfer")]
    broken = [{"used_in": seam.used_in, "message": message} for seam, message in found if message is not None]
    print(json.dumps({"tested": SGLANG_TESTED, "seams": len(found), "broken": broken}, indent=1))
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
