"""Which models LVSPEC serves, and whether two of them fit. Shared by server start-up and `lvspec doctor`."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

# Architectures whose strict mode is compared with no speculation in this project's tests.
TARGETS = ("Qwen2_5_VLForConditionalGeneration", "Qwen3VLForConditionalGeneration")
DRAFTS = (*TARGETS, "Qwen2ForCausalLM")

_LLAVA_REASON = (
    "SGLang 0.5.23 runs LLaVA's verify forward as a prefill (srt/models/llava.py:184-204 reads the images of every "
    "request again), so no EAGLE-family verification works on it"
)


@dataclass(frozen=True, slots=True)
class ModelFacts:
    """What a checkpoint's config says about the things that must fit."""

    path: str
    architecture: str
    vocab_size: int
    hidden_size: int
    is_multimodal: bool

    @classmethod
    def of(cls, path: str, config: Any) -> ModelFacts:
        """Read them from a transformers config."""
        text = config.get_text_config()
        return cls(
            path=path,
            architecture=(config.architectures or ["none"])[0],
            vocab_size=int(text.vocab_size),
            hidden_size=int(text.hidden_size),
            is_multimodal=getattr(config, "vision_config", None) is not None,
        )


def read_facts(
    path: str, *, trust_remote_code: bool, revision: str | None = None, overrides: dict[str, Any] | None = None
) -> ModelFacts:
    """Facts of a checkpoint, from its config as the server will read it."""
    from sglang.srt.utils.hf_transformers_utils import get_config

    config = get_config(path, trust_remote_code=trust_remote_code, revision=revision, model_override_args=overrides)
    return ModelFacts.of(path, config)


def read_tokenizer(path: str, trust_remote_code: bool) -> Any:
    """Tokenizer of a checkpoint, as the server will read it."""
    from sglang.srt.utils.hf_transformers_utils import get_tokenizer

    return get_tokenizer(path, trust_remote_code=trust_remote_code)


def find_misfit(target: ModelFacts, draft: ModelFacts) -> str | None:
    """Why the pair cannot be served, as *required / found / do this*; None when it can."""
    return (
        _architecture_misfit("--model-path", target, TARGETS)
        or _architecture_misfit("--speculative-draft-model-path", draft, DRAFTS)
        or vocabulary_misfit(target, draft)
    )


def vocabulary_misfit(target: ModelFacts, draft: ModelFacts) -> str | None:
    """Drafted token ids are compared with the target's, so both count the same tokens."""
    if target.vocab_size == draft.vocab_size:
        return None
    return (
        f"LVSPEC needs a draft with the target's vocabulary; found {target.vocab_size} tokens in {target.path} and "
        f"{draft.vocab_size} in {draft.path}. Use a draft of the same family and padded vocabulary size."
    )


def tokenizer_misfit(target_tokenizer: Any, draft_tokenizer: Any) -> str | None:
    """Equal sizes are not enough: the same id must be the same token. None also when a tokenizer is missing."""
    if target_tokenizer is None or draft_tokenizer is None:
        return None
    ours, theirs = target_tokenizer.get_vocab(), draft_tokenizer.get_vocab()
    if ours == theirs:
        return None
    token = min(set(ours.items()) ^ set(theirs.items()), key=lambda pair: pair[1])[0]
    return (
        "LVSPEC needs a draft whose tokenizer gives every token the target's id; found "
        f"{token!r} at {ours.get(token)} in the target's and at {theirs.get(token)} in the draft's. "
        "Use a draft that was trained with the target's tokenizer."
    )


def _architecture_misfit(flag: str, model: ModelFacts, tested: tuple[str, ...]) -> str | None:
    if model.architecture in tested:
        return None
    reason = f" ({_LLAVA_REASON})" if model.architecture.lower().startswith("llava") else ""
    return (
        f"LVSPEC needs a {flag} of a tested architecture ({', '.join(tested)}); found {model.architecture} in "
        f"{model.path}{reason}. Use a tested model, or serve this one without --speculative-algorithm LVSPEC."
    )
