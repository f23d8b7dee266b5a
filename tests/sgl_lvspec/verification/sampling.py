"""Sampling as SGLang describes it to a batch, as it is defined, and a test that two of them are one distribution."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import torch
from sglang.srt.sampling.sampling_batch_info import SamplingBatchInfo
from sglang.srt.sampling.sampling_params import SamplingParams

FALSE_ALARM = 1e-6  # chance that draws from the right distribution fail a comparison; seeds are fixed on top of it
MIN_EXPECTED = 8.0  # rarer outcomes are counted together, so that the chi-square approximation holds


class Request(SimpleNamespace):
    """What SGLang's sampling reads of a request."""

    def __init__(self, output_ids: list[int] | None = None, **params: Any) -> None:
        super().__init__(
            sampling_params=SamplingParams(**params),
            output_ids=output_ids or [],
            origin_input_ids=[0],
            eos_token_ids={0},
            tokenizer=SimpleNamespace(additional_stop_token_ids=None, eos_token_id=0),
            custom_logit_processor=None,
            return_sampling_mask=False,
            sampling_logprobs_mode=None,
        )


class Batch(SimpleNamespace):
    """What SGLang's sampling and our commit read of a batch. A class: SGLang keeps a weak reference to it."""

    def __init__(self, reqs: list[Request], vocab_size: int, device: str = "cpu", **fields: Any) -> None:
        super().__init__(reqs=reqs, device=device, **fields)
        self.sampling_info = SamplingBatchInfo.from_schedule_batch(self, vocab_size)  # type: ignore[arg-type]
        self.sampling_info.update_penalties()


def make_info(params: list[dict[str, Any]], vocab_size: int) -> SamplingBatchInfo:
    """SGLang's sampling tensors for requests with these parameters."""
    batch = Batch([Request(**row) for row in params], vocab_size)
    return batch.sampling_info


def defined_distribution(logits: torch.Tensor, params: SamplingParams) -> torch.Tensor:
    """Temperature, then top-k and top-p on the whole distribution (as SGLang's torch sampler: a token is in the nucleus
    while less than p lies before it), then min-p against the likeliest. float64 [V]."""
    probs = torch.softmax(logits.double() / params.temperature, dim=-1)
    kept = torch.zeros_like(probs)
    before = 0.0
    for rank, token in enumerate(probs.argsort(descending=True).tolist()):
        if rank < params.top_k and before <= params.top_p and probs[token] >= params.min_p * probs.max():
            kept[token] = probs[token]
        before += float(probs[token])
    return kept / kept.sum()


def p_value(counts: torch.Tensor, probs: torch.Tensor) -> float:
    """Pearson's chi-square test that the counts were drawn from the distribution; 0 where the impossible happened."""
    assert counts.shape == probs.shape
    if counts[probs == 0].sum() > 0:
        return 0.0
    expected = probs.double() * counts.sum()
    is_common = expected >= MIN_EXPECTED
    counts = torch.cat([counts[is_common].double(), counts[~is_common].sum()[None].double()])
    expected = torch.cat([expected[is_common], expected[~is_common].sum()[None]])
    counts, expected = counts[expected > 0], expected[expected > 0]
    degrees = torch.tensor((len(counts) - 1) / 2.0, dtype=torch.float64)
    statistic = ((counts - expected) ** 2 / expected).sum()
    return float(torch.special.gammaincc(degrees, statistic / 2)) if len(counts) > 1 else 1.0
