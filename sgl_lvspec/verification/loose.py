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

from lvspec_kernels.row_choice import row_choice
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
            temperature = sampling_info.temperatures.view(-1).repeat_interleave(width)
        seen = row_choice(logits, drafted.flatten(), temperature)
        relevance = self._relevance.read(num_requests, width)
        logprob, gap = (part.view(num_requests, width) for part in (seen.logprob, seen.gap))
        may_loosen = self._within_filters(seen.rank, seen.mass_above, seen.gap, sampling_info, width)
        relevance, logprob, gap, may_loosen = _from_first_rank(relevance, logprob, gap, may_loosen)
        return self._decision(draft_token, choice, relevance, logprob, gap, may_loosen > 0, rows)

    @staticmethod
    def _within_filters(
        rank: torch.Tensor,
        mass_above: torch.Tensor,
        gap: torch.Tensor,
        sampling_info: SamplingBatchInfo,
        width: int,
    ) -> torch.Tensor:
        """Whether the drafted token survives its request's own top-k, top-p and min-p: float32 [B, D], 0 or 1.

        A client who cuts the tail off does not want it back through the draft. Greedy rows have no filter.
        """
        top_k, top_p, min_p = (
            part[:, None] for part in (sampling_info.top_ks, sampling_info.top_ps, sampling_info.min_ps)
        )
        rank, mass_above, gap = (part.view(-1, width) for part in (rank, mass_above, gap))
        is_kept = (rank < top_k) & (mass_above <= top_p) & (gap <= -min_p.log())
        return (is_kept | (top_k <= 1)).to(torch.float32)


def _from_first_rank(*parts: torch.Tensor) -> tuple[torch.Tensor, ...]:
    """The same numbers on every rank: rounding differs between them, and a threshold does not forgive it."""
    tp_group = get_parallel().tp_group
    if tp_group.world_size == 1:
        return parts
    packed = torch.stack(parts)
    tp_group.broadcast(packed, src=0)
    return tuple(packed.unbind())
