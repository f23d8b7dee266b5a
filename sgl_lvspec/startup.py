"""Start-up of a server that names LVSPEC: what is refused, and what the user left open.

Called by SGLang while it resolves its arguments, in the main process only (srt/arg_groups/speculative_hook.py:245,
:280). Both functions get a stand-in that records assignments: fields are read and assigned, nothing else.
"""

from __future__ import annotations

import json
import logging
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING

from sgl_lvspec import SGLANG_TESTED, modes, ranks
from sgl_lvspec.attention import CPU_BACKEND
from sgl_lvspec.flags import config_of
from sgl_lvspec.graphs import sglang_waits
from sgl_lvspec.models import ModelFacts, find_misfit, read_facts
from sgl_lvspec.relevance.calibration import examine_calibration

if TYPE_CHECKING:
    from sglang.srt.server_args import ServerArgs

logger = logging.getLogger(__name__)

DEFAULT_NUM_STEPS = 10  # K of the paper (LVSpec, arXiv 2604.05650, section 4)
DEFAULT_MAX_RUNNING_REQUESTS = 48  # what SGLang sets for STANDALONE (speculative_hook.py:1086)

_CPU_DEFAULTS = ("intel_amx", "torch_native")  # what SGLang resolves to on CPU (arg_groups/platform_hook.py:158)


def validate(server_args: ServerArgs) -> None:
    """Refuse what cannot be served, before a model is loaded.

    Raises:
        ValueError: in the form *required / found / do this*.
    """
    _require_tested_sglang()
    if server_args.speculative_draft_model_path is None:
        raise ValueError(
            "LVSPEC needs a draft model; found no --speculative-draft-model-path. Name a small video LLM with the "
            "target's tokenizer."
        )
    topk = server_args.speculative_eagle_topk
    if topk not in (None, 1):
        raise ValueError(f"LVSPEC needs --speculative-eagle-topk 1; found {topk}. Drop the flag or set it to 1.")
    _require_chain_lengths(server_args)
    modes.refuse_unsupported(server_args)
    _require_attention_backend(server_args)
    if server_args.device != "cpu" and config_of(server_args).cascade == "on":
        raise ValueError(
            "--lvspec-cascade on needs --device cpu: on a GPU shared and own parts would have to be planned for every "
            f"round, for CUDA graphs too, which nobody has tried on one; found {server_args.device}. Drop the flag."
        )
    config_of(server_args).draft_stop_on(str(server_args.device))
    if server_args.page_size not in (None, 1):
        raise ValueError(
            "LVSPEC needs --page-size 1: the draft's KV pool holds single tokens of a context, and on CPU SGLang finds "
            f"larger pages with a GPU's kernel; found {server_args.page_size}. Drop the flag."
        )
    if server_args.skip_tokenizer_init and config_of(server_args).allows_loose:
        raise ValueError(
            "A preset that loosens needs the target's tokenizer (it names the tokens that are never loosened); found "
            "--skip-tokenizer-init. Drop the flag, or set --lvspec-preset strict."
        )
    misfit = find_misfit(*_load_facts(server_args))
    if misfit is not None:
        raise ValueError(misfit)
    _examine_calibration(server_args)
    _warn_of_inherited_penalty(server_args)

    from sgl_lvspec import api_key, request_checks
    from sgl_lvspec.sight import response

    request_checks.install(server_args)
    api_key.install(server_args)
    response.install()


def set_defaults(server_args: ServerArgs) -> None:
    """Assign what STANDALONE's own resolution would, which SGLang does not run for a plugin's name."""
    if server_args.max_running_requests is None:
        server_args.max_running_requests = DEFAULT_MAX_RUNNING_REQUESTS
        logger.info("LVSPEC: --max-running-requests is %d unless set.", DEFAULT_MAX_RUNNING_REQUESTS)
    num_steps, _ = _chain_lengths(server_args)
    server_args.speculative_num_steps = num_steps
    server_args.speculative_num_draft_tokens = num_steps + 1
    server_args.speculative_eagle_topk = 1
    if server_args.enable_mixed_chunk:
        server_args.enable_mixed_chunk = False
        logger.warning("LVSPEC: mixed chunked prefill is off; a running request drafts or prefills, not both.")
    if server_args.device == "cpu":
        if server_args.attention_backend != CPU_BACKEND:
            logger.info(
                "LVSPEC: attention backend %s on CPU (%s knows no chain draft).",
                CPU_BACKEND,
                server_args.attention_backend,
            )
        server_args.attention_backend = CPU_BACKEND
        server_args.disable_overlap_schedule = True  # SGLang has none for speculation on CPU
        ranks.bind(server_args)
    sglang_waits.spare(server_args)


