"""The attention scorer on a running verify forward, against softmax by definition in float64."""

from __future__ import annotations

import random
from typing import Any

import pytest
import torch
from sglang.srt.layers.radix_attention import AttentionType
from sglang.srt.managers.schedule_batch import MM_PAD_SHIFT_VALUE
from sglang.srt.mem_cache.memory_pool import MHATokenToKVPool
from sglang.srt.model_executor.forward_batch_info import ForwardMode

from sgl_lvspec.relevance import Relevance, make_relevance
from sgl_lvspec.relevance.attention import AttentionRelevance
from sgl_lvspec.relevance.calibration import LOG_OFFSET, HeadWeight
from tests.sgl_lvspec.relevance.target import (
    HEAD_WIDTH,
    KV_HEADS,
    LAYERS,
    NUM_SLOTS,
    QUERY_HEADS,
    WIDTH,
    Target,
)

pytestmark = pytest.mark.skipif(torch.cuda.is_available(), reason="runs the target on lvspec_cpu")

VISUAL = MM_PAD_SHIFT_VALUE + 5
TOLERANCE = 1e-6  # shares of at most 1, float32 sums of fewer than 40 weights
PROMPTS = {2: [7, VISUAL, VISUAL, VISUAL, 7, 7], 4: [VISUAL] * 9 + [7] * 8 + [VISUAL] * 3 + [7], 5: [7] * 11}
ROWS, LENGTHS = list(PROMPTS), [len(ids) for ids in PROMPTS.values()]
IS_VISUAL = [[token == VISUAL for token in ids] for ids in PROMPTS.values()]


def attached(scorer: Relevance, target: Target) -> Any:
    scorer.attach(target, target.slots, num_nodes=len(ROWS) * WIDTH)  # type: ignore[arg-type]
    return scorer


def after_a_round(target: Target) -> Target:
    for row, ids in PROMPTS.items():
        target.prefill(row, ids)
    target.verify(ROWS, LENGTHS)
    return target


def weighted_sum(masses: torch.Tensor, heads: list[HeadWeight]) -> torch.Tensor:
    parts = [masses[h.layer, :, :, h.head] * h.weight for h in heads]
    logs = [(masses[h.layer, :, :, h.head] + LOG_OFFSET).log() * h.log_weight for h in heads]
    return torch.stack(parts + logs).sum(0)


BIAS = 0.125
CHOICES: dict[str, list[HeadWeight]] = {
    "one": [HeadWeight(1, 2, 1.0)],
    "first-layer-left-out": [HeadWeight(2, 0, 1.0), HeadWeight(1, 3, 1.0)],
    "weights": [HeadWeight(0, 0, 2.0), HeadWeight(0, 3, 0.5), HeadWeight(2, 1, 7.0)],
    "logs": [HeadWeight(0, 1, 0.0, 0.5), HeadWeight(1, 1, -2.0), HeadWeight(2, 3, 0.25, -0.75)],
}


@pytest.mark.parametrize("name", CHOICES)
def test_the_score_is_the_weighted_sum_of_the_chosen_heads(name: str) -> None:
    target = Target()
    scorer = attached(AttentionRelevance(CHOICES[name], BIAS), target)
    after_a_round(target)
    expected = BIAS + weighted_sum(target.masses(ROWS, LENGTHS, IS_VISUAL), CHOICES[name])
    torch.testing.assert_close(scorer.read(3, WIDTH).double(), expected, rtol=0, atol=TOLERANCE)
    assert (expected[:2] - expected[2]).abs().min() > 1e-3, "the contexts with a video have something to compare"


def test_without_a_choice_all_heads_of_all_layers_count_alike() -> None:
    target = Target()
    scorer = attached(make_relevance("attention"), target)
    after_a_round(target)
    expected = target.masses(ROWS, LENGTHS, IS_VISUAL).mean(dim=(0, 3))
    torch.testing.assert_close(scorer.read(3, WIDTH).double(), expected, rtol=0, atol=TOLERANCE)


def test_a_context_without_a_video_scores_nothing() -> None:
    target = Target()
    scorer = attached(make_relevance("combined"), target)
    after_a_round(target)
    assert scorer.read(3, WIDTH)[2].tolist() == [0.0] * WIDTH


def test_a_later_round_replaces_the_scores_of_the_one_before() -> None:
    target = Target()
    scorer = attached(AttentionRelevance(CHOICES["weights"], BIAS), target)
    after_a_round(target)
    before = scorer.read(3, WIDTH)
    kept = before.clone()
    target.verify([4], [LENGTHS[1] + 2])
    is_visual = [IS_VISUAL[1] + [False, False]]
    expected = BIAS + weighted_sum(target.masses([4], [LENGTHS[1] + 2], is_visual), CHOICES["weights"])
    torch.testing.assert_close(scorer.read(1, WIDTH).double(), expected, rtol=0, atol=TOLERANCE)
    assert torch.equal(before, kept), "what was read is the reader's own"


def test_a_prefill_between_rounds_changes_nothing() -> None:
    target = Target()
    scorer = attached(AttentionRelevance(), target)
    after_a_round(target)
    before = scorer.read(3, WIDTH)
    target.prefill(1, [VISUAL, 7, 7, 7])
    assert torch.equal(scorer.read(3, WIDTH), before)


def test_a_video_in_two_chunks_counts_whole() -> None:
    target = Target()
    scorer = attached(AttentionRelevance(), target)
    ids = PROMPTS[4]
    target.prefill(4, ids[:5])
    target.prefill(4, ids[5:], first=5)
    target.verify([4], [len(ids)])
    expected = target.masses([4], [len(ids)], [IS_VISUAL[1]]).mean(dim=(0, 3))
    torch.testing.assert_close(scorer.read(1, WIDTH).double(), expected, rtol=0, atol=TOLERANCE)


