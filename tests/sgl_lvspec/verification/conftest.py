"""What SGLang's sampling and our verification ask of their process, and its hash where the CPU engine has none."""

from __future__ import annotations

from collections.abc import Iterator
from types import SimpleNamespace

import pytest
import torch
from sglang.srt.layers import sampler
from sglang.srt.sampling import sampling_batch_info

from sgl_lvspec.verification import commit, loose

MASK = 0xFFFFFFFF


class Settings(SimpleNamespace):
    """SGLang's `get_exec()`, as far as sampling reads it."""

    def __init__(self) -> None:
        super().__init__(
            deterministic=SimpleNamespace(enable_deterministic_inference=False, rl_on_policy_target=None),
            features=SimpleNamespace(enable_custom_logit_processor=False, enable_watermark=False),
            kernel=SimpleNamespace(sampling_backend="pytorch"),
        )


@pytest.fixture(autouse=True)
def settings(monkeypatch: pytest.MonkeyPatch) -> Settings:
    """Unseeded sampling with torch, unless a test changes it."""
    found = Settings()
    monkeypatch.setattr(sampling_batch_info, "get_exec", lambda: found)
    monkeypatch.setattr(sampler, "get_exec", lambda: found)
    return found


@pytest.fixture(autouse=True)
def tp_group(monkeypatch: pytest.MonkeyPatch) -> SimpleNamespace:
    """One rank, unless a test changes it."""
    group = SimpleNamespace(world_size=1)
    for module in (commit, loose):
        monkeypatch.setattr(module, "get_parallel", lambda: SimpleNamespace(tp_group=group))
    return group


@pytest.fixture
def seeded(settings: Settings, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Deterministic inference: a request's seed and a token's position make the draw."""
    settings.deterministic.enable_deterministic_inference = True
    monkeypatch.setattr(sampler, "murmur_hash32", murmur_hash32)
    with torch.compiler.set_stance("force_eager"):  # SGLang compiles the draw; the arithmetic is the same
        yield


def murmur_hash32(seed: torch.Tensor, positions: torch.Tensor, columns: torch.Tensor) -> torch.Tensor:
    """MurmurHash3 (32 bit) of seed, position and column: uint32 [rows, columns] as int64."""
    seed = seed.to(torch.int64)[:, None]
    state = torch.zeros(1, dtype=torch.int64)
    for word in (seed & MASK, (seed >> 32) & MASK, positions.long()[:, None] & MASK, columns.long()[None] & MASK):
        word = (word * 0xCC9E2D51) & MASK
        word = ((word << 15) | (word >> 17)) & MASK
        state = state ^ ((word * 0x1B873593) & MASK)
        state = ((state << 13) | (state >> 19)) & MASK
        state = (state * 5 + 0xE6546B64) & MASK
    state = state ^ 16
    for shift, factor in ((16, 0x85EBCA6B), (13, 0xC2B2AE35)):
        state = ((state ^ (state >> shift)) * factor) & MASK
    return state ^ (state >> 16)
