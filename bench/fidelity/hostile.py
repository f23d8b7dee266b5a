"""A draft that lies: the demo draft's, but wherever it would say a fact, it says another of the same kind.

The rows of its output matrix are exchanged among words of one kind (colors, shapes, sizes, motions, numbers,
backgrounds), so it drafts sentences as fluent as before in which nothing is right. What it reads is left alone. A loose
rule has to notice that by itself: fluency is all that a draft's own probabilities tell.

`python -m bench.fidelity.hostile --out FOLDER` writes the pair, with the calibration made out to it as if it had been
measured: an operator who calibrated a good draft and was given a bad one.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from safetensors.torch import load_file, save_file
from transformers import AutoTokenizer

from demo.scene import BACKGROUNDS, COLORS, MOTIONS, NUMBERS, SHAPES, SIZES
from sgl_lvspec.relevance.identity import identify

KINDS: tuple[Sequence[str], ...] = (COLORS, SHAPES, SIZES, MOTIONS, NUMBERS, BACKGROUNDS)
HEAD = "lm_head.weight"
CALIBRATION = "lvspec.json"


def exchanged_tokens(tokenizer: Any) -> dict[int, int]:
    """Token by the token that is said in its place, both of one kind; words of several tokens are left out."""
    exchanged: dict[int, int] = {}
    for words in KINDS:
        for spelled in (list(words), [f" {word}" for word in words], [word.capitalize() for word in words]):
            found = [tokenizer.encode(word, add_special_tokens=False) for word in spelled]
            single = [ids[0] for ids in found if len(ids) == 1 and ids[0] not in exchanged]
            if len(single) > 1:
                exchanged |= dict(zip(single, single[1:] + single[:1], strict=True))
    return exchanged


def write_hostile(pair: Path, out: Path) -> int:
    """Write `pair` to `out` with such a draft, the target as it is. Returns how many tokens are exchanged.

    Raises:
        ValueError: the draft has no output matrix of its own, or none of the words is one token.
    """
    weights = load_file(pair / "draft" / "model.safetensors")
    exchanged = exchanged_tokens(AutoTokenizer.from_pretrained(pair / "draft"))
    if HEAD not in weights or not exchanged:
        raise ValueError(
            f"a draft with {HEAD} and one-token words of the clips is needed; found {len(exchanged)} such words in "
            f"{pair / 'draft'}. Name the demo pair."
        )
    shutil.copytree(pair / "target", out / "target")
    shutil.copytree(pair / "draft", out / "draft")
    head = weights[HEAD].clone()
    for token, said in exchanged.items():
        head[said] = weights[HEAD][token]
    save_file({**weights, HEAD: head}, out / "draft" / "model.safetensors", metadata={"format": "pt"})
    calibration = json.loads((out / "target" / CALIBRATION).read_text())
    calibration["draft"] = dataclasses.asdict(identify(str(out / "draft")))
    (out / "target" / CALIBRATION).write_text(json.dumps(calibration, indent=1) + "\n")
    return len(exchanged)


def main() -> None:
    """The command."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pair", type=Path, default=Path("demo/pair"))
    parser.add_argument("--out", type=Path, required=True, help="a new folder")
    args = parser.parse_args()
    print(f"{args.out}: a draft that exchanges {write_hostile(args.pair, args.out)} tokens")


if __name__ == "__main__":
    main()
