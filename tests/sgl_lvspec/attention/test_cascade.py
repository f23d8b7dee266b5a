"""Attention that reads a shared video once, against attention by definition in which every request reads its own."""

from __future__ import annotations

import logging
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from sglang.srt.model_executor.forward_batch_info import ForwardMode

from sgl_lvspec.attention import cascade as module
from sgl_lvspec.attention.cascade import Cascade, CascadeRows, attend_cascade, merge_state
from sgl_lvspec.attention.cpu_backend import CpuAttnBackend
from sgl_lvspec.attention.paged import PagedRows, attend
from tests.sgl_lvspec.attention.paged_kv import TOLERANCE, PagedKV, dense_attention, make_kv
from tests.sgl_lvspec.attention.test_cpu_backend import LAYER, Runner, decode_batch, make_layer

SCALE = 0.3
FAR = 300  # own parts this far apart run request by request


def share(kv: PagedKV, groups: dict[int, list[int]]) -> torch.Tensor:
    """Give requests the first slots of their group's leader, {shared length: requests}; which slots are visual."""
    is_visual = torch.zeros(len(kv.keys), dtype=torch.bool)
    for length, requests in groups.items():
        leader = kv.req_to_token[kv.req_pool_indices[requests[0]], :length]
        for request in requests[1:]:
            kv.req_to_token[kv.req_pool_indices[request], :length] = leader
        is_visual[leader[length // 3 :].long()] = True
    return is_visual


# name: (query rows of every request, context lengths, {shared length: requests})
FORWARDS: dict[str, tuple[int, list[int], dict[int, list[int]]]] = {
    "verify-two": (4, [25, 31], {18: [0, 1]}),
    "verify-two-videos-and-one-alone": (3, [25, 31, 12, 40, 29, 33], {18: [0, 4], 22: [1, 3, 5]}),
    "verify-nothing-of-their-own": (4, [22, 22], {18: [0, 1]}),
    "verify-far-apart": (3, [25, 31, 31 + FAR], {18: [0, 1, 2]}),
    "decode": (1, [19, 30, 24, 6], {18: [0, 1, 2]}),
}


@pytest.fixture
def rng() -> torch.Generator:
    return torch.Generator().manual_seed(0)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("heads", [(2, 2), (4, 2), (7, 1)], ids=str)
@pytest.mark.parametrize("name", FORWARDS)
def test_every_forward_is_attention_by_definition(
    name: str, heads: tuple[int, int], dtype: torch.dtype, rng: torch.Generator
) -> None:
    width, kv_lens, groups = FORWARDS[name]
    kv = make_kv(kv_lens, heads[1], 8, dtype, rng)
    is_visual = share(kv, groups)
    query = torch.randn(width * len(kv_lens), heads[0], 8, generator=rng).to(dtype)
    query_lens = [width] * len(kv_lens)
    rows = Cascade(is_visual, min_saved=1).plan(kv.req_to_token, kv.req_pool_indices, query_lens, kv_lens)
    assert isinstance(rows, CascadeRows)
    assert {len(segment.slots): list(segment.requests) for segment in rows.segments} == groups
    actual = attend_cascade(query, kv.keys, kv.values, rows, SCALE)
    assert actual.dtype == dtype
    expected = dense_attention(query, kv, query_lens, SCALE)
    torch.testing.assert_close(actual.double(), expected, rtol=0, atol=TOLERANCE[dtype])
    plain = attend(
        query, kv.keys, kv.values, PagedRows.of(kv.req_to_token, kv.req_pool_indices, query_lens, kv_lens), SCALE
    )
    # Float32: sums of products of size 1 in another order. bfloat16: each part is rounded before they are joined.
    torch.testing.assert_close(actual.double(), plain.double(), rtol=0, atol=TOLERANCE[dtype])


def test_the_shared_slots_are_read_once(rng: torch.Generator, monkeypatch: pytest.MonkeyPatch) -> None:
    """And nothing of them by a request on its own."""
    width, kv_lens, groups = FORWARDS["verify-two-videos-and-one-alone"]
    kv = make_kv(kv_lens, 2, 8, torch.float32, rng)
    rows = Cascade(share(kv, groups), min_saved=1).plan(kv.req_to_token, kv.req_pool_indices, [width] * 6, kv_lens)
    assert isinstance(rows, CascadeRows)
    shared = torch.cat([segment.slots for segment in rows.segments])
    assert len(shared.unique()) == len(shared) == 40
    own = [rows.rest.slots[request, :length] for request, length in enumerate(rows.rest.kv_lens)]
    assert not torch.isin(torch.cat(own), shared).any()
    assert rows.slots_saved == 1 * 18 + 2 * 22 == sum(kv_lens) - len(shared) - sum(map(len, own))


def test_a_batch_that_shares_nothing_is_planned_as_ever(rng: torch.Generator) -> None:
    kv = make_kv([9, 20], 2, 8, torch.float32, rng)
    no_video = torch.zeros(len(kv.keys), dtype=torch.bool)
    rows = Cascade(no_video, min_saved=1).plan(kv.req_to_token, kv.req_pool_indices, [3, 3], [9, 20])
    expected = PagedRows.of(kv.req_to_token, kv.req_pool_indices, [3, 3], [9, 20])
    assert isinstance(rows, PagedRows)
    assert torch.equal(rows.slots, expected.slots)


# --- merging


def test_merged_parts_are_the_whole(rng: torch.Generator) -> None:
    scores, values = torch.randn(5, 2, 9, generator=rng) * 5, torch.randn(5, 2, 9, 4, generator=rng)

    def part(keys: slice) -> tuple[torch.Tensor, torch.Tensor]:
        shares = scores[..., keys].softmax(dim=-1)
        return torch.einsum("rhl,rhle->rhe", shares, values[..., keys, :]), scores[..., keys].logsumexp(dim=-1)

    whole, lse = part(slice(None))
    merged, merged_lse = merge_state(*part(slice(0, 6)), *part(slice(6, 9)))
    # Outputs of up to 3 and logarithms of up to 15: a few last bits of float32.
    torch.testing.assert_close(merged, whole, rtol=0, atol=2e-6)
    torch.testing.assert_close(merged_lse, lse, rtol=0, atol=4e-6)


def test_an_empty_part_changes_nothing_and_two_make_nothing() -> None:
    output, lse, nothing = torch.ones(1, 1, 4), torch.full((1, 1), 3.0), torch.full((1, 1), -torch.inf)
    for merged in (merge_state(output, lse, output * 7, nothing), merge_state(output * 7, nothing, output, lse)):
        assert torch.equal(merged[0], output)
        assert torch.equal(merged[1], lse)
    empty, lse = merge_state(output, nothing, output, nothing)
    assert torch.equal(empty, torch.zeros(1, 1, 4))
    assert torch.equal(lse, nothing)


def test_large_log_sum_exps_do_not_overflow() -> None:
    output, lse = merge_state(
        torch.ones(1, 1, 1), torch.full((1, 1), 500.0), torch.full((1, 1, 1), 3.0), torch.full((1, 1), 500.0)
    )
    assert output.item() == pytest.approx(2.0)
    assert lse.item() == pytest.approx(500.693, abs=1e-3)


# --- in the backend


@pytest.fixture
def runner() -> Runner:
    return Runner()


def sharing(runner: Runner, rows: list[int], length: int) -> Cascade:
    """Rows that begin with the slots of the first one; a cascade that knows them for a video."""
    table = runner.req_to_token_pool.req_to_token
    for row in rows[1:]:
        table[row, :length] = table[rows[0], :length]
    is_visual = torch.zeros(401, dtype=torch.bool)
    is_visual[table[rows[0], 2:length].long()] = True
    return Cascade(is_visual, min_saved=1)


on_cpu = pytest.mark.skipif(torch.cuda.is_available(), reason="there SGLang's pools take CUDA tensors")


@on_cpu
@pytest.mark.parametrize(
    ("mode", "new", "saved"),
    [(ForwardMode.TARGET_VERIFY, 5, 2 * 15), (ForwardMode.DECODE, 1, 2 * 15), (ForwardMode.EXTEND, 5, 0)],
    ids=["verify", "decode", "prompt"],
)
def test_verify_and_decode_read_a_shared_video_once_and_prompts_do_not(
    mode: ForwardMode, new: int, saved: int, runner: Runner
) -> None:
    rows, committed = [5, 2, 7], [20, 17, 25]
    cascade = sharing(runner, rows, 15)
    for row, length in zip(rows, committed, strict=True):
        runner.fill(row, length)
    q, k, v = runner.new_tokens(3 * new)
    kv_lens = [length + new for length in committed]
    batch: Any = SimpleNamespace(
        forward_mode=mode,
        req_pool_indices=torch.tensor(rows),
        seq_lens=torch.tensor(committed if mode.is_target_verify() else kv_lens),
        extend_seq_lens=torch.tensor([new] * 3),
        spec_info=SimpleNamespace(draft_token_num=new),
        out_cache_loc=runner.slots_of(rows, committed, [new] * 3),
    )
    backend = CpuAttnBackend(runner)  # type: ignore[arg-type]
    backend.cascade = cascade
    backend.init_forward_metadata(batch)
    for _ in range(2):
        actual = backend.forward(q, k, v, make_layer(), batch)
    expected = runner.defined(q, rows, [new] * 3, kv_lens)
    torch.testing.assert_close(actual.double(), expected, rtol=0, atol=TOLERANCE[torch.float32])
    keys, values = runner.token_to_kv_pool.get_kv_buffer(LAYER)
    assert cascade.bytes_saved == 2 * saved * (keys[0].nbytes + values[0].nbytes), "two layers' worth"


@on_cpu
def test_without_the_flag_nothing_is_looked_for(runner: Runner, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "shared_segments", None)
    runner.fill(3, 6)
    backend = CpuAttnBackend(runner)  # type: ignore[arg-type]
    batch: Any = decode_batch([3], [6], torch.tensor([9]))
    backend.init_forward_metadata(batch)
    assert isinstance(backend.rows, PagedRows)


# --- counting


class Told(list[float]):
    inc = list.append


def test_what_was_saved_is_told_once_and_logged_when_it_has_doubled(caplog: pytest.LogCaptureFixture) -> None:
    cascade = Cascade(torch.zeros(4, dtype=torch.bool))
    cascade._counter = told = Told()
    with caplog.at_level(logging.INFO, logger="sgl_lvspec.attention.cascade"):
        for saved in (0, 2**20, 2**20, 3 * 2**19, 2**21, 2**24):
            cascade.bytes_saved = saved
            cascade.publish()
    assert told == [2**20, 2**19, 2**19, 2**24 - 2**21]
    assert [record.message.split(": ")[2] for record in caplog.records] == [
        f"{size} MiB of keys and values saved so far." for size in ("1.0", "2.0", "16.0")
    ]


def test_the_metric_has_the_labels_of_sglangs() -> None:
    from prometheus_client import REGISTRY

    cascade = Cascade(torch.zeros(4, dtype=torch.bool))
    cascade.register({"model_name": "demo", "tp_rank": 0})
    cascade.bytes_saved = 300
    cascade.publish()
    labels = {"model_name": "demo", "tp_rank": "0"}
    assert REGISTRY.get_sample_value("lvspec:cascade_bytes_saved_total", labels) == 300
