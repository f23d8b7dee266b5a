"""The way of a round's labels from the device to the request: copied with SGLang's results, counted when they are read.

`attach` hangs a report on the logits output of a forward. SGLang copies it to the host beside the tokens, without a
wait of its own, and calls `consume` with exactly the tokens that each request keeps: cut at a stop, at max_tokens and
at a grammar's end (srt/managers/auxiliary_output.py, srt/managers/scheduler_components/batch_result_processor.py).
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

import torch
from sglang.srt.constants import HEALTH_CHECK_RID_PREFIX
from sglang.srt.managers.auxiliary_output import CompositeDeviceAuxiliaryOutput, append_auxiliary_output

from lvspec_kernels.relax import BONUS, MATCH
from sgl_lvspec.guard.desk import SeenRound, has_shadow
from sgl_lvspec.sight import request_sight
from sgl_lvspec.sight.tally import Tally
from sgl_lvspec.sight.token_report import TokenReport

if TYPE_CHECKING:
    from sglang.srt.layers.logits_processor import LogitsProcessorOutput
    from sglang.srt.managers.auxiliary_output import CommittedTokens
    from sglang.srt.managers.schedule_batch import Req, ScheduleBatch

    from sgl_lvspec.guard.desk import Desk
    from sgl_lvspec.sight.counters import Counters

CopyTensor = Callable[[torch.Tensor], torch.Tensor]


@dataclass(frozen=True)
class RoundReport:
    """Why each token of a verified round was committed; B requests, D = K + 1 nodes, on the device.

    The token after node i of row b has entry [b, i]. No tensor may be a static buffer of a CUDA graph: the copy to the
    host is queued behind the round, and a replay could overwrite it first.
    """

    label: torch.Tensor | None  # int8 [B, D], as in `tally`, -1 where nothing is committed; None: all rows are strict
    relevance: torch.Tensor | None  # float32 [B, D], visual relevance of the token; anything for a bonus
    # float32 [B, D], log p(target's likeliest) - log p(draft), of loosened tokens and of a draft that was refused
    gap: torch.Tensor | None
    choice: torch.Tensor | None  # int32 [B, D], the target's own token where the committed one is loosened
    accept_lens: torch.Tensor  # int32 [B], accepted drafts + 1
    num_drafted: int  # tokens of each row's chain, D - 1
    shadow: torch.Tensor | None = None  # int8 [B, D], labels that the loose rule gives, where a row has a shadow

    def copy_to_host(self, copy_tensor: CopyTensor) -> HostRoundReport:
        """Queue the copies; SGLang waits for them together with its own."""
        label, relevance, gap, choice, shadow = (
            None if part is None else copy_tensor(part)
            for part in (self.label, self.relevance, self.gap, self.choice, self.shadow)
        )
        return HostRoundReport(label, relevance, gap, choice, copy_tensor(self.accept_lens), self.num_drafted, shadow)


@dataclass(frozen=True)
class PrefillReport:
    """A prefill: its token is made by the target alone, so there is nothing to copy."""

    def copy_to_host(self, _copy_tensor: CopyTensor) -> HostReport:
        """The report as it is."""
        return HostReport()


class HostReport:
    """Books the tokens that requests keep. This one says what a prefill says: every token is a bonus."""

    counters: ClassVar[Counters | None] = None  # the server's, on a rank that reports metrics
    desk: ClassVar[Desk | None] = None  # the server's guard, on every rank; None where every request is strict
    num_drafted = 0

    def consume(self, batch: ScheduleBatch, commits: Sequence[CommittedTokens | None]) -> None:
        """Called by SGLang once the tokens stand in `output_ids` and before they are streamed.

        Args:
            batch: as it was run; rows are those of the report.
            commits: what each row newly shows; None for a row without a new token (a chunk of a prompt that is not
                the last, a request that finished or was retracted in the meantime).
        """
        steps = []
        for row, (req, commit) in enumerate(zip(batch.reqs, commits, strict=True)):
            if commit is not None:
                step = self._book(req, row, commit)
                if not req.rid.startswith(HEALTH_CHECK_RID_PREFIX):
                    steps.append(step)
        if self.counters is not None:
            self.counters.add_steps(steps)

    def _book(self, req: Req, row: int, commit: CommittedTokens) -> Tally:
        """The step's tally, after it went to the request."""
        if commit.output_index == 0:
            request_sight.restart(req)
        # Tokens that no report spoke of: the first one, where a prefill server made it.
        unseen = commit.output_index - request_sight.tally_of(req).tokens
        kept, accepted = self._row(row, len(commit.token_ids))
        told = kept.after_target_tokens(unseen) if unseen > 0 else kept
        step = Tally()
        step.add_tokens(told.labels, told.gaps)
        if accepted is not None:
            step.add_round(accepted, self.num_drafted)
        request_sight.tally_of(req).add(step)
        if request_sight.wants_labels(req):
            request_sight.add_labels(req, told)
        if self.desk is not None and accepted is not None:
            self.desk.see(req, SeenRound(commit.token_ids, kept, accepted, self._shadow(row, req)))
        return step

    def _shadow(self, row: int, req: Req) -> TokenReport | None:
        """What the loose rule would have committed; None where it did, or did not decide."""
        del row, req
        return None

    def _row(self, row: int, count: int) -> tuple[TokenReport, int | None]:
        """What is told of the row's first `count` tokens, and its accepted drafts if it was a round."""
        del row
        return TokenReport.of_target(count), None


