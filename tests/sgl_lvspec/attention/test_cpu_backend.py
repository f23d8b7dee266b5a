"""`lvspec_cpu` as SGLang calls it: a plan per forward, keys written before they are read, the draft's steps.

Pools and layers are SGLang's own; runner and forward batch are stand-ins with the fields that a backend reads.
"""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch
from sglang.srt.layers.radix_attention import AttentionType, RadixAttention
from sglang.srt.mem_cache.memory_pool import MHATokenToKVPool, ReqToTokenPool
from sglang.srt.model_executor.forward_batch_info import ForwardMode

from sgl_lvspec.attention.cpu_backend import CpuAttnBackend, CpuChainDraftBackend
from tests.sgl_lvspec.attention.paged_kv import TOLERANCE, PagedKV, dense_attention

pytestmark = pytest.mark.skipif(
    torch.cuda.is_available(), reason="lvspec_cpu is for machines without a GPU: there SGLang's pools take CUDA tensors"
)

QUERY_HEADS, KV_HEADS, WIDTH, LAYER = 4, 2, 8, 1
SCALE = 0.3
NUM_SLOTS = 400


class Runner:
    """What the backend reads of a model runner, with filled contexts."""

    def __init__(self) -> None:
        self.req_to_token_pool = ReqToTokenPool(8, 48, "cpu", enable_memory_saver=False)
        self.token_to_kv_pool = MHATokenToKVPool(
            NUM_SLOTS, 1, torch.float32, KV_HEADS, WIDTH, LAYER + 1, "cpu", enable_memory_saver=False
        )
        self.rng = torch.Generator().manual_seed(0)
        slots = torch.randperm(NUM_SLOTS, generator=self.rng)[: 8 * 48].view(8, 48) + 1
        self.req_to_token_pool.req_to_token[1:] = slots.to(torch.int32)

    def fill(self, row: int, length: int) -> None:
        """Keys and values of a context that is already there."""
        slots = self.req_to_token_pool.req_to_token[row, :length].long()
        for pool in (self.token_to_kv_pool.get_key_buffer(LAYER), self.token_to_kv_pool.get_value_buffer(LAYER)):
            pool[slots] = torch.randn(length, KV_HEADS, WIDTH, generator=self.rng)

    def new_tokens(self, count: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Query, key and value of `count` tokens as a model hands them over."""
        q = torch.randn(count, QUERY_HEADS * WIDTH, generator=self.rng)
        k, v = (torch.randn(count, KV_HEADS, WIDTH, generator=self.rng) for _ in range(2))
        return q, k, v

    def slots_of(self, rows: list[int], first: list[int], count: list[int]) -> torch.Tensor:
        """Where SGLang has new tokens written: `count` slots from position `first` of each row."""
        table = self.req_to_token_pool.req_to_token
        return torch.cat([table[r, f : f + c] for r, f, c in zip(rows, first, count, strict=True)]).long()

    def defined(
        self, q: torch.Tensor, rows: list[int], query_lens: list[int], kv_lens: list[int], causal: bool = True
    ) -> torch.Tensor:
        """What the forward has to return: attention over the pool as it is now."""
        kv = PagedKV(
            self.req_to_token_pool.req_to_token,
            torch.tensor(rows),
            self.token_to_kv_pool.get_key_buffer(LAYER),
            self.token_to_kv_pool.get_value_buffer(LAYER),
            kv_lens,
        )
        return dense_attention(q.view(-1, QUERY_HEADS, WIDTH), kv, query_lens, SCALE, causal).flatten(1)


@pytest.fixture
def runner() -> Runner:
    return Runner()


def make_layer(**changes: Any) -> RadixAttention:
    return RadixAttention(QUERY_HEADS, WIDTH, SCALE, KV_HEADS, layer_id=LAYER, **changes)


def assert_near(actual: torch.Tensor, expected: torch.Tensor) -> None:
    torch.testing.assert_close(actual.double(), expected, rtol=0, atol=TOLERANCE[torch.float32])


# name: (mode, committed tokens before the forward, new tokens, whether seq_lens counts the new ones)
FORWARDS: dict[str, tuple[ForwardMode, list[int], list[int], bool]] = {
    "decode": (ForwardMode.DECODE, [20, 3, 11], [1, 1, 1], True),
    "prompt": (ForwardMode.EXTEND, [0, 0, 0], [13, 1, 7], True),
    "chunk-behind-a-prefix": (ForwardMode.EXTEND, [20, 0, 5], [4, 9, 1], True),
    "target-verify": (ForwardMode.TARGET_VERIFY, [20, 3, 11], [5, 5, 5], False),
}


@pytest.mark.parametrize("name", FORWARDS)
def test_new_tokens_see_the_context_and_themselves(name: str, runner: Runner) -> None:
    mode, committed, new, is_counted = FORWARDS[name]
    rows = [5, 2, 7]
    for row, length in zip(rows, committed, strict=True):
        runner.fill(row, length)
    q, k, v = runner.new_tokens(sum(new))
    kv_lens = [c + n for c, n in zip(committed, new, strict=True)]
    batch = SimpleNamespace(
        forward_mode=mode,
        req_pool_indices=torch.tensor(rows),
        seq_lens=torch.tensor(kv_lens if is_counted else committed),
        extend_seq_lens=torch.tensor(new) if mode == ForwardMode.EXTEND else None,
        spec_info=SimpleNamespace(draft_token_num=new[0]) if mode == ForwardMode.TARGET_VERIFY else None,
        out_cache_loc=runner.slots_of(rows, committed, new),
    )
    backend = CpuAttnBackend(runner)
    backend.init_forward_metadata(batch)
    actual = backend.forward(q, k, v, make_layer(), batch)
    assert torch.equal(runner.token_to_kv_pool.get_key_buffer(LAYER)[batch.out_cache_loc], k)
    assert torch.equal(runner.token_to_kv_pool.get_value_buffer(LAYER)[batch.out_cache_loc], v)
    assert_near(actual, runner.defined(q, rows, new, kv_lens))


def test_keys_that_must_not_be_saved_are_not(runner: Runner) -> None:
    runner.fill(3, 6)
    q, k, v = runner.new_tokens(1)
    before = runner.token_to_kv_pool.get_key_buffer(LAYER).clone()
    batch = decode_batch([3], [6], runner.slots_of([3], [5], [1]))
    backend = CpuAttnBackend(runner)
    backend.init_forward_metadata(batch)
    actual = backend.forward(q, k, v, make_layer(), batch, save_kv_cache=False)
    assert torch.equal(runner.token_to_kv_pool.get_key_buffer(LAYER), before)
    assert_near(actual, runner.defined(q, [3], [1], [6]))


def test_an_idle_forward_answers_for_no_token(runner: Runner) -> None:
    backend = CpuAttnBackend(runner)
    backend.init_forward_metadata(decode_batch([3], [6], torch.tensor([9])))
    idle = SimpleNamespace(forward_mode=ForwardMode.IDLE)
    backend.init_forward_metadata(idle)
    assert backend.rows is None
    assert backend.forward(*runner.new_tokens(0), make_layer(), idle).shape == (0, QUERY_HEADS * WIDTH)


def test_a_forward_without_a_plan_is_a_broken_rule(runner: Runner) -> None:
    batch = decode_batch([3], [6], torch.tensor([9]))
    with pytest.raises(AssertionError, match="init_forward_metadata must run"):
        CpuAttnBackend(runner).forward(*runner.new_tokens(1), make_layer(), batch)


def test_draft_step_i_sees_the_committed_context_and_the_chain_up_to_itself(runner: Runner) -> None:
    rows, committed, num_steps = [4, 1], [9, 30], 4
    for row, length in zip(rows, committed, strict=True):
        runner.fill(row, length)
    backend = CpuChainDraftBackend(runner, num_steps)
    backend.init_forward_metadata(decode_batch(rows, committed, torch.tensor([])))
    assert len(backend.attn_backends) == num_steps
    for step, step_backend in enumerate(backend.attn_backends):
        q, k, v = runner.new_tokens(2)
        batch = decode_batch(rows, committed, runner.slots_of(rows, [n + step for n in committed], [1, 1]))
        actual = step_backend.forward(q, k, v, make_layer(), batch)
        assert_near(actual, runner.defined(q, rows, [1, 1], [n + step + 1 for n in committed]))


@pytest.mark.parametrize(
    ("changes", "name"),
    [
        ({"sliding_window_size": 16}, r"sliding window \(16\)"),
        ({"is_cross_attention": True}, "cross attention"),
        ({"logit_cap": 30.0}, r"logit cap \(30.0\)"),
        ({"attn_type": AttentionType.DECODER_BIDIRECTIONAL}, "both directions"),
    ],
    ids=["sliding-window", "cross-attention", "logit-cap", "bidirectional"],
)
def test_other_kinds_of_attention_are_refused_by_name(changes: dict[str, Any], name: str, runner: Runner) -> None:
    batch = decode_batch([3], [6], torch.tensor([9]))
    backend = CpuAttnBackend(runner)
    backend.init_forward_metadata(batch)
    with pytest.raises(NotImplementedError, match=name):
        backend.forward(*runner.new_tokens(1), make_layer(**changes), batch)


def test_a_query_temperature_which_a_model_sets_on_its_layer_is_refused(runner: Runner) -> None:
    layer = make_layer()
    layer.xai_temperature_len = 1024
    backend = CpuAttnBackend(runner)
    backend.init_forward_metadata(decode_batch([3], [6], torch.tensor([9])))
    with pytest.raises(NotImplementedError, match="query temperature"):
        backend.forward(*runner.new_tokens(1), layer, decode_batch([3], [6], torch.tensor([9])))


def test_an_argument_of_another_kind_of_attention_is_refused_and_an_empty_one_is_not(runner: Runner) -> None:
    batch = decode_batch([3], [6], torch.tensor([9]))
    backend = CpuAttnBackend(runner)
    backend.init_forward_metadata(batch)
    backend.forward(*runner.new_tokens(1), make_layer(), batch, sinks=None)
    with pytest.raises(NotImplementedError, match="argument sinks"):
        backend.forward(*runner.new_tokens(1), make_layer(), batch, sinks=torch.zeros(QUERY_HEADS))


def test_an_encoder_layer_sees_both_ways(runner: Runner) -> None:
    q, k, v = runner.new_tokens(6)
    batch = SimpleNamespace(
        forward_mode=ForwardMode.EXTEND,
        req_pool_indices=torch.tensor([2]),
        seq_lens=torch.tensor([6]),
        extend_seq_lens=torch.tensor([6]),
        out_cache_loc=runner.slots_of([2], [0], [6]),
    )
    backend = CpuAttnBackend(runner)
    backend.init_forward_metadata(batch)
    actual = backend.forward(q, k, v, make_layer(attn_type=AttentionType.ENCODER_ONLY), batch)
    assert_near(actual, runner.defined(q, [2], [6], [6], causal=False))


def test_sglangs_triton_helpers_are_told_to_stay_away(runner: Runner) -> None:
    assert CpuAttnBackend(runner).support_triton() is False


def decode_batch(rows: list[int], seq_lens: list[int], out_cache_loc: torch.Tensor) -> SimpleNamespace:
    return SimpleNamespace(
        forward_mode=ForwardMode.DECODE,
        req_pool_indices=torch.tensor(rows),
        seq_lens=torch.tensor(seq_lens),
        out_cache_loc=out_cache_loc,
    )
