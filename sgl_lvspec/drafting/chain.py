"""The draft worker: a second video LLM that writes a greedy chain of K tokens, one forward a token.

Not an EAGLE head: slot i of the draft's KV holds token i at the target's position, the prompt is not rotated
(SGLang's STANDALONE rotates it, srt/speculative/eagle_worker_v2.py:981), and K + 1 steps a round leave the KV of
every accepted token in place, so nothing is re-run after verification.
"""

from __future__ import annotations

from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import torch
from sglang.srt.model_executor.forward_batch_info import CaptureHiddenMode, ForwardBatch
from sglang.srt.model_executor.forward_context import ForwardContext, forward_context
from sglang.srt.speculative.eagle_info import EagleDraftExtendInput, EagleDraftInput, EagleVerifyInput
from sglang.srt.speculative.eagle_worker_common import build_eagle_verify_input, prepare_for_draft
from sglang.srt.speculative.standalone_worker_v2 import StandaloneDraftWorker

from sgl_lvspec.drafting.prompt import DraftPrompt

if TYPE_CHECKING:
    from collections.abc import Iterator

    from sglang.srt.managers.schedule_batch import ScheduleBatch
    from sglang.srt.managers.utils import GenerationBatchResult
    from sglang.srt.mem_cache.kv_loc_plan import KVLocPlan