def test_the_shares_of_every_head_can_be_kept() -> None:
    target = Target()
    scorer = attached(AttentionRelevance(keeps_masses=True), target)
    after_a_round(target)
    masses = scorer.read_masses(3, WIDTH)
    torch.testing.assert_close(masses.double(), target.masses(ROWS, LENGTHS, IS_VISUAL), rtol=0, atol=TOLERANCE)


def test_detached_the_target_runs_as_if_nothing_had_been_there() -> None:
    target = Target()
    scorer = attached(AttentionRelevance(), target)
    after_a_round(target)
    before = scorer.read(3, WIDTH)
    scorer.detach()
    target.verify(ROWS, LENGTHS)
    assert torch.equal(scorer.read(3, WIDTH), before)
    assert not any(module._forward_hooks for module in target.model.modules())


def test_a_smaller_graph_row_is_padded_behind_the_real_ones() -> None:
    """A captured batch is padded with requests of row 0 and slot 0; the real rows' scores stand at the front."""
    target = Target()
    scorer = attached(AttentionRelevance(), target)
    after_a_round(target)
    slots = torch.cat([target.context(2, LENGTHS[0] + WIDTH, LENGTHS[0]), torch.zeros(WIDTH, dtype=torch.int64)])
    target.slots.mark_drafted(slots)
    target.forward(ForwardMode.TARGET_VERIFY, [2, 0], [LENGTHS[0], 1], slots)
    expected = target.masses([2, 0], [LENGTHS[0], 1], [IS_VISUAL[0], [True]])[:, :1].mean(dim=(0, 3))
    torch.testing.assert_close(scorer.read(1, WIDTH).double(), expected, rtol=0, atol=TOLERANCE)


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("name", [*CHOICES, "all"])
def test_the_parts_of_two_ranks_add_up_to_the_score_of_one(name: str, seed: int, group: Any) -> None:
    """Also where a rank owns none of the chosen heads. Every rank asks for one sum a round."""
    chosen = CHOICES.get(name)
    if chosen is not None:
        random.Random(seed).shuffle(chosen)
    whole = Target(seed)
    expected = attached(AttentionRelevance(chosen), whole)
    after_a_round(whole)
    parts = []
    for rank in range(2):
        ranks = group(rank, 2)
        target = Target(seed, rank, 2)
        scorer = attached(AttentionRelevance(chosen), target)
        after_a_round(target)
        after_a_round(target)  # a round later, the same again: nothing is left over from the first
        part = scorer.read(3, WIDTH)
        assert [tensor.shape for tensor in ranks.reduced] == [(3 * WIDTH,)]
        parts.append(part)
    group()
    after_a_round(whole)
    assert torch.equal(target.query[0], whole.query[0]), "ranks and the whole draw the same numbers"
    torch.testing.assert_close(parts[0] + parts[1], expected.read(3, WIDTH), rtol=0, atol=TOLERANCE)


@pytest.mark.parametrize("head", [HeadWeight(LAYERS, 0, 1.0), HeadWeight(0, QUERY_HEADS, 1.0), HeadWeight(-1, 0, 1.0)])
def test_a_head_that_the_target_lacks_is_refused(head: HeadWeight) -> None:
    with pytest.raises(ValueError, match=rf"layers 0 to 2 with 4 .* found layer {head.layer}, head {head.head}"):
        attached(AttentionRelevance([HeadWeight(0, 0, 1.0), head]), Target())


@pytest.mark.parametrize(
    ("changes", "name"),
    [
        ({"sliding_window_size": 16}, r"sliding window \(16\)"),
        ({"logit_cap": 30.0}, r"logit cap \(30.0\)"),
        ({"is_cross_attention": True}, "cross attention"),
        ({"attn_type": AttentionType.ENCODER_ONLY}, "both directions"),
    ],
    ids=["window", "cap", "cross", "encoder"],
)
def test_other_kinds_of_attention_are_refused_by_name(changes: dict[str, Any], name: str) -> None:
    target = Target()
    for field, value in changes.items():
        setattr(target.model.layers[0], field, value)
    with pytest.raises(ValueError, match=f"{name} in layer 2"):
        attached(AttentionRelevance(), target)


def test_keys_that_need_a_scale_to_be_read_are_refused() -> None:
    target = Target()
    target.token_to_kv_pool = MHATokenToKVPool(
        NUM_SLOTS, 1, torch.float8_e4m3fn, KV_HEADS, HEAD_WIDTH, LAYERS, "cpu", enable_memory_saver=False
    )
    with pytest.raises(ValueError, match=r"keys in torch\.float8_e4m3fn .*--kv-cache-dtype auto"):
        attached(AttentionRelevance(), target)


def test_scores_that_nobody_wants_are_not_computed(monkeypatch: pytest.MonkeyPatch) -> None:
    """The keys of a long video are the dearest thing that a scorer reads."""
    target = Target()
    scorer = attached(AttentionRelevance(CHOICES["weights"], BIAS), target)
    after_a_round(target)
    before = scorer.read(3, WIDTH)
    scorer.is_wanted = False
    with monkeypatch.context() as patch:
        patch.setattr(scorer, "_masses_of", None)
        target.verify(ROWS, LENGTHS)
    assert torch.equal(scorer.read(3, WIDTH), before)
    scorer.is_wanted = True
    target.verify(ROWS, LENGTHS)
    expected = BIAS + weighted_sum(target.masses(ROWS, LENGTHS, IS_VISUAL), CHOICES["weights"])
    torch.testing.assert_close(scorer.read(3, WIDTH).double(), expected, rtol=0, atol=TOLERANCE)
