"""The round of LVSPEC, on top of SGLang's speculative worker: draft a chain, verify it in one pass, commit a prefix.

    prefill   target extend (SGLang) -> draft extend (drafting.chain, own view of the prompt)
    decode    drafting.chain.draft -> target verify forward (SGLang) -> verification.commit on its logits
              -> SGLang writes the committed tokens

Built by the scheduler of a server that was started with `--speculative-algorithm LVSPEC` (`algorithm`).
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from sglang.srt.speculative.standalone_worker_v2 import StandaloneWorkerV2

from sgl_lvspec.models import tokenizer_misfit
from sgl_lvspec.sight import round_report

if TYPE_CHECKING:
    from sglang.srt.managers.schedule_batch import ScheduleBatch
    from sglang.srt.managers.utils import GenerationBatchResult

    from sgl_lvspec.drafting.chain import ChainDraftWorker


class LVSpecWorker(StandaloneWorkerV2):
    """SGLang's two-model worker with a chain draft that sees the video.

    `_draft_worker` is a `ChainDraftWorker`: the factory put it in the place of SGLang's own class.
    """

    _draft_worker: ChainDraftWorker
    # StandaloneWorkerV2.__init__ skips its parent's and leaves these two out (eagle_worker_v2.py:1328-1334).
    enable_dp_spec_prefill_coordination = False
    _hosts_draft = True

    @property
    def last_shared_read_runner(self) -> Any:
        """The target's verify is the round's last reader of shared buffers: nothing of the draft runs after it."""
        return self.target_worker.model_runner

    def _validate_vocab_compatibility(self, target_vocab_size: int, target_tokenizer: Any) -> None:
        """Called by SGLang once both models are loaded; sizes were compared before (`startup`)."""
        del target_vocab_size
        misfit = tokenizer_misfit(target_tokenizer, self._draft_worker.draft_worker.tokenizer)
        if misfit is not None:
            raise ValueError(misfit)

    def _forward_prefill_batch(self, batch: ScheduleBatch, *args: Any, **kwargs: Any) -> GenerationBatchResult:
        with self._draft_worker.reading_prompt(batch):
            result = super()._forward_prefill_batch(batch, *args, **kwargs)
        round_report.attach(result.logits_output, round_report.PrefillReport())
        return result

    def verify(self, batch: ScheduleBatch, *args: Any, **kwargs: Any) -> GenerationBatchResult:
        result = super().verify(batch, *args, **kwargs)
        round_report.attach_strict(result.logits_output, result.accept_lens)
        return result
