"""What a loose rule needs to know of a verified round, brought together for `lvspec_kernels.relax`.

    choice, logits ─► row_choice: log-probability, gap, rank       relevance (rides on the verify forward)
                          └──────────────► care ◄──────────────────────┘
    care, floor, protected tokens, the request's own filters ─► decision ─► commit and labels

One object a worker (`worker.LVSpecWorker.loose_rule`). Never waits for the device.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from sglang.srt.runtime_context import get_parallel

from lvspec_kernels.row_choice import RowChoice, row_choice
from sgl_lvspec.relevance.calibration import default_prior
from sgl_lvspec.relevance.care import Care
from sgl_lvspec.verification.decision import Decided, Decision, drafted_after
from sgl_lvspec.verification.protected import token_classes
from sgl_lvspec.verification.rows import RequestRows

if TYPE_CHECKING:
    from sglang.srt.managers.tp_worker import TpModelWorker
    from sglang.srt.sampling.sampling_batch_info import SamplingBatchInfo

    from sgl_lvspec.config import LVSpecConfig
    from sgl_lvspec.relevance import Relevance
    from sgl_lvspec.relevance.calibration import Calibration


LEAST_DRAWN = -87.0  # ln of the least normal float32: below it a probability may round to 0, which is never drawn


class LooseRule:
    """Decides rounds that hold at least one loose request."""

    def __init__(self, rows: RequestRows, relevance: Relevance, care: Care, token_class: torch.Tensor) -> None:
        """Bind the tables: `token_class` uint8 [V] is what `protected.token_classes` built."""
        self.rows, self._relevance = rows, relevance
        self._decision = Decision(rows, care, token_class)

    @classmethod
    def beside(
        cls,
        target_worker: TpModelWorker,
        relevance: Relevance,
        config: LVSpecConfig,
        calibration: Calibration | None,
    ) -> LooseRule:
        """The rule of a server, for the requests that the target's pools have room for."""
        runner = target_worker.model_runner
        device = runner.req_to_token_pool.req_to_token.device
        prior = calibration.prior(config.scorer) if calibration else default_prior(config.scorer)
        model = runner.model_config
        return cls(
            RequestRows(len(runner.req_to_token_pool.req_to_token), prior, config, device),
            relevance,
            Care.of(config.scorer, calibration.combined if calibration else {}),
            token_classes(target_worker.tokenizer, model.hf_eos_token_id, model.vocab_size, device),
        )

    def decide(
        self,
        draft_token: torch.Tensor,
        choice: torch.Tensor,
        logits: torch.Tensor,
        sampling_info: SamplingBatchInfo,
        req_pool_indices: torch.Tensor,
    ) -> Decided:
        """Apply every row's own rule.

        Args:
            draft_token: int64 [B, D], root and chain.
            choice: int64 [B, D], the target's at every node, equal on every rank.
            logits: float [B * D, V], penalties, bias and grammar applied; left unchanged.
            sampling_info: SGLang's per-request sampling tensors.
            req_pool_indices: int [B].
        """
        num_requests, width = draft_token.shape
        rows = req_pool_indices.long()
        drafted = drafted_after(draft_token)
        temperature = None
        if not sampling_info.is_all_greedy:
            # A greedy row is judged at 1 whatever it asked for, in this batch as in one of greedy rows alone.
            temperature = torch.where(sampling_info.top_ks <= 1, 1.0, sampling_info.temperatures.view(-1))
            temperature = temperature.repeat_interleave(width)
        seen = row_choice(logits, drafted.flatten(), temperature)
        relevance = self._relevance.read(num_requests, width)
        logprob, gap = (part.view(num_requests, width) for part in (seen.logprob, seen.gap))
        may_loosen = _within_filters(seen, sampling_info, width)
        relevance, logprob, gap, may_loosen = _from_first_rank(relevance, logprob, gap, may_loosen)
        return self._decision(draft_token, choice, relevance, logprob, gap, may_loosen > 0, rows)


def _within_filters(seen: RowChoice, sampling_info: SamplingBatchInfo, width: int) -> torch.Tensor:
    """Whether the request's own sampling could draw the token drafted after each node: float32 [B, D], 0 or 1.

    A client who cuts the tail off by top-k, top-p or min-p does not want it back through the draft, as a shifted word
    not even where it has no probability at all. Greedy rows have no filter.
    """
    top_k, top_p, min_p = (
        part.repeat_interleave(width) for part in (sampling_info.top_ks, sampling_info.top_ps, sampling_info.min_ps)
    )
    is_kept = (seen.rank < top_k) & (seen.mass_above <= top_p) & (seen.gap <= -min_p.log())
    is_kept &= seen.logprob >= LEAST_DRAWN
    return (is_kept | (top_k <= 1)).view(-1, width).to(torch.float32)


def _from_first_rank(*parts: torch.Tensor) -> tuple[torch.Tensor, ...]:
    """The same numbers on every rank: rounding differs between them, and a threshold does not forgive it."""
    tp_group = get_parallel().tp_group
    if tp_group.world_size == 1:
        return parts
    packed = torch.stack(parts)
    tp_group.broadcast(packed, src=0)
    return tuple(packed.unbind())
