"""Where visual shares come from: FlashInfer's log-sum-exp says the same as all keys, and only FlashInfer is asked."""

from __future__ import annotations

import logging
from typing import Any

import pytest
import torch
from sglang.srt.model_executor.forward_batch_info import ForwardMode

from sgl_lvspec.attention.flashinfer_backend import LseFlashInferBackend
from sgl_lvspec.relevance import masses
from sgl_lvspec.relevance.attention import AttentionRelevance
from sgl_lvspec.relevance.calibration import HeadWeight
from tests.sgl_lvspec.attention.fake_flashinfer import FakeWrapper, make_backend
from tests.sgl_lvspec.relevance.target import HEAD_WIDTH, KV_HEADS, QUERY_HEADS, WIDTH, Target
from tests.sgl_lvspec.relevance.test_attention import IS_VISUAL, LENGTHS, PROMPTS, ROWS, attached

pytestmark = pytest.mark.skipif(torch.cuda.is_available(), reason="runs the target on CPU, with FlashInfer in torch")

# Shares of at most 1 from two logarithms below 10 that float32 has to 1e-6, and sums of fewer than 40 weights.
TOLERANCE = 1e-5


class NoKeys:
    """A stand-in for the kernel that reads all keys, where it must not be called."""

    def __call__(self, *_args: Any) -> torch.Tensor:
        raise AssertionError("all keys were read")


