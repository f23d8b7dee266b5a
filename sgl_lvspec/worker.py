"""The round of LVSPEC, on top of SGLang's speculative worker: draft a chain, verify it in one pass, commit a prefix.

    prefill   slots.mark_prompt, rows.write (each request's rule) -> target extend (SGLang)
              -> evidence.collect (what the draft's context policy asks of it)
    decode    drafting.chain.draft (reads new prompts first) -> slots.mark_drafted
              -> target verify forward (SGLang; relevance rides on it)
              -> verification.commit on its logits -> SGLang writes the committed tokens

Built by the scheduler of a server that was started with `--speculative-algorithm LVSPEC` (`algorithm`).
"""

from __future__ import annotations

import logging
from contextlib import nullcontext
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from sglang.srt.runtime_context import get_parallel
from sglang.srt.speculative.standalone_worker_v2 import StandaloneWorkerV2

from sgl_lvspec import late_hooks
from sgl_lvspec.attention.cascade import Cascade
from sgl_lvspec.calibrate.probe import Probe
from sgl_lvspec.context.evidence import make_evidence
from sgl_lvspec.context.policies import POLICIES
from sgl_lvspec.drafting.stop import EarlyStop
from sgl_lvspec.flags import config_of
from sgl_lvspec.graphs import no_sync
from sgl_lvspec.graphs.summary import what_is_captured
from sgl_lvspec.guard.desk import make_desk
from sgl_lvspec.models import tokenizer_misfit
from sgl_lvspec.relevance import make_relevance
from sgl_lvspec.relevance.calibration import read_calibration
from sgl_lvspec.relevance.slots import SlotTables
from sgl_lvspec.sight import round_report
from sgl_lvspec.verification.commit import LOOSE_RULE, OWN_LENGTHS, one_token_rows
from sgl_lvspec.verification.loose import LooseRule

if TYPE_CHECKING:
    from sglang.srt.managers.schedule_batch import ScheduleBatch
    from sglang.srt.managers.utils import GenerationBatchResult

    from sgl_lvspec.context.evidence import Evidence
    from sgl_lvspec.context.tally import ContextTally
    from sgl_lvspec.drafting.chain import ChainDraftWorker
    from sgl_lvspec.guard.desk import Desk
    from sgl_lvspec.relevance import Relevance
    from sgl_lvspec.relevance.calibration import Calibration

logger = logging.getLogger(__name__)


