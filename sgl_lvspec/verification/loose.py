"""What a loose rule needs to know of a verified round, brought together for `lvspec_kernels.relax`.

    logits ─► row_choice: choice, log-probability, gap, rank       relevance (rides on the verify forward)
                          └──────────────► care ◄──────────────────────┘
    care, floor, protected tokens, the request's own filters ─► decision ─► commit and labels

One object a worker (`worker.LVSpecWorker.loose_rule`). Never waits for the device. Rounds of greedy requests go the
short way, `accept`, which a CUDA graph can hold (`accept_graph`).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING

import torch
from sglang.srt.runtime_context import get_parallel

from lvspec_kernels.row_choice import RowChoice, row_choice
from sgl_lvspec.graphs.recording import CudaRecorder, VerifyWatch
from sgl_lvspec.relevance.calibration import default_prior
from sgl_lvspec.relevance.care import Care
from sgl_lvspec.verification.accept_graph import AcceptGraphs
from sgl_lvspec.verification.decision import Decided, Decision, drafted_after
from sgl_lvspec.verification.greedy_round import Accepted, GreedyRound, accept
from sgl_lvspec.verification.protected import token_classes
from sgl_lvspec.verification.rows import RequestRows, rule_of

if TYPE_CHECKING:
    from sglang.srt.managers.schedule_batch import Req
    from sglang.srt.managers.tp_worker import TpModelWorker
    from sglang.srt.sampling.sampling_batch_info import SamplingBatchInfo

    from sgl_lvspec.config import LVSpecConfig
    from sgl_lvspec.relevance import Relevance
    from sgl_lvspec.relevance.calibration import Calibration


LEAST_DRAWN = -87.0  # ln of the least normal float32: below it a probability may round to 0, which is never drawn


class LooseRule:
    """Decides rounds that hold at least one loose request.

    Attributes:
        care: what the rule compares with the rows' thresholds.
        graphs: the step of greedy rounds, recorded and replayed; None on CPU and with several ranks.
    """

    graphs: AcceptGraphs | None = None

    def __init__(self, rows: RequestRows, relevance: Relevance, care: Care, token_class: torch.Tensor) -> None:
        """Bind the tables: `token_class` uint8 [V] is what `protected.token_classes` built."""
        self.rows, self._relevance, self.care = rows, relevance, care
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
        device: torch.device = runner.req_to_token_pool.req_to_token.device
        prior = calibration.prior(config.scorer) if calibration else default_prior(config.scorer)
        model = runner.model_config
        rule = cls(
            RequestRows(len(runner.req_to_token_pool.req_to_token), prior, config, device),
            relevance,
            Care.of(config.scorer, calibration.combined if calibration else {}),
            token_classes(target_worker.tokenizer, model.hf_eos_token_id, model.vocab_size, device),
        )
        # Ranks exchange numbers inside the step, which SGLang's own graphs do in a way of their own.
        if device.type == "cuda" and get_parallel().tp_group.world_size == 1:
            watch = VerifyWatch(runner.model.logits_processor)
            rule.graphs = AcceptGraphs(rule.accept_eagerly, rule.rows.state, CudaRecorder(), watch.was_replayed)
        return rule

    @staticmethod
    def concerns(reqs: Sequence[Req]) -> bool:
        """Whether a round of these requests is decided here: one is loose, has a shadow, or wants its labels."""
        rules = (rule_of(req) for req in reqs)
        return any(rule is not None and (not rule.is_strict or rule.wants_labels or rule.is_shadow) for rule in rules)

    @contextmanager
    def scoring(self, reqs: Sequence[Req]) -> Iterator[None]:
        """Around a verify forward of these requests: scores that nobody reads are not computed.

        On a GPU that holds for forwards that Python runs. A replayed graph holds the scorer's work and does it always.
        """
        self._relevance.is_wanted = self.concerns(reqs)
        try:
            yield
        finally:
            self._relevance.is_wanted = True

    def decide(
        self,
        draft_token: torch.Tensor,
        choice: torch.Tensor,
        logits: torch.Tensor,
        sampling_info: SamplingBatchInfo,
        req_pool_indices: torch.Tensor,
    ) -> Decided:
        """Apply every row's own rule to a round of which some requests are sampled.

        Args:
            draft_token: int64 [B, D], root and chain.
            choice: int64 [B, D], the target's at every node, equal on every rank.
            logits: float [B * D, V], penalties, bias and grammar applied; left unchanged.
            sampling_info: SGLang's per-request sampling tensors.
            req_pool_indices: int [B].
        """
        num_requests, width = draft_token.shape
        # A greedy row is judged at 1 whatever it asked for, in this batch as in one of greedy rows alone.
        temperature = torch.where(sampling_info.top_ks <= 1, 1.0, sampling_info.temperatures.view(-1))
        seen = row_choice(logits, drafted_after(draft_token).flatten(), temperature.repeat_interleave(width))
        relevance, logprob, gap, may_loosen = _from_first_rank(
            self._relevance.read(num_requests, width),
            seen.logprob.view(num_requests, width),
            seen.gap.view(num_requests, width),
            _within_filters(seen, sampling_info, width),
        )
        return self._decision(draft_token, choice, relevance, logprob, gap, may_loosen > 0, req_pool_indices.long())

    def decide_greedy(self, draft_token: torch.Tensor, logits: torch.Tensor, rows: torch.Tensor) -> Decided:
        """Apply every row's own rule to a round of greedy requests; the choice comes out of the one read of the logits.

        It is the argmax, the lowest id among ties, as in strict verification; only where a row holds NaN (which
        SGLang reports, and replaces if asked to) an argmax would name one and this names the largest number.

        Args:
            draft_token: int64 [B, D], root and chain.
            logits: float [B * D, V], bias and grammar applied; left unchanged.
            rows: int64 [B], the requests' rows.
        """
        num_requests, width = draft_token.shape
        seen = row_choice(logits, drafted_after(draft_token).flatten())
        relevance, logprob, gap, choice = _from_first_rank(
            self._relevance.read(num_requests, width),
            *(part.view(num_requests, width) for part in (seen.logprob, seen.gap, seen.choice)),
        )
        return self._decision(draft_token, choice, relevance, logprob, gap, None, rows)

    def accept(self, round_: GreedyRound, logits: torch.Tensor) -> Accepted:
        """The commit of a round of greedy requests, from a graph where there is one."""
        return (self.graphs or self.accept_eagerly)(round_, logits)

    def accept_eagerly(self, round_: GreedyRound, logits: torch.Tensor) -> Accepted:
        """The commit of a round of greedy requests, operation by operation."""
        return accept(self.decide_greedy(round_.draft_token, logits, round_.rows), round_)


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
    """The same numbers [B, D] on every rank: rounding differs between them, and a threshold does not forgive it.

    They travel as float32, which holds token ids (below 2^24) as they are.
    """
    tp_group = get_parallel().tp_group
    if tp_group.world_size == 1:
        return parts
    packed = torch.stack([part.to(torch.float32) for part in parts])
    tp_group.broadcast(packed, src=0)
    return tuple(row.to(part.dtype) for row, part in zip(packed.unbind(), parts, strict=True))