class ChainDraftWorker(StandaloneDraftWorker):
    """Drafts with a full model of its own; replaces SGLang's `StandaloneDraftWorker` in a server that runs LVSPEC."""

    def alloc_memory_pool(self, *args: Any, **kwargs: Any) -> None:
        """Called by the scheduler once both models are loaded."""
        super().alloc_memory_pool(*args, **kwargs)
        self.prompt = DraftPrompt(self.draft_runner.model_config, self.draft_worker.tokenizer)

    def init_attention_backend(self) -> None:
        """Create the backends of the K + 1 draft steps."""
        num_steps = self.speculative_num_steps + 1
        self.draft_extend_attn_backend = None  # the runner's own backend serves the prompt
        if self.device == "cpu":
            from sgl_lvspec.attention.cpu_backend import CpuChainDraftBackend

            self.draft_attn_backend: Any = CpuChainDraftBackend(self.draft_runner, num_steps)
        else:
            from sglang.srt.speculative.draft_utils import DraftBackendFactory

            # SGLang builds one backend fewer than the steps it is told (the last step of EAGLE needs no forward).
            factory = DraftBackendFactory(self.draft_runner, self.topk, num_steps + 1)
            self.draft_attn_backend = factory.create_decode_backend()
        self.draft_runner.draft_attn_backend = self.draft_attn_backend

    def _capture_cuda_graphs(self) -> None:
        """No graph of the draft steps yet: SGLang's runner captures EAGLE's loop, which is another one."""
        self.cuda_graph_runner = None
        self.cuda_graph_runner_for_draft_extend = None

    def draft(self, batch: ScheduleBatch, *, with_topology: bool = False) -> EagleVerifyInput:
        """Draft K tokens for every request of a decode batch.

        Args:
            batch: `batch.spec_info` is the `EagleDraftInput` whose `bonus_tokens` [B] are the last committed tokens.
            with_topology: SGLang's pipeline-parallel relay, which LVSPEC refuses at start-up.

        Returns:
            The verify input: root and chain, `draft_token` int64 [B * (K + 1)].
        """
        assert not with_topology, "LVSPEC does not run under pipeline parallelism"
        draft_input: EagleDraftInput = batch.spec_info
        num_steps = self.speculative_num_steps
        if batch.forward_mode.is_idle():
            return EagleVerifyInput.create_idle_input(1, num_steps, num_steps + 1, self.device)

        forward_batch, _, _ = prepare_for_draft(
            draft_input, self.req_to_token_pool, batch, None, self.draft_runner, 1, num_steps + 1
        )
        chain = self._run_chain(forward_batch, draft_input.bonus_tokens.to(torch.int64))
        num_requests = chain.shape[0]
        return build_eagle_verify_input(
            batch,
            draft_input,
            self._topk1_parents_prealloc[:num_requests],
            self._topk1_score_indices_prealloc[:num_requests],
            chain,
            None,
            target_worker=self.target_worker,
            topk=1,
            num_steps=num_steps,
            num_draft_tokens=num_steps + 1,
            tree_mask_mode=self.tree_mask_mode,
            device=self.device,
        )

    def _run_chain(self, forward_batch: ForwardBatch, tokens: torch.Tensor) -> torch.Tensor:
        """K greedy steps and one that only writes the KV of the chain's last token. tokens [B] -> chain [B, K]."""
        self.draft_attn_backend.init_forward_metadata(forward_batch)
        forward_batch.mark_forward_metadata_ready()
        num_steps = self.speculative_num_steps
        slots = forward_batch.out_cache_loc.view(forward_batch.batch_size, num_steps + 1)
        chain: list[torch.Tensor] = []
        for step in range(num_steps + 1):
            forward_batch.input_ids = tokens
            forward_batch.out_cache_loc = slots[:, step].contiguous()
            backend = self.draft_attn_backend.attn_backends[step]
            with forward_context(ForwardContext(attn_backend=backend), forward_batch=forward_batch):
                logits_output = self.draft_runner.forward(forward_batch).logits_output
            if step < num_steps:
                tokens = torch.argmax(logits_output.next_token_logits, dim=-1)
                chain.append(tokens)
            forward_batch.positions.add_(1)
            if forward_batch.mrope_positions is not None:
                forward_batch.mrope_positions.add_(1)
        return torch.stack(chain, dim=1)

    @contextmanager
    def reading_prompt(self, batch: ScheduleBatch) -> Iterator[None]:
        """Hold the prompt's ids over the target's prefill, which overwrites those of visual tokens."""
        with self.prompt.held(batch):
            yield

    def _draft_extend_for_prefill(
        self,
        batch: ScheduleBatch,
        target_hidden_states: torch.Tensor | None,
        next_token_ids: torch.Tensor,
        mm_input_embeds: torch.Tensor | None = None,
        kv_loc_plan: KVLocPlan | None = None,
    ) -> EagleDraftInput:
        """Fill the draft's KV for the prompt (or this chunk of it). Called by SGLang after the target's prefill.

        `target_hidden_states` and `mm_input_embeds` are the target's and of its width: the draft has its own.
        """
        del target_hidden_states, mm_input_embeds
        if not batch.forward_mode.is_idle():
            batch.spec_info = EagleDraftExtendInput(
                hidden_states=None, num_tokens_per_req=1, num_tokens_for_logprob_per_req=1
            )
            with self.prompt.shown(batch):
                forward_batch = ForwardBatch.init_new(
                    batch,
                    self.draft_runner,
                    capture_hidden_mode=CaptureHiddenMode.NULL,
                    return_hidden_states_before_norm=False,
                    kv_loc_plan=kv_loc_plan,
                )
                forward_batch.return_logprob = False
                self.draft_runner.forward(forward_batch)
        next_input = EagleDraftInput(
            bonus_tokens=next_token_ids, num_tokens_per_req=1, num_tokens_for_logprob_per_req=1
        )
        return _without_candidates(next_input)

    def _draft_extend_for_decode(
        self, batch: ScheduleBatch, batch_result: GenerationBatchResult, *, kv_loc_plan: KVLocPlan | None = None
    ) -> None:
        """Nothing to extend after verification: the chain's steps wrote the KV of every token it may accept."""
        del batch, kv_loc_plan
        _without_candidates(batch_result.next_draft_input)


def _without_candidates(draft_input: EagleDraftInput) -> EagleDraftInput:
    """Give the input empty [B, 0] candidates: without overlap SGLang slices and joins them whenever the batch changes
    (srt/speculative/eagle_info.py, filter_batch and merge_batch), though a chain has none."""
    num_requests = draft_input.bonus_tokens.shape[0]
    device = draft_input.bonus_tokens.device
    draft_input.topk_p = torch.empty((num_requests, 0), dtype=torch.float32, device=device)
    draft_input.topk_index = torch.empty((num_requests, 0), dtype=torch.int64, device=device)
    return draft_input
