"""Dimensions of the models that the kernels are meant for, and the shapes of a round with them."""

from __future__ import annotations

from dataclasses import dataclass

import torch

WIDTH = 11  # nodes of a verified chain, K + 1
BINS = 32  # of the histogram of care
# Sixteen calibrated heads lie in about as many layers as four of them usually come from (bench/round_cost.py).
CALIBRATED_LAYERS, CALIBRATED_HEADS = 4, 4
KEPT = 10  # the draft keeps one of so many visual tokens


@dataclass(frozen=True)
class Model:
    """The language model's part of a published config.json."""

    name: str
    layers: int
    hidden: int
    mlp: int
    heads: int
    kv_heads: int
    head_dim: int = 128
    vocabulary: int = 152_064


QWEN_7B = Model("Qwen2.5-VL-7B", 28, 3584, 18_944, 28, 4)
QWEN_32B = Model("Qwen2.5-VL-32B", 64, 5120, 27_648, 40, 8)
# LLaVA-OneVision-72B is built on Qwen2-72B: the language models of both have these dimensions.
QWEN_72B = Model("Qwen2.5-VL-72B, LLaVA-OneVision-72B", 80, 8192, 29_568, 64, 8)
MODELS = (QWEN_7B, QWEN_32B, QWEN_72B)
TARGET, DRAFT = QWEN_32B, QWEN_7B

REQUESTS = (1, 4, 16, 64)  # 11, 44, 176 and 704 rows
SLOTS = (5_000, 20_000, 50_000)  # visual, of each request


@dataclass(frozen=True)
class Shape:
    """What an op is run on. Ops leave out of account what their cost does not depend on."""

    model: Model
    requests: int
    slots: int = 0  # visual slots of each request's context
    dtype: torch.dtype = torch.bfloat16  # of logits, keys and states
    text: int = 500  # positions of a context that are no video

    @property
    def rows(self) -> int:
        return self.requests * WIDTH

    @property
    def context(self) -> int:
        """Positions of each request, its nodes included."""
        return self.slots + self.text + WIDTH

    @property
    def itemsize(self) -> int:
        return self.dtype.itemsize


def kv_heads_read(model: Model) -> int:
    """How many KV heads the calibrated heads of a layer share."""
    return len({head // (model.heads // model.kv_heads) for head in calibrated_heads(model)})


def calibrated_heads(model: Model) -> list[int]:
    """Query heads of a layer, spread evenly."""
    count = min(CALIBRATED_HEADS, model.heads)
    return [column * (model.heads // count) for column in range(count)]