def _require_tested_sglang() -> None:
    found = version("sglang")
    if found != SGLANG_TESTED:
        raise ValueError(
            f"LVSPEC needs sglang {SGLANG_TESTED}, the release its seams were tested on; found {found}. "
            f"Install sglang=={SGLANG_TESTED}; `lvspec doctor` says which seams {found} changed."
        )


def _chain_lengths(server_args: ServerArgs) -> tuple[int, int]:
    """(K, verify width) from what the user named; either determines the other."""
    steps, width = server_args.speculative_num_steps, server_args.speculative_num_draft_tokens
    if steps is None:
        steps = DEFAULT_NUM_STEPS if width is None else width - 1
    return steps, steps + 1 if width is None else width


def _require_chain_lengths(server_args: ServerArgs) -> None:
    steps, width = _chain_lengths(server_args)
    if steps < 1 or width != steps + 1:
        raise ValueError(
            "LVSPEC needs --speculative-num-steps K of at least 1 and --speculative-num-draft-tokens K + 1; found "
            f"{server_args.speculative_num_steps} and {server_args.speculative_num_draft_tokens}. Set K alone."
        )


def _require_attention_backend(server_args: ServerArgs) -> None:
    """On CPU every phase runs on ours; SGLang resolved `attention_backend` to its own where the user named none."""
    backends = {
        "--attention-backend": server_args.attention_backend,
        "--prefill-attention-backend": server_args.prefill_attention_backend,
        "--decode-attention-backend": server_args.decode_attention_backend,
        "--speculative-draft-attention-backend": server_args.speculative_draft_attention_backend,
    }
    is_cpu = server_args.device == "cpu"
    for flag, found in backends.items():
        if is_cpu and found is not None and found != CPU_BACKEND:
            if flag == "--attention-backend" and found in _CPU_DEFAULTS:
                continue
            raise ValueError(f"LVSPEC needs {flag} {CPU_BACKEND} on CPU; found {found}. Drop the flag.")
        if not is_cpu and found == CPU_BACKEND:
            raise ValueError(f"{flag} {CPU_BACKEND} needs --device cpu; found {server_args.device}. Drop the flag.")


def _examine_calibration(server_args: ServerArgs) -> None:
    """A file that cannot be used is refused; one of another pair of models is worth a warning."""
    config = config_of(server_args)
    path = config.calibration
    logger.info("LVSPEC: preset %s, scorer %s, calibration %s.", config.rule_name, config.scorer, path or "none")
    if path is None:
        if config.allows_loose:
            logger.warning(
                "LVSPEC: preset %s without a calibration file: relevance counts every head alike, and each answer is "
                "strict until it has shown what to expect. Run `lvspec calibrate` for this pair.",
                config.preset,
            )
        return
    warning = examine_calibration(
        Path(path),
        server_args.model_path,
        str(server_args.speculative_draft_model_path),
        server_args.revision,
        server_args.speculative_draft_model_revision,
    )
    if warning is not None:
        logger.warning("%s", warning)


def _warn_of_inherited_penalty(server_args: ServerArgs) -> None:
    """SGLang gives chats the sampling defaults of the model's generation_config.json, a repetition penalty among them:
    such a request commits one token a round, so nothing would be won and nobody would know."""
    if server_args.sampling_defaults != "model":
        return
    from transformers import GenerationConfig

    try:
        defaults = GenerationConfig.from_pretrained(server_args.model_path, revision=server_args.revision)
    except (OSError, ValueError):
        return  # none to inherit
    penalty = defaults.repetition_penalty
    if penalty not in (None, 1.0):
        logger.warning(
            "LVSPEC: the model's generation_config.json has repetition_penalty %s, which chats inherit unless they "
            "name their own; a penalised request is strict and commits one token a round. Start with "
            "--sampling-defaults openai, or send repetition_penalty 1.",
            penalty,
        )


def _load_facts(server_args: ServerArgs) -> tuple[ModelFacts, ModelFacts]:
    target = read_facts(
        server_args.model_path,
        trust_remote_code=server_args.trust_remote_code,
        revision=server_args.revision,
        overrides=json.loads(server_args.json_model_override_args),
    )
    draft = read_facts(
        server_args.speculative_draft_model_path,
        trust_remote_code=server_args.trust_remote_code,
        revision=server_args.speculative_draft_model_revision,
    )
    return target, draft
