"""The draft's K + 1 steps as one CUDA graph per batch size, captured and replayed by SGLang's own runner.

SGLang's `EAGLEDraftCudaGraphRunner` (srt/speculative/eagle_draft_cuda_graph_runner.py) knows batch sizes and padding,
the ranks' communication, memory pools and the step backends' plans. It asks its worker for one thing, the loop, and
hands results through: so it gets our loop, and plans made by the draft's own lengths. What is before it (rows, lengths,
slots: `context.pool`) stays outside of the graph.
"""

from __future__ import annotations

import copy
import logging
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import torch
from sglang.srt.model_executor.forward_context import ForwardContext, forward_context
from sglang.srt.runtime_context import get_parallel

from sgl_lvspec.graphs import no_sync

if TYPE_CHECKING:
    from sglang.srt.model_executor.forward_batch_info import ForwardBatch
    from sglang.srt.model_executor.model_runner import ModelRunner

logger = logging.getLogger(__name__)

# Step backends whose plan for a replay is made of rows and lengths on the device, ours, alone (read in their source).
SUPPORTED = ("FlashInferMultiStepDraftBackend", "TritonMultiStepDraftBackend")
# A graph's first rounds are also run step by step, until so many tokens can be compared. Attention splits its work
# otherwise in a graph, so a near-tie may fall differently: one token in a hundred, not one in ten.
PROOF_TOKENS = 100
LEAST_AGREEMENT = 0.9


class DraftGraph:
    """Drafts chains by replay; made by `capture`."""

    def __init__(self, runner: Any, num_steps: int) -> None:
        """Wrap SGLang's runner, which holds the graphs of a loop of `num_steps` forwards, K + 1."""
        self._runner, self._num_steps = runner, num_steps
        self._proofs: dict[int, _Proof] = {}
        self._is_given_up = False

    @classmethod
    def capture(cls, model_runner: ModelRunner, backends: Any, num_steps: int) -> DraftGraph | None:
        """Capture the loop for the batch sizes that SGLang captures a decode step for.

        Args:
            model_runner: the draft's.
            backends: SGLang's multi-step backends, one for each of the `num_steps` forwards, K + 1.

        Returns:
            None where that is not possible; the log says why, and the steps are run one by one.

        Raises:
            Exception: SGLang's, where it cannot capture on one of several ranks.
        """
        name = type(backends).__name__
        if name not in SUPPORTED:
            logger.warning("LVSPEC: no CUDA graph of the draft's steps: %s is none of %s.", name, ", ".join(SUPPORTED))
            return None
        from sglang.srt.speculative.eagle_draft_cuda_graph_runner import EAGLEDraftCudaGraphRunner

        try:
            runner = EAGLEDraftCudaGraphRunner(
                Steps(model_runner, backends, num_steps),
                draft_attn_backend=PlannedByLengths(backends),
                speculative_num_steps=num_steps,
            )
        except Exception:
            if get_parallel().tp_group.world_size > 1:
                raise  # the other ranks wait for this one in their capture
            logger.exception(
                "LVSPEC: the draft's steps run one by one, because they could not be captured as a CUDA graph. "
                "Answers are right, rounds take longer. Free memory (--mem-fraction-static), or set "
                "--lvspec-draft-graph off."
            )
            return None
        return cls(runner, num_steps)

    def can_run(self, forward_batch: ForwardBatch) -> bool:
        """Whether there is a graph for a batch of this size or a larger one."""
        return not self._is_given_up and bool(self._runner.can_run_graph(forward_batch))

    def run(
        self,
        forward_batch: ForwardBatch,
        tokens: torch.Tensor,
        slots: torch.Tensor,
        one_by_one: Callable[[], torch.Tensor],
    ) -> torch.Tensor:
        """Draft K tokens for every request of a batch for which `can_run`.

        Args:
            forward_batch: the round's; `seq_lens` [B] are the draft's own lengths. Left as it is.
            tokens: int64 [B], the last committed ones.
            slots: int64 [B, K + 1], the draft's own.
            one_by_one: the same loop over the same batch without a graph, which a new graph is compared with.

        Returns:
            int64 [B, K].
        """
        proof = self._proofs.setdefault(self._runner._pad_to_bucket(len(tokens), self._runner.capture_bs), _Proof())
        chain = self._replay(forward_batch, tokens, slots)
        if proof.is_done:
            return chain
        expected = one_by_one()  # last, so that the KV is that of what is returned
        with no_sync.exempt("proving the graph of the draft's steps"):
            proof.add(chain, expected)
        if proof.is_done and not proof.is_passed:
            self._is_given_up = True
            logger.error(
                "LVSPEC: the draft's steps run one by one from now on: with %d requests their CUDA graph drafted %d "
                "of %d tokens alike. Please report it, and set --lvspec-draft-graph off.",
                len(tokens),
                proof.agreed,
                proof.compared,
            )
        return expected

    def _replay(self, forward_batch: ForwardBatch, tokens: torch.Tensor, slots: torch.Tensor) -> torch.Tensor:
        """A chain of its own: the graph's lies where the next replay writes."""
        batch, spec_info = copy.copy(forward_batch), copy.copy(forward_batch.spec_info)
        # What SGLang's runner takes to its buffers: the first token goes by the name of EAGLE's best candidate.
        spec_info.topk_index = tokens[:, None]
        spec_info.topk_p = torch.ones(len(tokens), 1, dtype=torch.float32, device=tokens.device)
        batch.spec_info, batch.out_cache_loc = spec_info, slots.flatten()
        with no_sync.exempt("SGLang plans the attention of the draft's steps"):
            _, _, chain, _ = self._runner.execute(batch)
        result: torch.Tensor = chain[: len(tokens)].clone()
        return result


