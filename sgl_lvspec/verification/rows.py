"""What belongs to a request and not to its tokens: the rule that it is verified by and what it has shown so far.

Device tables indexed by `req_pool_idx`. A row is written at every prefill of its request, so nothing of an earlier
owner can reach a verified round; a retracted request takes its state along (`leave`) and gets it back.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import torch

from lvspec_kernels.relax import SHIFT_DRAFT, SHIFT_TARGET, RuleRows, StateRows
from sgl_lvspec.presets import MAX_RUN, Rule
from sgl_lvspec.verification.protected import MAX_STOP_TOKENS, padded_stop_tokens
from sgl_lvspec.verification.settings import BIAS_FLOOR, RequestRule

if TYPE_CHECKING:
    from sglang.srt.managers.schedule_batch import Req, ScheduleBatch

    from sgl_lvspec.config import LVSpecConfig
    from sgl_lvspec.relevance.calibration import Prior

RULE = "_lvspec_rule"  # attribute of a Req: its RequestRule
_STATE = "_lvspec_state"  # attribute of a Req that was retracted: its counts [N] and loosened, a number

_SHIFT_BITS = {"off": 0, "draft": SHIFT_DRAFT, "target": SHIFT_TARGET, "both": SHIFT_DRAFT | SHIFT_TARGET}


class RequestRows:
    """Rules and states of all running requests.

    Attributes:
        rules, state: as `lvspec_kernels.relax` takes them.
        stop_tokens: int64 [P, MAX_STOP_TOKENS], the requests' own, padded with -1.
        protects_digits: bool [P].
        least_logprob: float32 [P], below which no token is loosened, shifted ones included.
        edges: float32 [N + 1], bins of the state's counts.
        admit: what makes of a request's own rule the one that it begins with (`guard.desk`).
    """

    def __init__(self, num_rows: int, prior: Prior, config: LVSpecConfig, device: torch.device | str) -> None:
        """Allocate tables for `num_rows` request rows; they hold rubbish until `write`."""
        self._config = config
        self.admit: Callable[[Req, RequestRule], RequestRule] = lambda _req, rule: rule
        self._retracted: list[tuple[Req, int]] = []  # since the last prefill, and their rows
        num_bins = len(prior.edges) - 1
        # Whole numbers add up exactly in any order, so every rank and every batch finds the same quantile.
        self._most_care = prior.quantile if config.guard == "on" else lambda _share: math.inf
        self._prior = torch.full((num_bins,), float(round(prior.weight / num_bins)), device=device)
        self.edges = torch.tensor(prior.edges, dtype=torch.float32, device=device)

        def table(dtype: torch.dtype, *width: int) -> torch.Tensor:
            return torch.zeros(num_rows, *width, dtype=dtype, device=device)

        self.rules = RuleRows(
            relaxation=table(torch.float32),
            log_floor=table(torch.float32),
            window=table(torch.int32),
            shift=table(torch.int32),
            max_share=table(torch.float32),
            max_run=table(torch.int32),
            max_care=table(torch.float32),
        )
        self.state = StateRows(table(torch.float32, num_bins), table(torch.int32), table(torch.int32))
        self.stop_tokens = table(torch.int64, MAX_STOP_TOKENS)
        self.protects_digits = table(torch.bool)
        self.least_logprob = table(torch.float32)

    def write(self, batch: ScheduleBatch) -> None:
        """Before a prefill (or a chunk of one): settle each request's rule and write its row."""
        for req in batch.reqs:
            if rule_of(req) is None:
                setattr(req, RULE, self.admit(req, RequestRule.of(req, self._config)))
        found: list[RequestRule] = [getattr(req, RULE) for req in batch.reqs]
        self._keep_states_of_retracted()
        rows = batch.req_pool_indices.long()
        self.fill(
            rows,
            [each.rule for each in found],
            [padded_stop_tokens(req.sampling_params.stop_token_ids) for req in batch.reqs],
            [len(req.output_ids) + 1 for req in batch.reqs],  # the prefill's own token is not counted by a round
            # A ban by logit bias leaves a token some probability; the rule's floor holds for fillers alone.
            [math.log(BIAS_FLOOR) if req.sampling_params.logit_bias else -math.inf for req in batch.reqs],
        )
        for req in batch.reqs:
            kept: tuple[torch.Tensor, torch.Tensor] | None = getattr(req, _STATE, None)
            if kept is not None:
                row = req.kv.req_pool_idx
                self.state.counts[row], self.state.loosened[row] = kept

    def fill(
        self,
        rows: torch.Tensor,
        rules: Sequence[Rule],
        stop_tokens: Sequence[list[int]],
        committed: Sequence[int],
        least_logprob: Sequence[float] | None = None,
    ) -> None:
        """Write the rows int64 [B] of requests that have shown nothing yet but `committed` tokens each.

        `stop_tokens` are as `padded_stop_tokens` gives them, `least_logprob` is -inf for all unless given.
        """
        least_logprob = least_logprob or [-math.inf] * len(rules)
        numbers = _to_device(
            [(*_numbers(rule), self._most_care(rule.relaxation)) for rule in rules], torch.float64, rows.device
        )
        for table, column in zip(self.rules, numbers.unbind(dim=1), strict=True):
            table[rows] = column.to(table.dtype)
        self.stop_tokens[rows] = _to_device(stop_tokens, torch.int64, rows.device)
        self.protects_digits[rows] = _to_device([rule.protect_digits for rule in rules], torch.bool, rows.device)
        self.least_logprob[rows] = _to_device(least_logprob, torch.float32, rows.device)
        self.state.counts[rows] = self._prior
        self.state.tokens[rows] = _to_device(committed, torch.int32, rows.device)
        self.state.loosened[rows] = 0

    def rewrite(self, row: int, rule: Rule) -> None:
        """Another rule for a running request; what it has shown stays.

        With overlapped scheduling a round may be under way that reads some numbers before and some after: both rules
        allow what such a mixture allows.
        """
        for table, value in zip(self.rules, (*_numbers(rule), self._most_care(rule.relaxation)), strict=True):
            table[row] = value
        self.protects_digits[row] = rule.protect_digits

    def leave(self, *, req: Req, **_kwargs: Any) -> None:
        """BEFORE hook on `release_req` (srt/managers/schedule_batch.py:2360): a retracted request keeps its state.

        With overlapped scheduling a round of the request may still be under way, on another stream than ours, so its
        row is read by the next `write`, in the order of the rounds on every rank. SGLang drops the tokens of that
        round; that what they loosened stays counted makes the budget smaller, never larger.
        """
        if req.kv.req_pool_idx is not None and rule_of(req) is not None:
            self._retracted.append((req, req.kv.req_pool_idx))

    def _keep_states_of_retracted(self) -> None:
        """Before any row is written: rows that were given back hold what they held until a prefill takes them."""
        for req, row in self._retracted:
            setattr(req, _STATE, (self.state.counts[row].clone(), self.state.loosened[row].clone()))
        self._retracted.clear()


def rule_of(req: Req) -> RequestRule | None:
    """The rule that a prefill settled; None before the first, and on a server without loose rules."""
    return getattr(req, RULE, None)


def is_loose(req: Req) -> bool:
    """Whether anything but the target's own choices may be committed for the request."""
    rule = rule_of(req)
    return rule is not None and not rule.is_strict and not rule.is_shadow


def _numbers(rule: Rule) -> tuple[float, ...]:
    """A rule in the order of RuleRows, `max_care` left out."""
    return (
        rule.relaxation,
        math.log(rule.floor) if rule.floor > 0 else -math.inf,
        rule.window,
        _SHIFT_BITS[rule.shift],
        rule.max_share,
        MAX_RUN if rule.max_run is None else rule.max_run,
    )


def _to_device(values: Sequence[Any], dtype: torch.dtype, device: torch.device) -> torch.Tensor:
    host = torch.tensor(values, dtype=dtype)
    return host if device.type == "cpu" else host.pin_memory().to(device, non_blocking=True)
