"""LVSPEC as SGLang sees an algorithm: its answers to the scheduler's questions, and the worker behind it.

`register` runs in every SGLang process; the worker factory only in a scheduler that was asked for LVSPEC, so hooks
on the decode path are installed there and nowhere else.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from sglang.srt.speculative.spec_info import SpeculativeAlgorithm
from sglang.srt.speculative.spec_registry import CustomSpecAlgo

from sgl_lvspec import late_hooks, startup
from sgl_lvspec.flags import ALGORITHM

if TYPE_CHECKING:
    from sglang.srt.managers.overlap_utils import FutureMap
    from sglang.srt.server_args import ServerArgs


class LVSpecAlgorithm(CustomSpecAlgo):
    """Answers as STANDALONE does, except where a chain draft needs less.

    `need_topk`, `carries_draft_hidden_states` and `create_future_map` are called on every algorithm but missing from
    `CustomSpecAlgo` in SGLang 0.5.23 (managers/overlap_utils.py:381, managers/scheduler.py:1540, :1681).
    """

    def is_standalone(self) -> bool:
        """Two models with separate embeddings: memory sizing, graph capture and verify follow STANDALONE."""
        return True

    def supports_grammar_overlap(self) -> bool:
        """The inherited verify advances grammars behind the scheduler's barrier."""
        return True

    def supports_prefill_shared_read_done(self) -> bool:
        """The draft reads the prompt after the target's extend has ended."""
        return False

    def need_topk(self) -> bool:
        """A greedy chain starts from the bonus token alone; no candidates travel between rounds."""
        return False

    def carries_draft_hidden_states(self) -> bool:
        """The draft is a whole model and reads no hidden states of the target."""
        return False

    def create_future_map(
        self,
        device: Any,
        req_to_token_pool: Any,
        needs_cpu_seq_lens: bool = True,
        needs_confidence_relay: bool = False,
    ) -> FutureMap:
        """The scheduler's relay of values between rounds."""
        from sglang.srt.managers.overlap_utils import FutureMap

        return FutureMap(device, self, req_to_token_pool, needs_cpu_seq_lens, needs_confidence_relay)

    def handle_server_args(self, server_args: ServerArgs) -> None:
        """Fill in what the user left open (SGLang hands a recording stand-in: fields are assigned)."""
        startup.set_defaults(server_args)


def register() -> None:
    """Declare LVSPEC to SGLang; idempotent within a process."""
    from sglang.srt.speculative.spec_registry import get_spec

    if get_spec(ALGORITHM) is not None:
        return
    SpeculativeAlgorithm.register(
        ALGORITHM,
        supports_overlap=True,
        validate_server_args=startup.validate,
        spec_class=LVSpecAlgorithm,
    )(_create_worker)


def _create_worker(_server_args: ServerArgs) -> type:
    """Worker factory; runs in the scheduler process once, before the models are loaded."""
    from sgl_lvspec.attention import flashinfer_backend
    from sgl_lvspec.drafting.chain import ChainDraftWorker
    from sgl_lvspec.sight import streamer
    from sgl_lvspec.verification import commit
    from sgl_lvspec.worker import LVSpecWorker

    flashinfer_backend.register()
    # StandaloneWorkerV2 names its draft worker's class itself; a class REPLACE is SGLang's own way to change it.
    late_hooks.apply("sglang.srt.speculative.standalone_worker_v2.StandaloneDraftWorker", ChainDraftWorker, "replace")
    late_hooks.apply("sglang.srt.speculative.eagle_utils.eagle_sample", commit.after_eagle_sample, "after")
    late_hooks.apply(
        "sglang.srt.managers.scheduler.Scheduler.get_output_streamer_class",
        streamer.after_get_output_streamer_class,
        "after",
    )
    return LVSpecWorker
