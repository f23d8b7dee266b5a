"""How much a drafted token depends on the video: the scorers, the tables that they read, and their calibration.

A scorer rides on the target's own verify forward (hooks on its modules), so it costs no pass of its own; its result is
one number per node of the verified chain. Sources: LVSpec (arXiv 2604.05650, section 3), for `similarity`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

from sgl_lvspec.config import DEFAULT_MASS

if TYPE_CHECKING:
    import torch
    from sglang.srt.model_executor.model_runner import ModelRunner

    from sgl_lvspec.relevance.calibration import Calibration
    from sgl_lvspec.relevance.slots import SlotTables


class Relevance(Protocol):
    """A scorer. Higher means more visual; what a number means is the scorer's own (see its class)."""

    needs_states: bool
    """Whether `SlotTables.visual_state` must exist."""

    is_wanted: bool
    """Whether anybody reads the scores of a verify forward that Python runs; True except while one runs that nobody
    does. A replayed CUDA graph scores all the same: what the hooks did is part of it."""

    def attach(self, model_runner: ModelRunner, slots: SlotTables, num_nodes: int) -> None:
        """Put hooks on the target's modules, before CUDA graphs are captured, so that they are captured too.

        Called once the target's attention backend exists.

        `num_nodes` is B * D of the largest verify forward.
        """

    def read(self, num_requests: int, width: int) -> torch.Tensor:
        """Scores float32 [B, D] of the last verify forward, equal on every rank; a fresh tensor.

        `[b, j]` belongs to the state at node j of request b, which is the one that *predicts* the token after node j.
        Every rank calls it once a round.
        """

    def detach(self) -> None:
        """Take the hooks off again."""


def make_relevance(scorer: str, calibration: Calibration | None = None, mass: str = DEFAULT_MASS) -> Relevance:
    """The scorer of a name in `config.SCORERS`; `combined` is attention's score, joined with probability elsewhere.

    Args:
        mass: a name in `config.MASSES`.
    """
    if scorer == "similarity":
        from sgl_lvspec.relevance.similarity import SimilarityRelevance

        return SimilarityRelevance()
    assert scorer in ("attention", "combined"), scorer
    from sgl_lvspec.relevance.attention import AttentionRelevance

    if calibration is None or not calibration.heads:
        return AttentionRelevance(mass=mass)
    return AttentionRelevance(calibration.heads, calibration.bias, mass=mass)
