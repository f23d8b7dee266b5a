"""The `similarity` scorer, the paper's: how much a state resembles the states of the video in its context.

LVSpec (arXiv 2604.05650, section 3.2) takes the mean of the 10 largest cosines between a token's last-layer state and
the visual tokens'. A forward pre-hook on the target's logits processor sees those states, after the final norm, for all
tokens of a prefill or verify forward (srt/layers/logits_processor.py picks the ones that it needs later).
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch.nn.functional import normalize

from lvspec_kernels import visual_similarity

if TYPE_CHECKING:
    from sglang.srt.model_executor.forward_batch_info import ForwardBatch
    from sglang.srt.model_executor.model_runner import ModelRunner

    from sgl_lvspec.relevance.slots import SlotTables

TOP_N = 10  # N of the paper


class SimilarityRelevance:
    """Scores from -1 to 1. A context without visual slots scores 0.

    States are equal on all ranks of tensor parallelism, so nothing is reduced.
    """

    needs_states = True
    is_wanted = True

    def __init__(self, top_n: int = TOP_N) -> None:
        self._top_n = top_n
        self._handle: Any = None

    def attach(self, model_runner: ModelRunner, slots: SlotTables, num_nodes: int) -> None:
        """Put the hook on the target's logits processor; `num_nodes` is B * D of the largest verify forward."""
        assert slots.visual_state is not None, "the similarity scorer needs SlotTables with a state_width"
        self._visual_state, self._is_visual = slots.visual_state, slots.is_visual
        self._table = model_runner.req_to_token_pool
        self._scores = torch.zeros(num_nodes, dtype=torch.float32, device=slots.is_visual.device)
        self._handle = model_runner.model.logits_processor.register_forward_pre_hook(self._before_logits)

    def read(self, num_requests: int, width: int) -> torch.Tensor:
        """Scores float32 [B, D] of the last verify forward."""
        return self._scores[: num_requests * width].clone().view(num_requests, width)

    def detach(self) -> None:
        """Take the hook off; the last scores stay readable."""
        if self._handle is not None:
            self._handle.remove()
            self._handle = None

    def _before_logits(self, _module: torch.nn.Module, args: tuple[Any, ...]) -> None:
        """Forward pre-hook: states [tokens, hidden] of the forward under way."""
        states: torch.Tensor = args[1]
        forward_batch: ForwardBatch = args[3]
        mode = forward_batch.forward_mode
        if mode.is_target_verify():
            if not self.is_wanted:
                return
            num_nodes, rows = states.shape[0], forward_batch.req_pool_indices
            self._scores[:num_nodes] = visual_similarity(
                states,
                self._visual_state,
                self._table.req_to_token,
                rows,
                forward_batch.seq_lens + num_nodes // len(rows),
                self._is_visual,
                self._top_n,
            )
        elif mode.is_extend():
            # Of all tokens: choosing the visual ones would wait for the device, and the others' rows are never read.
            unit = normalize(states.float(), dim=-1)
            self._visual_state[forward_batch.out_cache_loc.long()] = unit.to(self._visual_state.dtype)
