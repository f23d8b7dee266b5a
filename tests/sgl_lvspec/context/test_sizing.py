"""SGLang's size of the target's pool: charged with the draft's own bytes, where the draft has slots of its own."""

from __future__ import annotations

from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from sglang.srt.layers.radix_attention import RadixAttention

from sgl_lvspec import late_hooks
from sgl_lvspec.config import LVSpecConfig
from sgl_lvspec.context import sizing
from sgl_lvspec.context.pool import share_of_target

ROWS, WIDTH = 8, 4
TARGET_BYTES = 1000  # of a token, by SGLang's own count
DRAFT_BYTES = 3 * (2 * 8 + 2 * 6) * 2  # layers, KV heads and widths of keys and values, float16


def draft() -> Any:
    layers = torch.nn.ModuleList(RadixAttention(4, 8, 1.0, 2, layer_id=number, v_head_dim=6) for number in range(3))
    model = torch.nn.Sequential(torch.nn.Linear(2, 2), layers)
    return SimpleNamespace(model=model, kv_cache_dtype=torch.float16)


@pytest.fixture
def charged(monkeypatch: pytest.MonkeyPatch) -> Callable[..., Any]:
    """A configurator of SGLang after ours has corrected it; real hooks cannot be taken back."""
    hooks: list[Any] = []
    monkeypatch.setattr(late_hooks, "apply", lambda *arguments: hooks.append(arguments))
    monkeypatch.setattr(sizing, "get_schedule", lambda: SimpleNamespace(max_running_requests=ROWS))

    def install(config: LVSpecConfig, is_draft_worker: bool = False) -> Any:
        sizing.install(config, draft(), WIDTH)
        [(target, hook, kind)] = hooks
        assert target == "sglang.srt.model_executor.pool_configurator.DefaultPoolConfigurator.__init__"
        assert kind == "after"
        kvc = SimpleNamespace(is_draft_worker=is_draft_worker, layer_info=SimpleNamespace(num_effective_layers=5))
        configurator = SimpleNamespace(
            _cell_size=9_999,  # the draft's layers at the target's bytes
            _fixed_overhead_bytes=70,
            _compute_cell_size=lambda given, layers: TARGET_BYTES if (given, layers) == (kvc, 5) else 0,
        )
        assert hook(None, configurator, kvc) is None
        return configurator

    return install


def test_bytes_of_a_token_are_those_of_the_drafts_layers() -> None:
    assert sizing.bytes_per_token(draft()) == DRAFT_BYTES


@pytest.mark.parametrize("config", [LVSpecConfig(), LVSpecConfig(context="specvlm", keep=0.1)], ids=["full", "pruned"])
def test_every_token_is_charged_with_the_drafts_part_of_it(charged: Callable[..., Any], config: LVSpecConfig) -> None:
    found = charged(config)
    assert found._cell_size == TARGET_BYTES + round(DRAFT_BYTES * share_of_target(config))
    assert found._fixed_overhead_bytes == 70 + (ROWS + 1) * WIDTH * DRAFT_BYTES


def test_a_pool_of_named_size_is_charged_once(charged: Callable[..., Any]) -> None:
    found = charged(LVSpecConfig(context="uniform", draft_tokens=500))
    assert found._cell_size == TARGET_BYTES
    assert found._fixed_overhead_bytes == 70 + ((ROWS + 1) * WIDTH + 500) * DRAFT_BYTES


def test_the_drafts_own_pool_is_none_of_its_business(charged: Callable[..., Any]) -> None:
    found = charged(LVSpecConfig(), is_draft_worker=True)
    assert (found._cell_size, found._fixed_overhead_bytes) == (9_999, 70)
