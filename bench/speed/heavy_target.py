"""A target (and a draft) that costs what a large one costs and says what the demo pair's says.

Layers are added whose output projections are zero, so that each adds nothing to the residual stream; what they compute
is computed all the same. The decoder's MLPs become as wide as the added ones (a checkpoint has one width), their new
neurons with zero output weights. Both are exact: x + 0 is x, and a sum gains zeros. What follows for served token ids
is asserted by the bench itself, which compares them with the plain target's.

`python -m bench.speed.heavy_target --layers 8 --draft-layers 2 --out FOLDER` writes both, for other measurements.
"""

from __future__ import annotations

import argparse
import json
import shutil
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file

from sgl_lvspec.relevance.identity import identify

LAYERS = "model.layers."  # how the demo pair's checkpoints call a decoder layer's weights
WIDTH = 4096  # neurons of an added MLP: 6.3 MB of bfloat16 weights a layer; ten of them leave a core's caches
CALIBRATION = "lvspec.json"


def write_heavy(target: Path, out: Path, layers: int, width: int = WIDTH, *, draft: Path | None = None) -> None:
    """Write the checkpoint in `target` to `out` with so many more layers, and its calibration, made out to the copy.

    Args:
        draft: the draft that the calibration is made out to, where it is another copy, too.

    Raises:
        ValueError: no decoder layers where they are looked for, or MLPs that are wider than `width`.
    """
    config = json.loads((target / "config.json").read_text())
    text = config["text_config"]
    old_layers, old_width = text["num_hidden_layers"], text["intermediate_size"]
    weights = load_file(target / "model.safetensors")
    last = f"{LAYERS}{old_layers - 1}."
    found = {name.removeprefix(last): part for name, part in weights.items() if name.startswith(last)}
    if not found or old_width > width:
        raise ValueError(
            f"a heavy target is made of decoder layers named {last}... with at most {width} neurons; found "
            f"{len(found)} weights and {old_width} neurons in {target}. Name the demo pair's target."
        )
    generator = torch.Generator().manual_seed(0)
    for layer in range(old_layers):
        for name in ("gate_proj", "up_proj", "down_proj"):
            key = f"{LAYERS}{layer}.mlp.{name}.weight"
            weights[key] = _widened(weights[key], width, name, generator)
    for layer in range(old_layers, old_layers + layers):
        for name, part in found.items():
            key = f"{LAYERS}{layer}.{name}"
            source = weights[f"{last}{name}"] if ".mlp." in f".{name}" else part
            weights[key] = torch.zeros_like(source) if _writes_to_residual(name) else source.clone()
    text["num_hidden_layers"], text["intermediate_size"] = old_layers + layers, width
    text["layer_types"] = [text["layer_types"][0]] * (old_layers + layers)
    out.mkdir(parents=True)
    for file in target.iterdir():
        if file.name not in ("config.json", "model.safetensors", CALIBRATION):
            shutil.copy(file, out)
    (out / "config.json").write_text(json.dumps(config, indent=2) + "\n")
    save_file(weights, out / "model.safetensors", metadata={"format": "pt"})
    if (target / CALIBRATION).is_file():
        _make_out_to(out, draft, json.loads((target / CALIBRATION).read_text()))


def _writes_to_residual(name: str) -> bool:
    return name.startswith(("self_attn.o_proj.", "mlp.down_proj."))


def _widened(weight: torch.Tensor, width: int, name: str, generator: torch.Generator) -> torch.Tensor:
    """[neurons, hidden], or [hidden, neurons] of the output, with new neurons that write nothing."""
    if name == "down_proj":
        new = torch.zeros(weight.shape[0], width - weight.shape[1])
        return torch.cat([weight, new.to(weight.dtype)], dim=1).contiguous()
    new = torch.randn(width - weight.shape[0], weight.shape[1], generator=generator) * 0.02
    return torch.cat([weight, new.to(weight.dtype)], dim=0).contiguous()


def _make_out_to(folder: Path, draft: Path | None, calibration: dict[str, object]) -> None:
    """The heads that were calibrated are the same ones in the copy; only the fingerprint of its files is another."""
    for role, path in {"target": folder, "draft": draft}.items():
        if path is not None:
            identity, recorded = identify(str(path)), calibration[role]
            assert isinstance(recorded, dict)
            calibration[role] = {name: getattr(identity, name) for name in recorded}
    (folder / CALIBRATION).write_text(json.dumps(calibration, indent=1) + "\n")


def main() -> None:
    """Command line: a pair as `--out`/target and `--out`/draft; what lay there is replaced."""
    parser = argparse.ArgumentParser(prog="python -m bench.speed.heavy_target", description=__doc__)
    parser.add_argument("--target", type=Path, default=Path("demo/pair/target"))
    parser.add_argument("--draft", type=Path, default=Path("demo/pair/draft"))
    parser.add_argument("--layers", type=int, required=True, help="more than the target has")
    parser.add_argument("--draft-layers", type=int, default=2, help="more than the draft has")
    parser.add_argument("--width", type=int, default=WIDTH, help="neurons of a layer's MLP")
    parser.add_argument("--out", type=Path, required=True)
    options = parser.parse_args()
    if options.layers < 0 or options.draft_layers < 0:
        parser.error("--layers and --draft-layers must be 0 or more")
    target, draft = options.out / "target", options.out / "draft"
    for folder in (target, draft):
        shutil.rmtree(folder, ignore_errors=True)
    write_heavy(options.draft, draft, options.draft_layers, options.width)
    write_heavy(options.target, target, options.layers, options.width, draft=draft)


if __name__ == "__main__":
    main()
