"""A heavy target says what the light one says, and costs more."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from bench.speed import heavy_target
from sgl_lvspec.flags import examine_calibration

TARGET = Path("demo/pair/target")


class TestHeavyTarget:
    @pytest.fixture(scope="class")
    @staticmethod
    def heavy(tmp_path_factory: pytest.TempPathFactory) -> Path:
        out = tmp_path_factory.mktemp("heavy") / "target"
        heavy_target.write_heavy(Path("demo/pair/draft"), out.parent / "draft", layers=1, width=512)
        heavy_target.write_heavy(TARGET, out, layers=3, width=1024, draft=out.parent / "draft")
        return out

    def test_it_says_what_the_light_one_says(self, heavy: Path) -> None:
        from transformers import AutoModelForImageTextToText

        light, same = (
            AutoModelForImageTextToText.from_pretrained(path, dtype=torch.float32) for path in (TARGET, heavy)
        )
        assert len(same.model.language_model.layers) == len(light.model.language_model.layers) + 3
        assert same.model.language_model.layers[0].mlp.up_proj.out_features == 1024
        ids = torch.randint(0, 1000, (3, 40), generator=torch.Generator().manual_seed(0))
        with torch.no_grad():
            a, b = light(input_ids=ids).logits, same(input_ids=ids).logits
        # Zeros are added, but a longer sum may be cut into blocks elsewhere: the last bits of float32.
        assert torch.allclose(a, b, atol=1e-4)
        assert torch.equal(a.argmax(-1), b.argmax(-1))

    def test_what_is_added_computes_and_writes_nothing(self, heavy: Path) -> None:
        from safetensors.torch import load_file

        weights = load_file(heavy / "model.safetensors")
        for layer in (4, 5, 6):
            assert not weights[f"model.layers.{layer}.mlp.down_proj.weight"].any()
            assert not weights[f"model.layers.{layer}.self_attn.o_proj.weight"].any()
            assert weights[f"model.layers.{layer}.mlp.up_proj.weight"].any(dim=1).all()

    def test_its_calibration_is_made_out_to_it(self, heavy: Path) -> None:
        assert examine_calibration(heavy / "lvspec.json", str(heavy), str(heavy.parent / "draft"), None, None) is None
        light, own = (json.loads((path / "lvspec.json").read_text()) for path in (TARGET, heavy))
        assert own["target"].pop("fingerprint") != light["target"].pop("fingerprint")
        assert (own.pop("target")["num_layers"], light.pop("target")["num_layers"]) == (7, 4)
        assert (own.pop("draft")["num_layers"], light.pop("draft")["num_layers"]) == (3, 2)
        assert own == light

    def test_another_checkpoint_is_refused(self, tmp_path: Path) -> None:
        with pytest.raises(ValueError, match="at most 100 neurons; found 12 weights and 640 neurons"):
            heavy_target.write_heavy(TARGET, tmp_path / "x", layers=1, width=100)
