"""The draft worker: a second video LLM that writes a greedy chain of tokens, one forward a token.

Not an EAGLE head: the draft's KV holds token i at the target's position, and the prompt is not rotated (SGLang's
STANDALONE rotates it, srt/speculative/eagle_worker_v2.py:981). The KV lies in a pool of the draft's own (`context`).

    on a GPU    K tokens by K + 1 forwards, so that whatever is accepted has been read and the host asks nothing
    on a CPU    as many as pay (`stop`), each by one forward; the host sees what was accepted (`lag`)
"""

from __future__ import annotations

import dataclasses
import logging
import time
from functools import partial
from typing import TYPE_CHECKING, Any

import torch
from sglang.srt.environ import envs
from sglang.srt.model_executor.cuda_graph_config import Backend, Phase, check_cuda_graph_backend
from sglang.srt.model_executor.forward_batch_info import ForwardBatch
from sglang.srt.model_executor.forward_context import ForwardContext, forward_context
from sglang.srt.runtime_context import get_schedule
from sglang.srt.speculative.eagle_info import EagleDraftInput, EagleVerifyInput
from sglang.srt.speculative.eagle_worker_common import build_eagle_verify_input, prepare_for_draft
from sglang.srt.speculative.standalone_worker_v2 import StandaloneDraftWorker

from sgl_lvspec.context import sizing
from sgl_lvspec.context.batch import prompt_batch
from sgl_lvspec.context.features import VisionFeatures
from sgl_lvspec.context.policies import POLICIES
from sgl_lvspec.context.pool import DraftPool, num_slots
from sgl_lvspec.context.prompt import note_prefill, stand_in_id
from sgl_lvspec.context.reader import PromptReader
from sgl_lvspec.context.upkeep import Upkeep
from sgl_lvspec.drafting.lag import find_lag
from sgl_lvspec.drafting.stop import EarlyStop
from sgl_lvspec.flags import config_of
from sgl_lvspec.graphs import no_sync
from sgl_lvspec.graphs.draft_graph import DraftGraph

if TYPE_CHECKING:
    from collections.abc import Callable

    from sglang.srt.managers.schedule_batch import ScheduleBatch
    from sglang.srt.managers.utils import GenerationBatchResult
    from sglang.srt.mem_cache.kv_loc_plan import KVLocPlan

    from sgl_lvspec.context.reader import Piece

logger = logging.getLogger(__name__)