class HostRoundReport(HostReport):
    """A round on the host; the tensors hold their values once SGLang has waited for its results."""

    def __init__(
        self,
        label: torch.Tensor | None,
        relevance: torch.Tensor | None,
        gap: torch.Tensor | None,
        choice: torch.Tensor | None,
        accept_lens: torch.Tensor,
        num_drafted: int,
        shadow: torch.Tensor | None = None,
    ) -> None:
        self.shadow = shadow
        self.label, self.relevance, self.gap, self.choice = label, relevance, gap, choice
        self.accept_lens, self.num_drafted = accept_lens, num_drafted

    @functools.cached_property
    def _rows(self) -> list[tuple[TokenReport, int]]:
        """What is told of each row, padding included, and its accepted drafts; read at once, which is cheaper."""
        accepted = (self.accept_lens - 1).tolist()
        labels = [[MATCH] * n + [BONUS] for n in accepted] if self.label is None else self.label.tolist()
        none = [None] * len(accepted)
        columns = (none if part is None else part.tolist() for part in (self.relevance, self.gap, self.choice))
        return list(zip(map(TokenReport, labels, *columns), accepted, strict=True))

    def _row(self, row: int, count: int) -> tuple[TokenReport, int | None]:
        told, accepted = self._rows[row]
        return told.first(count), accepted

    def _shadow(self, row: int, req: Req) -> TokenReport | None:
        if self.shadow is None or not has_shadow(req):
            return None
        return self._rows[row][0]._replace(labels=self.shadow[row].tolist())


def attach(logits_output: LogitsProcessorOutput, report: RoundReport | PrefillReport) -> None:
    """Hang the report on the output of the forward whose tokens it explains."""
    logits_output.auxiliary_device_output = append_auxiliary_output(logits_output.auxiliary_device_output, report)


def attach_strict(logits_output: LogitsProcessorOutput, accept_lens: torch.Tensor, num_drafted: int) -> None:
    """Report a round that nobody has reported on: accepted drafts are matches, and the target's own token ends it."""
    current = logits_output.auxiliary_device_output
    parts = current.outputs if isinstance(current, CompositeDeviceAuxiliaryOutput) else (current,)
    if not any(isinstance(part, RoundReport) for part in parts):
        attach(logits_output, RoundReport(None, None, None, None, accept_lens, num_drafted))