class Steps:
    """What SGLang's runner takes for its worker: our loop, K greedy steps and one that only writes KV."""

    seed_dsa_topk_from_draft_extend = False  # of a model family that no draft of ours belongs to
    speculative_num_steps = 1  # the runner takes this less one off the positions, which our loop leaves as they were

    def __init__(self, model_runner: ModelRunner, backends: Any, num_steps: int) -> None:
        self.draft_runner, self._backends, self._num_steps = model_runner, backends, num_steps

    def draft_forward(self, forward_batch: ForwardBatch) -> tuple[None, None, torch.Tensor, None]:
        """The loop, over tensors that stay where they are. The answer has the form of EAGLE's; the chain is [B, K]."""
        tokens = forward_batch.spec_info.topk_index[:, 0]
        slots = forward_batch.out_cache_loc.view(len(tokens), self._num_steps)
        positions, mrope_positions = forward_batch.positions, forward_batch.mrope_positions
        chain: list[torch.Tensor] = []
        for step, backend in zip(range(self._num_steps), self._backends.attn_backends, strict=True):
            forward_batch.input_ids, forward_batch.out_cache_loc = tokens, slots[:, step].contiguous()
            forward_batch.positions = positions + step
            if self.draft_runner.model_config.model_is_mrope:
                forward_batch.mrope_positions = mrope_positions + step
            with forward_context(ForwardContext(attn_backend=backend), forward_batch=forward_batch):
                logits = self.draft_runner.forward(forward_batch).logits_output.next_token_logits
            if step < self._num_steps - 1:
                tokens = torch.argmax(logits, dim=-1)
                chain.append(tokens)
        forward_batch.positions, forward_batch.mrope_positions = positions, mrope_positions
        return None, None, torch.stack(chain, dim=1), None


class PlannedByLengths:
    """SGLang's step backends, planned by the draft's lengths, which are fewer than its positions.

    They read the lengths off the positions (kernels/ops/speculative/cache_locs.py), where EAGLE's draft has them.
    """

    def __init__(self, backends: Any) -> None:
        self._backends = backends
        self.attn_backends = backends.attn_backends

    def __getattr__(self, name: str) -> Any:
        """Everything else is theirs."""
        return getattr(self._backends, name)

    def init_forward_metadata_out_graph(self, forward_batch: Any, in_capture: bool = False) -> None:
        """Plan the steps' attention before a capture or a replay."""
        by_length = copy.copy(forward_batch)
        by_length.positions = forward_batch.seq_lens
        self._backends.init_forward_metadata_out_graph(by_length, in_capture=in_capture)


class _Proof:
    """How many tokens of one graph's first rounds were the same as without it."""

    def __init__(self) -> None:
        self.agreed = self.compared = 0

    @property
    def is_done(self) -> bool:
        return self.compared >= PROOF_TOKENS

    @property
    def is_passed(self) -> bool:
        return self.agreed >= LEAST_AGREEMENT * self.compared

    def add(self, chain: torch.Tensor, expected: torch.Tensor) -> None:
        """Count a round. Behind a row's first difference the chains are about different texts. Waits for the device."""
        is_same = (chain == expected).long()
        counts = torch.stack([is_same.cumprod(dim=1).sum(), (is_same.min(dim=1).values == 0).sum()])
        tp_group = get_parallel().tp_group
        if tp_group.world_size > 1:  # a rank that gives up alone would leave the others waiting in their graph
            tp_group.broadcast(counts, src=0)
        num_same, num_parted = counts.tolist()
        self.agreed += num_same
        self.compared += num_same + num_parted
