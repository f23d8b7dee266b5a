"""Requests about a video, a server's rule for them, and verified rounds of random numbers."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any, NamedTuple

import torch
from sglang.srt.managers.schedule_batch import Modality, MultimodalDataItem, MultimodalInputs

from sgl_lvspec.config import LVSpecConfig
from sgl_lvspec.relevance.calibration import Prior
from sgl_lvspec.relevance.care import Care
from sgl_lvspec.verification.loose import LooseRule
from sgl_lvspec.verification.protected import ORDINARY
from sgl_lvspec.verification.rows import RequestRows
from tests.sgl_lvspec.verification.sampling import Batch, Request

N_BINS = 8
PRIOR = Prior(tuple(edge / N_BINS for edge in range(N_BINS + 1)), weight=4.0 * N_BINS)  # 4 mismatches in each bin
PAPER = LVSpecConfig("paper")
# Whatever may be loosened is: every care is below the threshold, and there is no budget.
ALL = {"relaxation": 1.0, "floor": 0.0, "max_share": 1.0, "max_run": "none"}


class VideoRequest(Request):
    """A request about a video, at a row of the pool."""

    def __init__(
        self, row: int, output_ids: list[int] | None = None, asks: dict[str, Any] | None = None, **params: Any
    ):
        if asks is not None:
            params["custom_params"] = {"lvspec": asks}
        super().__init__(output_ids, **params)
        self.kv = SimpleNamespace(req_pool_idx=row)
        self.multimodal_inputs = MultimodalInputs(mm_items=[MultimodalDataItem(modality=Modality.VIDEO)])
        self.grammar = None


def text_request(row: int, **params: Any) -> VideoRequest:
    """A request about nothing but its text."""
    request = VideoRequest(row, **params)
    request.multimodal_inputs = None
    return request


def batch_of(*requests: VideoRequest, vocabulary: int = 64, **fields: Any) -> Any:
    """A batch at the requests' rows."""
    rows = torch.tensor([request.kv.req_pool_idx for request in requests])
    return Batch(list(requests), vocabulary, req_pool_indices=rows, **fields)


class FixedRelevance:
    """A scorer that says what a test wants."""

    needs_states = False

    def __init__(self, scores: torch.Tensor | float = 0.0) -> None:
        self.scores = scores

    def read(self, num_requests: int, width: int) -> torch.Tensor:
        return torch.as_tensor(self.scores, dtype=torch.float32).expand(num_requests, width).clone()


def make_rule(
    relevance: torch.Tensor | float = 0.0,
    *,
    config: LVSpecConfig = PAPER,
    classes: torch.Tensor | None = None,
    slope: float = 0.0,
    vocabulary: int = 64,
    num_rows: int = 6,
) -> LooseRule:
    """The rule of a server; ordinary tokens only unless `classes` says otherwise."""
    classes = torch.full((vocabulary,), ORDINARY, dtype=torch.uint8) if classes is None else classes
    rows = RequestRows(num_rows, PRIOR, config, "cpu")
    return LooseRule(rows, FixedRelevance(relevance), Care(slope), classes)  # type: ignore[arg-type]


class Numbers(NamedTuple):
    """What a verified round is decided by."""

    draft: torch.Tensor  # int64 [B, D]
    choice: torch.Tensor  # int64 [B, D]
    logits: torch.Tensor  # float32 [B * D, V]


def random_round(num_requests: int, width: int, vocabulary: int, seed: int) -> Numbers:
    """Greedy choices of random logits, of which about half are drafted."""
    rng = torch.Generator().manual_seed(seed)
    logits = torch.randn(num_requests * width, vocabulary, generator=rng) * 2
    choice = logits.argmax(dim=1).view(num_requests, width)
    other = torch.randint(vocabulary, (num_requests, width), generator=rng)
    is_match = torch.rand(num_requests, width, generator=rng) < 0.5
    drafted = torch.where(is_match, choice, other)
    root = torch.randint(vocabulary, (num_requests, 1), generator=rng)
    return Numbers(torch.cat([root, drafted[:, :-1]], dim=1), choice, logits)
