"""What a probing server tells of its tokens: in step with them, of the state that predicts each, exact to the bit."""

from __future__ import annotations

import math
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from sgl_lvspec.calibrate import probe
from sgl_lvspec.calibrate.probe import PROBE, HostProbeReport, Probe, ProbeReport, decode

B, D, V, LAYERS, HEADS = 2, 4, 16, 3, 2


@pytest.fixture(autouse=True)
def one_rank(monkeypatch: pytest.MonkeyPatch) -> SimpleNamespace:
    group = SimpleNamespace(world_size=1)
    monkeypatch.setattr(probe, "get_parallel", lambda: SimpleNamespace(tp_group=group))
    return group


def reported(masses: torch.Tensor, chain: torch.Tensor, logits: torch.Tensor) -> ProbeReport:
    attention = SimpleNamespace(read_masses=lambda *_shape: masses)
    similarity = SimpleNamespace(read=lambda b, d: torch.arange(b * d).view(b, d) / 100)
    output = SimpleNamespace(next_token_logits=logits, auxiliary_device_output=None)
    made = Probe(attention, similarity)  # type: ignore[arg-type]
    made.report_round(SimpleNamespace(draft_token=chain.flatten()), output, D)  # type: ignore[arg-type]
    return output.auxiliary_device_output


def round_of(seed: int = 0) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    chain = torch.randint(0, V, (B, D), generator=generator)
    logits = torch.randn(B * D, V, generator=generator)
    return torch.rand(LAYERS, B, D, HEADS, generator=generator), chain, logits


def consume(report: HostProbeReport, reqs: list[Any], counts: list[int | None]) -> None:
    commits = [None if count is None else SimpleNamespace(token_ids=(0,) * count) for count in counts]
    report.consume(SimpleNamespace(reqs=reqs), commits)  # type: ignore[arg-type]


def test_a_round_tells_what_each_node_predicts_from() -> None:
    masses, chain, logits = round_of()
    reqs = [SimpleNamespace(customized_info=None) for _ in range(B)]
    consume(HostProbeReport(None), reqs, [1, 1])
    consume(reported(masses, chain, logits).copy_to_host(lambda part: part.clone()), reqs, [D, 2])
    logprobs = logits.view(B, D, V).log_softmax(dim=-1)
    for b, count in enumerate((D, 2)):
        first, *rest = reqs[b].customized_info[PROBE]
        assert first is None
        assert len(rest) == count
        for node, told in enumerate(rest):
            token = decode(told)
            assert torch.equal(token.masses, masses[:, b, node].flatten()), "layer by layer"
            assert token.similarity == pytest.approx((b * D + node) / 100, abs=1e-7)
            if node == D - 1:
                assert math.isnan(token.gap), "nothing is drafted after the last node"
            else:
                drafted = int(chain[b, node + 1])
                expected = float(logprobs[b, node].max() - logprobs[b, node, drafted])
                assert token.gap == pytest.approx(expected, abs=1e-5)  # float32 sums over 16 tokens


def test_a_match_has_no_gap() -> None:
    masses, chain, logits = round_of()
    chain[0, 1] = logits.view(B, D, V)[0, 0].argmax()
    assert float(reported(masses, chain, logits).values[0, 0, 1]) == 0.0


def test_requests_that_keep_nothing_are_told_nothing() -> None:
    masses, chain, logits = round_of()
    reqs = [SimpleNamespace(customized_info={"other": [1]}), SimpleNamespace(customized_info=None)]
    consume(reported(masses, chain, logits).copy_to_host(lambda part: part), reqs, [1, None])
    assert reqs[1].customized_info is None
    assert reqs[0].customized_info["other"] == [1]
    assert len(reqs[0].customized_info[PROBE]) == 1


def test_two_ranks_put_their_heads_together(one_rank: SimpleNamespace) -> None:
    """A rank's buffer is as wide as all heads; its own come first."""
    masses, chain, logits = round_of()
    own = masses.clone()
    own[..., 1:] = float("nan")
    one_rank.world_size = 2
    one_rank.all_gather = lambda part, dim: torch.cat([part, masses[..., 1:]], dim=dim)
    told = reported(own, chain, logits).values
    assert torch.equal(told[..., 2:], masses.permute(1, 2, 0, 3).flatten(2))