class ChainDraftWorker(StandaloneDraftWorker):
    """Drafts with a full model of its own; replaces SGLang's `StandaloneDraftWorker` in a server that runs LVSPEC.

    Attributes:
        early_stop: on a CPU, what ends the chains of a batch's round; `worker` knows the requests' rules.
        own_lengths: of the last round, `EarlyStop.own_lengths`.
        draft_graph: on a GPU, the K + 1 forwards as CUDA graphs; None where they are run one by one.
    """

    draft_graph: DraftGraph | None = None

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.early_stop: Callable[[ScheduleBatch], EarlyStop] = _whole_chains
        self.own_lengths: torch.Tensor | None = None
        sizing.install(config_of(self.server_args), self.draft_runner, self.speculative_num_steps + 1)

    def alloc_memory_pool(
        self, memory_pool_config: Any = None, req_to_token_pool: Any = None, token_to_kv_pool_allocator: Any = None
    ) -> None:
        """Called by the scheduler once both models are loaded, with the target's pools: the draft makes its own."""
        config = config_of(self.server_args)
        target_size, width = token_to_kv_pool_allocator.size, self.speculative_num_steps + 1
        self.pool = DraftPool(req_to_token_pool, token_to_kv_pool_allocator, num_slots(config, target_size), width)
        own_config = dataclasses.replace(memory_pool_config, max_total_num_tokens=self.pool.num_tokens)
        super().alloc_memory_pool(own_config, self.pool.rows, None)
        # What the scheduler allots to a round are the target's slots; `_place` finds the draft's.
        self.req_to_token_pool, self.token_to_kv_pool_allocator = req_to_token_pool, token_to_kv_pool_allocator
        model_config = self.draft_runner.model_config
        self.reader = PromptReader(
            config,
            self.pool.slots,
            req_to_token_pool.req_to_token,
            VisionFeatures(self.draft_runner.model, self.device) if model_config.is_multimodal else None,
            stand_in_id(model_config, self.draft_worker.tokenizer),
            get_schedule().max_prefill_tokens,
        )
        self.upkeep = Upkeep(self.pool.slots, token_to_kv_pool_allocator, self.reader.tally)
        per_token = sizing.bytes_per_token(self.draft_runner)
        self.reader.tally.pool_bytes = self.pool.num_tokens * per_token
        logger.info(
            "LVSPEC: draft context %s%s; its pool holds %d tokens, %.1f MiB (the target holds %d tokens; as many would "
            "take %.1f MiB).",
            config.context,
            ""
            if POLICIES[config.context].keeps_all
            else f", keep {config.keep:g} of {config.keep_min} and more tokens",
            self.pool.slots.size,
            self.pool.num_tokens * per_token / 2**20,
            target_size,
            target_size * per_token / 2**20,
        )

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
        """Capture our loop; SGLang's runner by itself would capture EAGLE's, which is another one."""
        self.cuda_graph_runner = None
        self.cuda_graph_runner_for_draft_extend = None
        is_wanted = self.device == "cuda" and config_of(self.server_args).draft_graph == "on"
        if is_wanted and not check_cuda_graph_backend(Phase.DECODE, Backend.DISABLED):
            num_forwards = self.speculative_num_steps + 1
            self.draft_graph = DraftGraph.capture(self.draft_runner, self.draft_attn_backend, num_forwards)

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

        in_use = partial(self.pool.in_use, batch.req_pool_indices, batch.seq_lens)
        self.reader.read(batch.reqs, in_use, partial(self._read_prompts, batch))
        self.reader.keep_room(batch.batch_size() * (num_steps + 1), in_use)
        forward_batch, _, _ = prepare_for_draft(
            draft_input, self.req_to_token_pool, batch, None, self.draft_runner, 1, num_steps + 1
        )
        began = time.perf_counter()
        root = draft_input.bonus_tokens.to(torch.int64)
        self.own_lengths = None
        run = self._run_chain if self.device != "cpu" else partial(self._run_chain_on_host, batch)
        chain = run(forward_batch, root)
        num_requests, length = chain.shape
        self.reader.tally.add_round(length + (self.device != "cpu"), time.perf_counter() - began)
        return build_eagle_verify_input(
            batch,
            draft_input,
            self._topk1_parents_prealloc[:num_requests, :length].contiguous(),
            self._topk1_score_indices_prealloc[:num_requests, :length].contiguous(),
            chain,
            None,
            target_worker=self.target_worker,
            topk=1,
            num_steps=length,
            num_draft_tokens=length + 1,
            tree_mask_mode=self.tree_mask_mode,
            device=self.device,
        )

    def _run_chain(self, forward_batch: ForwardBatch, tokens: torch.Tensor) -> torch.Tensor:
        """K greedy steps and one that only writes the KV of the chain's last token: nothing is asked of the device.

        tokens int64 [B], the last committed ones -> chain int64 [B, K].
        """
        with no_sync.section("the draft's steps"):
            _, slots = self._place(forward_batch, self.speculative_num_steps + 1)
            one_by_one = partial(self._run_steps, forward_batch, tokens, slots)
            if self.draft_graph is None or not self.draft_graph.can_run(forward_batch):
                return one_by_one()
            return self.draft_graph.run(forward_batch, tokens, slots, one_by_one)

    def _run_steps(self, forward_batch: ForwardBatch, tokens: torch.Tensor, slots: torch.Tensor) -> torch.Tensor:
        """The loop without a graph (`graphs.draft_graph.Steps` with one); slots int64 [B, K + 1] are the draft's."""
        num_steps = self.speculative_num_steps
        positions = forward_batch.positions
        # SGLang's step backends on a GPU read lengths off the positions (kernels/ops/speculative/cache_locs.py).
        forward_batch.positions = forward_batch.seq_lens
        with no_sync.exempt("SGLang plans the attention of the draft's steps"):
            self.draft_attn_backend.init_forward_metadata(forward_batch)
        forward_batch.positions = positions
        forward_batch.mark_forward_metadata_ready()
        chain: list[torch.Tensor] = []
        for step in range(num_steps + 1):
            logits = self._step(forward_batch, tokens, slots[:, step], self.draft_attn_backend.attn_backends[step])
            if step < num_steps:
                tokens = torch.argmax(logits, dim=-1)
                chain.append(tokens)
            _advance(forward_batch)
        return torch.stack(chain, dim=1)

    def _run_chain_on_host(
        self, batch: ScheduleBatch, forward_batch: ForwardBatch, tokens: torch.Tensor
    ) -> torch.Tensor:
        """Greedy steps until the chain is long enough (`stop`); its last token is read once it is accepted (`lag`).

        tokens int64 [B], the last committed ones -> chain int64 [B, k], 1 <= k <= K.
        """
        num_steps, backend = self.speculative_num_steps, self.draft_attn_backend.attn_backends[0]
        rows = forward_batch.req_pool_indices
        lag = find_lag(self.pool, batch.reqs, rows, forward_batch.seq_lens, num_steps + 1)
        target_slots = forward_batch.out_cache_loc.view(len(rows), num_steps + 1)
        lens, slots = self._place(forward_batch, num_steps)
        stop = self.early_stop(batch)
        forward_batch.mark_forward_metadata_ready()
        chain: list[torch.Tensor] = []
        for step in range(num_steps):
            if step == 0 and lag is not None:
                first = lag.beside(forward_batch)
                backend.plan(first.req_pool_indices, [1] * first.batch_size, lag.lens_beside(lens).tolist())
                ids, places = torch.cat([tokens, lag.ids]), torch.cat([slots[:, 0], lag.slots])
                # More rows, it may be, than requests fit in SGLang's input buffers. Without graphs nothing needs those.
                with envs.SGLANG_EAGER_INPUT_NO_COPY.override(True):
                    logits = self._step(first, ids, places, backend)[: len(rows)]
            else:
                backend.plan(rows, [1] * len(rows), (lens + step + 1).tolist())
                logits = self._step(forward_batch, tokens, slots[:, step], backend)
            tokens = torch.argmax(logits, dim=-1)
            stop.agree_on(tokens)
            chain.append(tokens)
            _advance(forward_batch)
            if stop.is_reached(logits):
                break
        if len(chain) < num_steps:
            self.pool.slots.release(target_slots[:, len(chain) : num_steps].flatten())
        self.own_lengths = stop.own_lengths()
        return torch.stack(chain, dim=1)

    def _step(
        self, forward_batch: ForwardBatch, tokens: torch.Tensor, slots: torch.Tensor, backend: Any
    ) -> torch.Tensor:
        """One forward of the draft: tokens int64 [B] are read and written to draft slots [B] -> logits [B, V]."""
        forward_batch.input_ids, forward_batch.out_cache_loc = tokens, slots.contiguous()
        with forward_context(ForwardContext(attn_backend=backend), forward_batch=forward_batch):
            logits: torch.Tensor = self.draft_runner.forward(forward_batch).logits_output.next_token_logits
        return logits

    def _place(self, forward_batch: ForwardBatch, width: int) -> tuple[torch.Tensor, torch.Tensor]:
        """From the target's lengths and slots to the draft's: int64 [B], and [B, width] of the round's tokens."""
        rows = forward_batch.req_pool_indices
        lens = self.pool.rebuild(rows, forward_batch.seq_lens)
        target_slots = forward_batch.out_cache_loc.view(len(rows), self.speculative_num_steps + 1)
        # Nobody on the host knows the lengths; their sum is the target's, which is enough for sizes.
        forward_batch.seq_lens, forward_batch.seq_lens_cpu = lens, None
        return lens, self.pool.place_chain(rows, lens, target_slots[:, :width])

    def _read_prompts(self, round_batch: ScheduleBatch, pieces: list[Piece]) -> None:
        """Run the draft over pieces of prompts, of different requests of the round."""
        rows = torch.tensor([piece.reading.row for piece in pieces], device=self.device)
        lengths = torch.tensor([piece.reading.length for piece in pieces], device=self.device)
        self.pool.rebuild(rows, lengths)
        self.draft_runner.forward(prompt_batch(pieces, round_batch, self.draft_runner))

    def _draft_extend_for_prefill(
        self,
        batch: ScheduleBatch,
        target_hidden_states: torch.Tensor | None,
        next_token_ids: torch.Tensor,
        mm_input_embeds: torch.Tensor | None = None,
        kv_loc_plan: KVLocPlan | None = None,
    ) -> EagleDraftInput:
        """Note that there is a prompt (or a chunk of it) to read; `draft` does it, once the first token has left.

        Called by SGLang after the target's prefill.
        """
        del target_hidden_states, mm_input_embeds, kv_loc_plan
        if not batch.forward_mode.is_idle():
            for req, prefix_len, extend_len in zip(batch.reqs, batch.prefix_lens, batch.extend_lens, strict=True):
                note_prefill(req, prefix_len, prefix_len + extend_len)
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


def _whole_chains(batch: ScheduleBatch) -> EarlyStop:
    return EarlyStop(0.0, torch.zeros(batch.batch_size()))


def _advance(forward_batch: ForwardBatch) -> None:
    """To the next positions."""
    forward_batch.positions.add_(1)
    if forward_batch.mrope_positions is not None:
        forward_batch.mrope_positions.add_(1)


def _without_candidates(draft_input: EagleDraftInput) -> EagleDraftInput:
    """Give the input empty [B, 0] candidates: without overlap SGLang slices and joins them whenever the batch changes
    (srt/speculative/eagle_info.py, filter_batch and merge_batch), though a chain has none."""
    num_requests = draft_input.bonus_tokens.shape[0]
    device = draft_input.bonus_tokens.device
    draft_input.topk_p = torch.empty((num_requests, 0), dtype=torch.float32, device=device)
    draft_input.topk_index = torch.empty((num_requests, 0), dtype=torch.int64, device=device)
    return draft_input