def on_flashinfer(seed: int = 0, rank: int = 0, num_ranks: int = 1, teach: bool = True) -> Target:
    target = Target(seed, rank, num_ranks)
    backend = make_backend(target, (QUERY_HEADS // num_ranks, KV_HEADS // num_ranks, HEAD_WIDTH))
    target.attn_backend = LseFlashInferBackend.adopt(backend) if teach else backend
    return target


def after_a_round(target: Target) -> Target:
    for row, ids in PROMPTS.items():
        target.prefill(row, ids)
    target.verify(ROWS, LENGTHS)
    return target


CHOICES: dict[str, list[HeadWeight] | None] = {
    "all": None,
    "one-layer": [HeadWeight(1, 2, 1.0), HeadWeight(1, 0, 2.0)],
    "logs": [HeadWeight(0, 1, 0.0, 0.5), HeadWeight(1, 1, -2.0), HeadWeight(2, 3, 0.25, -0.75)],
}


def test_the_shares_are_those_of_a_full_softmax(monkeypatch: pytest.MonkeyPatch) -> None:
    """Ragged contexts, two query heads a KV head; the context without a video has exactly none."""
    monkeypatch.setattr(masses, "visual_mass", NoKeys())
    target = on_flashinfer()
    scorer = attached(AttentionRelevance(keeps_masses=True), target)
    after_a_round(target)
    found = scorer.read_masses(3, WIDTH)
    torch.testing.assert_close(found.double(), target.masses(ROWS, LENGTHS, IS_VISUAL), rtol=0, atol=TOLERANCE)
    assert (found[:, 2] == 0).all()


@pytest.mark.parametrize("name", CHOICES)
def test_the_score_is_the_one_that_all_keys_give(name: str) -> None:
    scores = []
    for mass in ("auto", "keys"):
        target = on_flashinfer()
        scorer = attached(AttentionRelevance(CHOICES[name], 0.125, mass=mass), target)
        after_a_round(target)
        after_a_round(target)  # a round later, the same again: nothing is left over from the first
        scores.append(scorer.read(3, WIDTH))
    # A logarithm of a share near LOG_OFFSET is a thousand times as steep as the share.
    torch.testing.assert_close(*scores, rtol=0, atol=TOLERANCE * (1000 if name == "logs" else 1))


def test_the_output_of_the_target_is_unchanged() -> None:
    """Of every layer, in every forward: relevance only looks."""
    outputs = []
    for asks in (True, False):
        target = on_flashinfer()
        if asks:
            attached(AttentionRelevance(CHOICES["one-layer"]), target)
        said: list[torch.Tensor] = []
        for module in target.model.layers:
            module.register_forward_hook(lambda _module, _args, output, said=said: said.append(output.clone()))
        after_a_round(target)
        outputs.append(said)
    assert len(outputs[0]) == 3 * (len(PROMPTS) + 1)
    assert all(map(torch.equal, *outputs))


def test_only_asked_layers_of_verify_forwards_are_run_otherwise() -> None:
    target = on_flashinfer()
    attached(AttentionRelevance(CHOICES["one-layer"]), target)
    [paged], [verify] = target.attn_backend.prefill_wrappers_paged, target.attn_backend.prefill_wrappers_verify
    after_a_round(target)
    assert verify.calls == ["forward", "forward_return_lse", "forward"]
    assert set(paged.calls) == {"forward"}


def test_a_layer_whose_heads_are_another_ranks_is_not_asked(group: Any) -> None:
    """Head 2 of 4 belongs to the second of two ranks."""
    calls = []
    for rank in range(2):
        group(rank, 2)
        target = on_flashinfer(0, rank, 2)
        attached(AttentionRelevance([HeadWeight(1, 2, 1.0)]), target)
        after_a_round(target)
        calls.append(target.attn_backend.prefill_wrappers_verify[0].calls)
    assert calls == [["forward"] * 3, ["forward", "forward_return_lse", "forward"]]


def test_a_smaller_graph_row_is_padded_behind_the_real_ones() -> None:
    """A captured batch is padded with requests of row 0 and slot 0; the real rows' scores stand at the front."""
    target = on_flashinfer()
    scorer = attached(AttentionRelevance(), target)
    after_a_round(target)
    slots = torch.cat([target.context(2, LENGTHS[0] + WIDTH, LENGTHS[0]), torch.zeros(WIDTH, dtype=torch.int64)])
    target.slots.mark_drafted(slots)
    target.forward(ForwardMode.TARGET_VERIFY, [2, 0], [LENGTHS[0], 1], slots)
    expected = target.masses([2, 0], [LENGTHS[0], 1], [IS_VISUAL[0], [True]])[:, :1].mean(dim=(0, 3))
    torch.testing.assert_close(scorer.read(1, WIDTH).double(), expected, rtol=0, atol=TOLERANCE)


@pytest.mark.parametrize(
    ("target", "mass", "said"),
    [
        (Target, "auto", "no log-sum-exp from CpuAttnBackend"),
        (lambda: on_flashinfer(teach=False), "auto", "no log-sum-exp from FlashInferAttnBackend"),
        (on_flashinfer, "keys", "as asked"),
    ],
    ids=["another-backend", "sglangs-own", "keys"],
)
def test_otherwise_all_keys_are_read_and_the_log_says_so(
    target: Any, mass: str, said: str, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(masses, "mass_from_lse", NoKeys())
    with caplog.at_level(logging.INFO, logger="sgl_lvspec.relevance.masses"):
        served = target()
        scorer = attached(AttentionRelevance(mass=mass), served)
    assert [record.message for record in caplog.records] == [
        f"LVSPEC: visual attention from the keys, all read again ({said})."
    ]
    after_a_round(served)
    expected = served.masses(ROWS, LENGTHS, IS_VISUAL).mean(dim=(0, 3))
    torch.testing.assert_close(scorer.read(3, WIDTH).double(), expected, rtol=0, atol=TOLERANCE)


def test_the_log_says_when_the_log_sum_exp_is_taken(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO, logger="sgl_lvspec.relevance.masses"):
        attached(AttentionRelevance(), on_flashinfer())
    assert "from FlashInfer's log-sum-exp" in caplog.text


def test_a_log_sum_exp_in_another_base_is_refused_before_anything_is_hooked(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(FakeWrapper, "per_nat", 1.0)
    target = on_flashinfer()
    with pytest.raises(ValueError, match=r"in base 2, .*found base e\. Set --lvspec-mass keys"):
        attached(AttentionRelevance(), target)
    assert not any(module._forward_hooks for module in target.model.modules())
    attached(AttentionRelevance(mass="keys"), target)


def test_keys_that_carry_a_scale_are_refused() -> None:
    """It is in the log-sum-exp, and not in the keys that are read beside it."""
    target = on_flashinfer()
    target.model.layers[1].k_scale_float = 0.5
    with pytest.raises(ValueError, match=r"without a scale; found 0\.5 in layer 1\. Set --lvspec-mass keys"):
        attached(AttentionRelevance(), target)
