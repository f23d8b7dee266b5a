"""What a loose rule needs to know of a verified round, brought together for `lvspec_kernels.relax`.

    choice, logits ─► row_choice: log-probability, gap, rank       relevance (rides on the verify forward)
                          └──────────────► care ◄──────────────────────┘
    care, floor, protected tokens, the request's own filters ─► relax ─► commit and labels

One object a worker (`worker.LVSpecWorker.loose_rule`). Never waits for the device.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from sglang.srt.runtime_context import get_parallel

from lvspec_kernels.relax import FILLER, SHIFT, Relaxed, relax
from lvspec_kernels.row_choice import row_choice
from sgl_lvspec.relevance.calibration import default_prior
from sgl_lvspec.relevance.care import Care
from sgl_lvspec.verification.protected import DIGIT, PROTECTED, token_classes
from sgl_lvspec.verification.rows import RequestRows

if TYPE_CHECKING:
    from sglang.srt.managers.tp_worker import TpModelWorker
    from sglang.srt.sampling.sampling_batch_info import SamplingBatchInfo

    from sgl_lvspec.config import LVSpecConfig
    from sgl_lvspec.relevance import Relevance
    from sgl_lvspec.relevance.calibration import Calibration


@dataclass(frozen=True)
class Decided:
    """A round under the loose rule; strict rows in it commit what `accept_chain` would."""

    relaxed: Relaxed
    relevance: torch.Tensor  # float32 [B, D], of the token committed after each node
    gap: torch.Tensor  # float32 [B, D], log p(target's likeliest) - log p(token) of loosened tokens, 0 for others


class LooseRule:
    """Decides rounds that hold at least one loose request."""

    def __init__(self, rows: RequestRows, relevance: Relevance, care: Care, token_class: torch.Tensor) -> None:
        """Bind the tables: `token_class` uint8 [V] is what `protected.token_classes` built."""
        self.rows, self._relevance, self._care, self._token_class = rows, relevance, care, token_class

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
        no_draft = torch.full_like(draft_token[:, :1], -1)
        drafted = torch.cat([draft_token[:, 1:], no_draft], dim=1)  # the token drafted after each node
        temperature = None
        if not sampling_info.is_all_greedy:
            temperature = sampling_info.temperatures.view(-1).repeat_interleave(width)
        seen = row_choice(logits, drafted.flatten(), temperature)
        relevance = self._relevance.read(num_requests, width)
        logprob, gap = (part.view(num_requests, width) for part in (seen.logprob, seen.gap))
        may_loosen = self._within_filters(seen.rank, seen.mass_above, seen.gap, sampling_info, width)
        relevance, logprob, gap, may_loosen = _from_first_rank(relevance, logprob, gap, may_loosen)
        is_allowed = (may_loosen > 0) & self._is_ordinary(drafted, rows) & self._is_ordinary(choice, rows)

        def of_draft(after_node: torch.Tensor) -> torch.Tensor:
            """Values at the node before a draft, moved to the draft's own node."""
            return after_node.roll(1, dims=1)

        relaxed = relax(
            draft_token,
            choice,
            of_draft(self._care(relevance, gap)),
            of_draft(logprob),
            of_draft(is_allowed),
            rows,
            self.rows.rules,
            self.rows.state,
            self.rows.edges,
        )
        is_loosened = (relaxed.label == FILLER) | (relaxed.label == SHIFT)
        return Decided(relaxed, relevance, torch.where(is_loosened, gap, 0.0))

    def _is_ordinary(self, tokens: torch.Tensor, rows: torch.Tensor) -> torch.Tensor:
        """Whether tokens [B, D] (-1: none) are neither protected by the rule nor a stop of their own request."""
        classes = self._token_class[tokens.clamp_min(0)]
        is_digit = (classes == DIGIT) & self.rows.protects_digits[rows][:, None]
        is_stop = (tokens[:, :, None] == self.rows.stop_tokens[rows][:, None, :]).any(dim=2)
        return (classes != PROTECTED) & ~is_digit & ~is_stop

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
