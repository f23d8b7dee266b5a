"""What the target's prefill tells the policies, on running layers, against its definition in float64."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch
from sglang.srt.layers.layer_boundary.residual import batch as residual_batch
from sglang.srt.layers.layer_boundary.residual.add_norm import PLAIN_ADD
from sglang.srt.layers.radix_attention import RadixAttention
from sglang.srt.managers.schedule_batch import Modality, MultimodalDataItem, MultimodalInputs
from sglang.srt.model_executor.forward_batch_info import ForwardMode

from sgl_lvspec.context import evidence
from sgl_lvspec.context.evidence import NUM_LAYERS, QUESTION_ROWS, LayerChange, QuestionAttention, make_evidence
from sgl_lvspec.context.policies import POLICIES
from sgl_lvspec.context.prompt import note_prefill, unread_of
from tests.sgl_lvspec.relevance.target import (
    CONTEXT,
    HEAD_WIDTH,
    KV_HEADS,
    LAYERS,
    QUERY_HEADS,
    SCALE,
    Target,
)

CLIP = range(2, 8)  # of every prompt here, where it has one
WIDTH, DEPTH = 16, 9


@pytest.fixture(autouse=True)
def ranks(monkeypatch: pytest.MonkeyPatch) -> SimpleNamespace:
    """One rank, unless a test says otherwise; then the others have three times as much."""
    group = SimpleNamespace(world_size=1, all_reduce=lambda part: part * 7)
    monkeypatch.setattr(evidence, "get_parallel", lambda: SimpleNamespace(tp_group=group))
    return group


def request(row: int, length: int, has_clip: bool = True) -> Any:
    item = MultimodalDataItem(modality=Modality.VIDEO, offsets=[(CLIP[0], CLIP[-1])])
    item.set_hash(77)
    ids = [5] * length
    if has_clip:
        ids[CLIP[0] : CLIP[-1] + 1] = item.padding_sequence(len(CLIP))
    return SimpleNamespace(
        origin_input_ids=ids,
        output_ids=[],
        multimodal_inputs=MultimodalInputs(mm_items=[item]) if has_clip else None,
        kv=SimpleNamespace(req_pool_idx=row),
        full_untruncated_fill_ids=ids,
        extend_end=0,
    )


def batch_of(*parts: tuple[Any, int, int]) -> Any:
    """A prefill batch of (request, first, end) after which the draft's worker has noted what was read."""
    for req, first, end in parts:
        req.extend_end = end
        note_prefill(req, first, end)
    return SimpleNamespace(reqs=[req for req, _, _ in parts], extend_lens=[end - first for _, first, end in parts])


def test_each_policy_gets_the_evidence_that_it_asks_for() -> None:
    kinds = {name: type(make_evidence(policy.evidence)) for name, policy in POLICIES.items() if policy.evidence}
    assert kinds == {"specvlm": QuestionAttention, "uvprune": LayerChange}
    assert make_evidence(None) is None


# --- what the question looks at ------------------------------------------------------------------------------------


def watched(target: Target) -> QuestionAttention:
    found = QuestionAttention()
    found.attach(target)  # type: ignore[arg-type]
    return found


def prefill(target: Target, parts: list[tuple[Any, int, int]]) -> None:
    """All requests of a batch at once; each has equally many new tokens."""
    slots = torch.cat([target.context(req.kv.req_pool_idx, end, first) for req, first, end in parts])
    rows = [req.kv.req_pool_idx for req, _, _ in parts]
    target.forward(ForwardMode.EXTEND, rows, [end for _, _, end in parts], slots)