class LVSpecWorker(StandaloneWorkerV2):
    """SGLang's two-model worker with a chain draft that sees the video.

    `_draft_worker` is a `ChainDraftWorker`: the factory put it in the place of SGLang's own class.

    Attributes:
        slots: what is known about every token of the target's KV pool.
        calibration: what was measured for this pair of models (checked by `startup`); None where no file was named.
        relevance: the scorer, riding on the target's verify forward; None where every request is strict.
        loose_rule: decides rounds with loose requests in them; None where every request is strict.
        desk: the guard over them, and what their shadows show; None where every request is strict.
        evidence: what the draft's context policy takes from the target's prefill; None where it takes nothing.
        probe: measures for a calibration; None on a server that clients use.
        cascade: has the target read shared videos once; None unless asked for.
    """

    _draft_worker: ChainDraftWorker
    speculative_num_draft_tokens: int
    slots: SlotTables
    calibration: Calibration | None = None
    relevance: Relevance | None = None
    loose_rule: LooseRule | None = None
    desk: Desk | None = None
    probe: Probe | None = None
    cascade: Cascade | None = None
    evidence: Evidence | None = None
    # StandaloneWorkerV2.__init__ skips its parent's and leaves these two out (eagle_worker_v2.py:1328-1334).
    enable_dp_spec_prefill_coordination = False
    _hosts_draft = True

    @property
    def last_shared_read_runner(self) -> Any:
        """The target's verify is the round's last reader of shared buffers: nothing of the draft runs after it."""
        return self.target_worker.model_runner

    @property
    def draft_tally(self) -> ContextTally:
        """What the draft read so far, for metrics."""
        return self._draft_worker.reader.tally

    def _validate_vocab_compatibility(self, target_vocab_size: int, target_tokenizer: Any) -> None:
        """Called by SGLang once both models are loaded; sizes were compared before (`startup`)."""
        del target_vocab_size
        misfit = tokenizer_misfit(target_tokenizer, self._draft_worker.draft_worker.tokenizer)
        if misfit is not None:
            raise ValueError(misfit)

    def alloc_memory_pool(self, *args: Any, **kwargs: Any) -> None:
        """Called by the scheduler once the target's pools exist, before any CUDA graph is captured."""
        super().alloc_memory_pool(*args, **kwargs)
        runner, config = self.target_worker.model_runner, config_of(self.server_args)
        if config.debug_sync == "on":
            no_sync.switch_on()
        # A calibration is measured on whole chains.
        self._draft_stop = 0.0 if config.probe else config.draft_stop_on(self.device)
        self.calibration = read_calibration(Path(config.calibration)) if config.calibration else None
        self.relevance = make_relevance(config.scorer, self.calibration, config.mass) if config.allows_loose else None
        needs_states = config.probe or (self.relevance is not None and self.relevance.needs_states)
        state_width = runner.model_config.hidden_size if needs_states else None
        self.slots = SlotTables.beside(self.token_to_kv_pool_allocator, state_width)
        self._draft_worker.early_stop = self._early_stop
        max_nodes = self.req_to_token_pool.size * self.speculative_num_draft_tokens
        self.evidence = make_evidence(POLICIES[config.context].evidence)
        if self.evidence is not None:
            self.evidence.attach(runner)
        if config.probe:
            self.probe = Probe.beside(runner, self.slots, max_nodes)
        if self.relevance is not None:
            self.loose_rule = LooseRule.beside(self.target_worker, self.relevance, config, self.calibration)
            self.desk = make_desk(self.loose_rule, config, self.calibration)
            self.loose_rule.rows.admit, round_report.HostReport.desk = self.desk.admit, self.desk
            # A retracted request is prefilled again and goes on as it was.
            late_hooks.apply("sglang.srt.managers.schedule_batch.release_req", self.loose_rule.rows.leave, "before")

    def init_attention_backends(self) -> None:
        """Called by the scheduler once the target's attention backend exists, before any CUDA graph is captured."""
        super().init_attention_backends()
        if self.relevance is not None:
            max_nodes = self.req_to_token_pool.size * self.speculative_num_draft_tokens
            self.relevance.attach(self.target_worker.model_runner, self.slots, max_nodes)
        if config_of(self.server_args).cascade == "on":
            self.cascade = Cascade(self.slots.is_visual)
            self.target_worker.model_runner.attn_backend.cascade = self.cascade  # lvspec_cpu: `startup` has seen to it

    def init_cuda_graphs(self) -> None:
        """Called by the scheduler once the target's graphs are captured."""
        super().init_cuda_graphs()
        line = what_is_captured(
            self.device,
            verify=bool(self.target_worker.model_runner.decode_cuda_graph_capture_bs),
            relevance=self.relevance is not None,
            accept=self.loose_rule is not None and self.loose_rule.graphs is not None,
            draft=self._draft_worker.draft_graph is not None,
        )
        logger.info("LVSPEC: %s", line)

    def clear_cache_pool(self) -> None:
        """Called by the scheduler when it flushes the KV pool."""
        super().clear_cache_pool()
        self.slots.clear()
        self._draft_worker.upkeep.after_flush()

    def verify(self, batch: ScheduleBatch, *args: Any, **kwargs: Any) -> GenerationBatchResult:
        verify_input, most_nodes = batch.spec_info, self.speculative_num_draft_tokens
        if not batch.forward_mode.is_idle():
            if get_parallel().tp_group.world_size > 1:  # one chain is verified, whatever the others drafted
                get_parallel().tp_group.broadcast(verify_input.draft_token, src=0)
            with no_sync.section("marking the chain's slots"):
                self.slots.mark_drafted(batch.out_cache_loc)  # the draft's slots are the ones that verify writes
            setattr(verify_input, LOOSE_RULE, self.loose_rule)
            setattr(verify_input, OWN_LENGTHS, self._draft_worker.own_lengths)
        self.speculative_num_draft_tokens = verify_input.draft_token_num  # SGLang's result names its own width
        try:
            with nullcontext() if self.loose_rule is None else self.loose_rule.scoring(batch.reqs):
                result = super().verify(batch, *args, **kwargs)
        finally:
            self.speculative_num_draft_tokens = most_nodes
        if self.cascade is not None:
            self.cascade.publish()
        round_report.attach_strict(result.logits_output, result.accept_lens, verify_input.draft_token_num - 1)
        if self.probe is not None and not batch.forward_mode.is_idle():
            self.probe.report_round(verify_input, result.logits_output, verify_input.draft_token_num)
        return result

    def _early_stop(self, batch: ScheduleBatch) -> EarlyStop:
        """What ends the chains of a round: a loose request's go on where the draft is less sure."""
        rows = None if self.loose_rule is None else self.loose_rule.rows
        leniency = (
            torch.zeros(batch.batch_size()) if rows is None else rows.rules.relaxation[batch.req_pool_indices.long()]
        )
        one_token = one_token_rows(batch)
        tp_group = get_parallel().tp_group
        agree = partial(tp_group.broadcast, src=0) if tp_group.world_size > 1 else None
        return EarlyStop(self._draft_stop, leniency, None if one_token is None else ~one_token, agree)

    def _forward_prefill_batch(self, batch: ScheduleBatch, *args: Any, **kwargs: Any) -> GenerationBatchResult:
        if not batch.forward_mode.is_idle():
            self.slots.mark_prompt(batch.input_ids, batch.out_cache_loc)
            if self.loose_rule is not None:
                self.loose_rule.rows.write(batch)
        result = super()._forward_prefill_batch(batch, *args, **kwargs)
        if self.evidence is not None and not batch.forward_mode.is_idle():
            self.evidence.collect(batch)
        round_report.attach(result.logits_output, round_report.PrefillReport())
        if self.probe is not None:
            self.probe.report_prefill(result.logits_output)
        return result
