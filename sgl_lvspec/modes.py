"""Modes of SGLang that a server with LVSPEC does not start in, each with its reason; docs/modes.md has all others.

Read by `startup`. A mode is refused where it would break what the plugin relies on, and where nobody has shown that it
does not: a server that starts is one whose answers were tested, or follow from what was.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

if TYPE_CHECKING:
    from sglang.srt.server_args import ServerArgs


class Mode(NamedTuple):
    """What a field of the server arguments may be.

    Attributes:
        field: of SGLang's server arguments, resolved.
        allowed: values that it may have; the first is SGLang's default.
        flag: as the user types it.
        reason: why another value is refused.
    """

    field: str
    allowed: tuple[Any, ...]
    flag: str
    reason: str


def _off(flag: str, reason: str, *allowed: Any) -> Mode:
    return Mode(flag.removeprefix("--").replace("-", "_"), allowed or (False,), flag, reason)


_CHAIN = (
    _off("--speculative-use-rejection-sampling", "the draft's chain is greedy"),
    _off("--speculative-use-block-verification", "the draft's chain is greedy"),
    _off("--speculative-accept-threshold-single", "it loosens uncounted", 1.0),
    _off("--speculative-accept-threshold-acc", "it loosens uncounted", 1.0),
    _off("--enable-watermark", "it counts SGLang's own acceptance, not the rule's"),
    _off("--speculative-adaptive", "the chain's length is fixed"),
    _off("--speculative-token-map", "the draft uses its own head", None),
    _off("--enable-multi-layer-eagle", "the draft is a whole model"),
)

_RANKS = (
    _off("--attn-dp-size", "idle ranks would have to draft along, also with --enable-dp-attention", 1),
    _off("--pp-size", "the draft runs beside the whole target", 1),
    _off("--dcp-size", "each rank would hold a part of every context, and relevance looks at all of it", 1),
    _off("--attn-cp-size", "each rank would read a part of the prompt, and slots are marked by all of it", 1),
    _off("--enable-prefill-cp", "each rank would read a part of the prompt, and slots are marked by all of it"),
    _off("--enable-layernorm-sp", "each rank would hold a part of the states that policies look at"),
    _off("--enable-attn-tp-input-scattered", "each rank would hold a part of the states that policies look at"),
    _off("--ep-size", "the tested models have no experts", 1),
    _off("--moe-dp-size", "the tested models have no experts", 1),
    _off("--dwdp-size", "the tested models have no experts", 1),
    _off("--enable-eplb", "the tested models have no experts"),
    _off("--elastic-ep-backend", "ranks that come and go have no part of the slot tables", None),
    _off("--enable-two-batch-overlap", "a verified batch is not split"),
    _off("--use-ray", "Ray's workers load no plugins"),
)

_CACHES = (
    _off("--enable-hierarchical-cache", "the draft's KV does not follow to the host"),
    _off("--enable-unified-cache-external-linker", "the draft's KV stays"),
    _off("--enable-lmcache", "the draft's KV does not follow to the host"),
    _off("--enable-flexkv", "the draft's KV does not follow to the host"),
    _off("--radix-cache-backend", "the draft's KV does not follow into another cache", None),
    _off("--enable-hisparse", "the draft's KV does not follow to the host"),
    _off("--enable-kv-cache-sharding", "each rank would hold a part of every context"),
    _off("--enable-unified-memory", "target and draft share slot numbers"),
    _off("--enable-streaming-session", "a session keeps KV that no request owns, which nobody has tested with a draft"),
)

_SEVERAL_ENGINES = (
    _off("--disaggregation-mode", "the draft's KV is not transferred", "null"),
    _off("--decoupled-spec-role", "target and draft share one process", "null"),
    _off("--enable-pdmux", "draft and target share one stream"),
    _off("--encoder-only", "it serves no language model, so there is nothing to draft"),
    _off("--language-only", "another server would see the videos, and the draft sees them with its own eyes"),
    _off("--language-model-only", "no video could be seen"),
)

_MODELS = (
    _off("--device", "nobody has tried another", "cpu", "cuda"),
    _off("--model-impl", "relevance rides on SGLang's own layers", "auto", "sglang"),
    _off("--is-embedding", "nothing is generated, so there is nothing to draft"),
    _off("--dllm-algorithm", "a diffusion model writes no chain", None),
    _off("--enable-lora", "adapters need rounds of one width, and chains end where they may", None, False),
    _off("--lora-paths", "adapters need rounds of one width, and chains end where they may", None),
    _off("--enable-torch-compile", "relevance rides on the target's modules, which compiling takes apart"),
    _off("--enable-nvidia-megakernel", "relevance rides on the target's modules, which it replaces"),
    _off("--enable-amd-monokernel", "relevance rides on the target's modules, which it replaces"),
    _off("--enable-mm-global-cache", "target and draft would read each other's features of a video"),
    _off("--trust-mm-content-hashes", "a video that the target knows is not read, but the draft needs its pixels"),
    _off("--mm-feature-transport", "the draft reads a video after the target, when its pixels are gone", None, "cpu"),
)

MODES: tuple[Mode, ...] = _CHAIN + _RANKS + _CACHES + _SEVERAL_ENGINES + _MODELS


def refuse_unsupported(server_args: ServerArgs) -> None:
    """Refuse the first mode found that a server with LVSPEC does not start in.

    Raises:
        ValueError: in the form *required / found / do this*, with the flag's name.
    """
    for mode in MODES:
        found = getattr(server_args, mode.field)
        if found not in mode.allowed:
            needed = " or ".join(repr(value) for value in mode.allowed if value is not None or len(mode.allowed) == 1)
            raise ValueError(f"LVSPEC needs {mode.flag} at {needed} ({mode.reason}); found {found!r}. Drop the flag.")