def looks(target: Target, row: int, length: int, rows: slice) -> torch.Tensor:
    """Share of attention on each context entry by definition, float64 [length], summing to 1.

    `rows` are the question's tokens in the last forward; they stand at the end of the context.
    """
    total = torch.zeros(length, dtype=torch.float64)
    context = target.context(row, length)
    for layer in range(LAYERS):
        query = target.query[layer].view(-1, QUERY_HEADS, HEAD_WIDTH)[rows].double()
        for number, one in enumerate(query):
            seen = length - len(query) + number + 1
            for head in range(QUERY_HEADS):
                keys = target.keys[layer][context[:seen], head // (QUERY_HEADS // KV_HEADS)].double()
                total[:seen] += torch.softmax(keys @ one[head] * SCALE, dim=0)
    return total / total.sum()


def shares(req: Any) -> torch.Tensor:
    unread = unread_of(req)
    assert unread is not None
    assert unread.evidence is not None
    assert unread.evidence.dtype == torch.float32
    return unread.evidence.double() / unread.evidence.double().sum()


def test_the_question_is_what_stands_behind_the_last_video() -> None:
    target = Target()
    attention = watched(target)
    plain, asked = request(1, 12, has_clip=False), request(3, 12)
    parts = [(plain, 0, 12), (asked, 0, 12)]
    prefill(target, parts)
    attention.collect(batch_of(*parts))
    expected = looks(target, 3, 12, slice(24 - 4, 24))
    torch.testing.assert_close(shares(asked), expected, rtol=0, atol=1e-6)
    assert unread_of(plain).evidence is None  # type: ignore[union-attr]


def test_a_question_cut_by_a_chunk_is_what_the_last_chunk_has_of_it() -> None:
    target = Target()
    attention = watched(target)
    req = request(2, 14)
    prefill(target, [(req, 0, 11)])
    attention.collect(batch_of((req, 0, 11)))
    assert unread_of(req).evidence is None, "the question has not come"  # type: ignore[union-attr]
    prefill(target, [(req, 11, 14)])
    attention.collect(batch_of((req, 11, 14)))
    torch.testing.assert_close(shares(req), looks(target, 2, 14, slice(0, 3)), rtol=0, atol=1e-6)


def test_of_a_long_question_the_end_counts() -> None:
    assert QUESTION_ROWS == 64
    target = Target()
    attention = watched(target)
    req = request(2, CONTEXT)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(evidence, "QUESTION_ROWS", 5)
        prefill(target, [(req, 0, CONTEXT)])
        attention.collect(batch_of((req, 0, CONTEXT)))
    torch.testing.assert_close(shares(req), looks(target, 2, CONTEXT, slice(CONTEXT - 5, CONTEXT)), rtol=0, atol=1e-6)


@pytest.mark.parametrize(("start", "length"), [(9, 12), (0, 8)], ids=["video was read before", "nothing behind it"])
def test_without_a_new_video_or_a_question_nothing_is_told(start: int, length: int) -> None:
    target = Target()
    attention = watched(target)
    req = request(2, length)
    prefill(target, [(req, start, length)])
    attention.collect(batch_of((req, start, length)))
    assert unread_of(req).evidence is None  # type: ignore[union-attr]


def test_a_verify_forward_is_no_prefill_and_queries_are_let_go() -> None:
    target = Target()
    attention = watched(target)
    target.verify([1], [6])
    assert attention._queries == {}
    req = request(2, 10)
    prefill(target, [(req, 0, 10)])
    assert len(attention._queries) == LAYERS
    attention.collect(batch_of((req, 0, 10)))
    assert attention._queries == {}


def test_layers_are_spread_evenly_over_the_model() -> None:
    def chosen(count: int) -> list[int]:
        target = Target()
        target.model.layers = torch.nn.ModuleList(
            RadixAttention(QUERY_HEADS, HEAD_WIDTH, SCALE, KV_HEADS, layer_id=layer)
            for layer in reversed(range(10, 10 + count))
        )
        return [module.layer_id - 10 for module in watched(target)._layers]

    assert chosen(28) == [3, 10, 17, 24]
    assert chosen(2) == [0, 1]
    assert len(chosen(9)) == NUM_LAYERS


def test_ranks_tell_their_mean(ranks: SimpleNamespace) -> None:
    told = []
    for world_size in (1, 2):
        ranks.world_size = world_size
        target = Target()
        attention = watched(target)
        req = request(2, 12)
        prefill(target, [(req, 0, 12)])
        attention.collect(batch_of((req, 0, 12)))
        told.append(unread_of(req).evidence)  # type: ignore[union-attr]
    torch.testing.assert_close(told[1], told[0] * 7 / 2)


# --- whose states turn towards the text ----------------------------------------------------------------------------


class Layer(torch.nn.Module):
    """Adds noise of its own to the residual, the way SGLang's layers do: the sum lies with the batch."""

    def __init__(self, number: int) -> None:
        super().__init__()
        self.self_attn = RadixAttention(2, 4, 1.0, 2, layer_id=number)
        self.added = torch.empty(0)

    def forward(self, positions: torch.Tensor, hidden_states: torch.Tensor, forward_batch: Any) -> torch.Tensor:
        stream = residual_batch.stream_of(forward_batch)
        value, residual = stream.input(hidden_states)
        stream.write(value.clone() if residual is None else value + residual)
        value.fill_(float("nan"))  # SGLang's kernels use the memory for something else
        out: torch.Tensor = stream.record(self.added[positions].clone(), PLAIN_ADD)
        return out


class Decoder(torch.nn.Module):
    """A vision tower that is a list too, and a list of attention layers."""

    def __init__(self) -> None:
        super().__init__()
        self.tower = torch.nn.ModuleList([torch.nn.Linear(2, 2)])
        self.layers = torch.nn.ModuleList(Layer(number) for number in range(DEPTH))

    def prefill(self, states: torch.Tensor, rows: torch.Tensor, mode: ForwardMode = ForwardMode.EXTEND) -> None:
        """Tokens `rows` of all; `states` [tokens, width] are their embeddings."""
        batch = SimpleNamespace(forward_mode=mode)
        residual_batch.start(batch)
        hidden = states[rows].clone()
        for number, layer in enumerate(self.layers):
            # Some models name the arguments.
            hidden = layer(rows, hidden, batch) if number else layer(rows, hidden_states=hidden, forward_batch=batch)


class Prompts:
    """A decoder over two prompts of 12 tokens, and the change of their cosines by definition."""

    def __init__(self) -> None:
        rng = torch.Generator().manual_seed(5)
        self.model = Decoder()
        self.embedded = torch.randn(24, WIDTH, generator=rng)
        for layer in self.model.layers:
            layer.added = torch.randn(24, WIDTH, generator=rng)
        self.change = LayerChange()
        self.change.attach(SimpleNamespace(model=self.model))  # type: ignore[arg-type]
        self.reqs = [request(1, 12), request(2, 12, has_clip=False)]

    def prefill(self, *parts: tuple[int, int, int]) -> None:
        """(number of the prompt, first, end)."""
        rows = torch.cat([torch.arange(12 * number + first, 12 * number + end) for number, first, end in parts])
        self.model.prefill(self.embedded, rows)
        self.change.collect(batch_of(*[(self.reqs[number], first, end) for number, first, end in parts]))

    def by_definition(self, first: int = 0) -> torch.Tensor:
        """Of the first prompt, float64 [12 - first]."""
        found = []
        for depth in (0, DEPTH // 4):
            states = self.embedded.double() + sum(layer.added.double() for layer in self.model.layers[:depth])
            units = torch.nn.functional.normalize(states[:12], dim=-1)
            found.append((units[first:, None] * units[None, CLIP[-1] + 1 :]).sum(-1).mean(1))
        return found[1] - found[0]

    def told(self) -> torch.Tensor:
        unread = unread_of(self.reqs[0])
        assert unread is not None
        assert unread.evidence is not None
        assert unread.parts == [], "nothing is kept for longer"
        return unread.evidence


# Unit vectors are kept in bfloat16, to 2 ** -9 of each number; a cosine is off by less than that.
TOLERANCE = 2.0**-8


def test_the_change_is_that_of_the_cosine_with_the_text_behind() -> None:
    prompts = Prompts()
    prompts.prefill((1, 0, 12), (0, 0, 12))
    torch.testing.assert_close(prompts.told().double(), prompts.by_definition(), rtol=0, atol=TOLERANCE)
    assert unread_of(prompts.reqs[1]).evidence is None  # type: ignore[union-attr]
    assert prompts.change._states == {}


def test_states_are_kept_until_the_question_comes() -> None:
    prompts = Prompts()
    for chunk in ((0, 0, 5), (0, 5, 9)):
        prompts.prefill(chunk)
        assert unread_of(prompts.reqs[0]).evidence is None  # type: ignore[union-attr]
    prompts.prefill((1, 0, 3), (0, 9, 12))
    torch.testing.assert_close(prompts.told().double(), prompts.by_definition(), rtol=0, atol=TOLERANCE)


def test_of_what_was_in_the_radix_cache_nothing_is_known() -> None:
    prompts = Prompts()
    prompts.prefill((0, 4, 12))
    told = prompts.told()
    assert told[:4].isnan().all()
    torch.testing.assert_close(told[4:].double(), prompts.by_definition(first=4), rtol=0, atol=TOLERANCE)


def test_a_question_about_a_cached_video_tells_nothing() -> None:
    prompts = Prompts()
    prompts.prefill((0, 9, 12))
    unread = unread_of(prompts.reqs[0])
    assert unread is not None
    assert unread.evidence is None
    assert unread.parts == []


def test_a_verify_forward_leaves_no_states() -> None:
    prompts = Prompts()
    prompts.model.prefill(prompts.embedded, torch.arange(5), ForwardMode.TARGET_VERIFY)
    assert prompts.change._states == {}


def test_ranks_of_the_other_evidence_tell_their_mean_too(ranks: SimpleNamespace) -> None:
    alone = Prompts()
    alone.prefill((0, 0, 12))
    ranks.world_size = 2
    prompts = Prompts()
    prompts.prefill((0, 0, 12))
    torch.testing.assert_close(prompts.told(), alone.told() * 7 / 2)


def test_a_target_without_a_list_of_layers_is_refused() -> None:
    model = torch.nn.Sequential(RadixAttention(2, 4, 1.0, 2, layer_id=0))
    with pytest.raises(ValueError, match=r"^--lvspec-context uvprune needs .*; found none\. Use another policy\.$"):
        LayerChange().attach(SimpleNamespace(model=model))  # type: ignore[arg-type]
