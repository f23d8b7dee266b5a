"""What a server tells about every token while it is calibrated: the visual share of every head, similarity, gap.

Internal (`LVSpecConfig.probe`, no flag): verification is strict, and beside each answer stands, under the key PROBE and
for every token, a text that `decode` reads. Made of the state that predicts the token.
"""

from __future__ import annotations

import base64
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple

import torch
from sglang.srt.managers.auxiliary_output import append_auxiliary_output
from sglang.srt.runtime_context import get_parallel

from lvspec_kernels.row_choice import row_choice
from sgl_lvspec.relevance.attention import AttentionRelevance
from sgl_lvspec.relevance.similarity import SimilarityRelevance

if TYPE_CHECKING:
    from sglang.srt.layers.logits_processor import LogitsProcessorOutput
    from sglang.srt.managers.auxiliary_output import CommittedTokens
    from sglang.srt.managers.schedule_batch import Req, ScheduleBatch
    from sglang.srt.model_executor.model_runner import ModelRunner
    from sglang.srt.speculative.eagle_info import EagleVerifyInput

    from sgl_lvspec.relevance.slots import SlotTables

PROBE = "lvspec_probe"  # key of `meta_info`, one entry a returned token; None for the prefill's


class Probed(NamedTuple):
    """One token: what its predicting state looked at, and how much worse the drafted token would have been."""

    similarity: float
    gap: float  # log p(target's choice) - log p(drafted token); 0 where they match, NaN where none was drafted
    masses: torch.Tensor  # float32 [layers * heads]


class Probe:
    """Scores every verify forward with all heads; one object a worker, in place of a relevance."""

    def __init__(self, attention: AttentionRelevance, similarity: SimilarityRelevance) -> None:
        self._attention, self._similarity = attention, similarity

    @classmethod
    def beside(cls, model_runner: ModelRunner, slots: SlotTables, num_nodes: int) -> Probe:
        """Put both scorers on the target; `num_nodes` is B * D of the largest verify forward."""
        probe = cls(AttentionRelevance(keeps_masses=True, mass="keys"), SimilarityRelevance())  # the exact shares
        for scorer in (probe._attention, probe._similarity):
            scorer.attach(model_runner, slots, num_nodes)
        return probe

    def report_round(self, verify_input: EagleVerifyInput, logits_output: LogitsProcessorOutput, width: int) -> None:
        """Hang what was measured on a verified round's output; every rank calls it."""
        drafted = _drafted_after(verify_input.draft_token.view(-1, width))
        gap = row_choice(logits_output.next_token_logits, drafted.flatten(), None).gap.view(-1, width)
        gap = torch.where(drafted >= 0, gap, torch.nan)
        masses = self._every_heads_masses(*drafted.shape)
        similarity = self._similarity.read(*drafted.shape)
        _attach(logits_output, ProbeReport(torch.cat([similarity[..., None], gap[..., None], masses], dim=-1)))

    @staticmethod
    def report_prefill(logits_output: LogitsProcessorOutput) -> None:
        """A prefill's token was not drafted; its entry keeps the others in step."""
        _attach(logits_output, ProbeReport(None))

    def _every_heads_masses(self, num_requests: int, width: int) -> torch.Tensor:
        """Float32 [B, D, layers * heads], the heads of all ranks."""
        masses = self._attention.read_masses(num_requests, width)
        tp_group = get_parallel().tp_group
        if tp_group.world_size > 1:
            own = masses.shape[-1] // tp_group.world_size
            masses = tp_group.all_gather(masses[..., :own].contiguous(), dim=-1)
        return masses.permute(1, 2, 0, 3).flatten(2)


@dataclass(frozen=True)
class ProbeReport:
    """Measurements of a round on the device, float32 [B, D, 2 + layers * heads]; None for a prefill."""

    values: torch.Tensor | None

    def copy_to_host(self, copy_tensor: Callable[[torch.Tensor], torch.Tensor]) -> HostProbeReport:
        """Queue the copy; SGLang waits for it together with its own."""
        return HostProbeReport(None if self.values is None else copy_tensor(self.values))


@dataclass(frozen=True)
class HostProbeReport:
    """The measurements on the host."""

    values: torch.Tensor | None

    def consume(self, batch: ScheduleBatch, commits: Sequence[CommittedTokens | None]) -> None:
        """Called by SGLang with the tokens that each request newly keeps (`sight.round_report.HostReport`)."""
        for row, (req, commit) in enumerate(zip(batch.reqs, commits, strict=True)):
            if commit is not None:
                self._book(req, row, len(commit.token_ids))

    def _book(self, req: Req, row: int, count: int) -> None:
        if req.customized_info is None:
            req.customized_info = {}
        told = req.customized_info.setdefault(PROBE, [])
        told.extend([None] * count if self.values is None else map(_encode, self.values[row, :count]))


def _attach(logits_output: LogitsProcessorOutput, report: ProbeReport) -> None:
    logits_output.auxiliary_device_output = append_auxiliary_output(logits_output.auxiliary_device_output, report)


def decode(told: str) -> Probed:
    """One entry of the answer's PROBE list."""
    numbers = torch.frombuffer(bytearray(base64.b64decode(told)), dtype=torch.float32)
    return Probed(float(numbers[0]), float(numbers[1]), numbers[2:])


def _encode(numbers: torch.Tensor) -> str:
    """Text: thousands of numbers a token pass through three processes."""
    return base64.b64encode(numbers.numpy().tobytes()).decode()


def _drafted_after(chain: torch.Tensor) -> torch.Tensor:
    """The token drafted after each node of chains [B, D]; -1 after the last."""
    return torch.cat([chain[:, 1:], torch.full_like(chain[:, :1], -1)], dim=1)
