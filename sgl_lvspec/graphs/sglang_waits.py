"""Where SGLang 0.5.23 itself waits for the device in a round of ours, and its switch that spares one of these waits.

Of ours there are none between the draft's first step and the commit (`no_sync`). SGLang's, each once a round:

    lengths of the round before      `FutureMap.resolve_seq_lens_cpu`, for backends that need them on the host
                                     (FlashInfer, not Triton): the scheduler waits for the verify before
    plan of the draft's attention    `FlashInferMultiStepDraftBackend.common_template` copies indices to the host.
                                     SGLANG_OPT_FLASHINFER_DRAFT_HOST_INDPTR would take lengths that the host knows; how
                                     much of a context the draft holds, no host knows. It does nothing here
    plan of the verify's attention   `FlashInferAttnBackend`: three copies to the host at each replay.
                                     SGLANG_OPT_FLASHINFER_VERIFY_HOST_PLAN takes the target's lengths, which the host
                                     knows: set, unless the user has set it
    M-RoPE deltas                    `ForwardBatch.compute_spec_mrope_positions` copies them from memory that is not
                                     pinned, for draft and verify, where a request has images or videos
    grammars                         `GrammarTree.from_device`, where a request has one
"""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING

from sglang.srt.environ import envs

if TYPE_CHECKING:
    from sglang.srt.server_args import ServerArgs

logger = logging.getLogger(__name__)


def spare(server_args: ServerArgs) -> None:
    """Set SGLang's switch for this server's processes, on CUDA where FlashInfer computes attention.

    In the main process, before others are started. The switch holds for 16- and 8-bit caches and for chains; SGLang
    itself leaves all else alone.
    """
    target = (
        server_args.attention_backend,
        server_args.prefill_attention_backend,
        server_args.decode_attention_backend,
    )
    switch = envs.SGLANG_OPT_FLASHINFER_VERIFY_HOST_PLAN
    if server_args.device == "cuda" and "flashinfer" in target and not switch.is_set():
        switch.set(True)
        logger.info("LVSPEC: SGLANG_OPT_FLASHINFER_VERIFY_HOST_PLAN is on unless set.")
