"""Which pairs are served: every misfit is found and says required, found and what to do."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from sgl_lvspec.models import DRAFTS, TARGETS, ModelFacts, find_misfit, read_facts, tokenizer_misfit
from tests.sgl_lvspec.checkpoints import write_draft, write_target

TARGET = ModelFacts("big", TARGETS[0], vocab_size=1000, hidden_size=512, is_multimodal=True)
DRAFT = ModelFacts("small", DRAFTS[0], vocab_size=1000, hidden_size=128, is_multimodal=True)


def _tokenizer(**vocabulary: int) -> Any:
    return SimpleNamespace(get_vocab=lambda: vocabulary)


@pytest.mark.parametrize("draft", DRAFTS)
@pytest.mark.parametrize("target", TARGETS)
def test_tested_architectures_fit(target: str, draft: str) -> None:
    pair = dataclasses.replace(TARGET, architecture=target), dataclasses.replace(DRAFT, architecture=draft)
    assert find_misfit(*pair) is None


def test_untested_target_is_refused_by_name() -> None:
    assert find_misfit(dataclasses.replace(TARGET, architecture="Qwen2ForCausalLM"), DRAFT) == (
        f"LVSPEC needs a --model-path of a tested architecture ({', '.join(TARGETS)}); found "
        "Qwen2ForCausalLM in big. Use a tested model, or serve this one without --speculative-algorithm LVSPEC."
    )


def test_untested_draft_is_refused_by_name() -> None:
    assert find_misfit(TARGET, dataclasses.replace(DRAFT, architecture="LlamaForCausalLM")) == (
        f"LVSPEC needs a --speculative-draft-model-path of a tested architecture ({', '.join(DRAFTS)}); "
        "found LlamaForCausalLM in small. Use a tested model, or serve this one without "
        "--speculative-algorithm LVSPEC."
    )


@pytest.mark.parametrize("architecture", ["LlavaQwenForCausalLM", "LlavaOnevisionForConditionalGeneration"])
def test_llava_is_refused_with_its_reason(architecture: str) -> None:
    message = find_misfit(dataclasses.replace(TARGET, architecture=architecture), DRAFT)
    assert message is not None
    assert f"found {architecture} in big (SGLang 0.5.23 runs LLaVA's verify forward as a prefill" in message


def test_vocabularies_of_other_sizes_are_refused() -> None:
    assert find_misfit(TARGET, dataclasses.replace(DRAFT, vocab_size=1001)) == (
        "LVSPEC needs a draft with the target's vocabulary; found 1000 tokens in big and 1001 in small. Use a draft "
        "of the same family and padded vocabulary size."
    )


def test_widths_may_differ() -> None:
    assert find_misfit(TARGET, dataclasses.replace(DRAFT, hidden_size=1024)) is None


def test_equal_tokenizers_fit() -> None:
    assert tokenizer_misfit(_tokenizer(a=0, b=1), _tokenizer(b=1, a=0)) is None


@pytest.mark.parametrize(
    ("theirs", "token", "here", "there"),
    [({"a": 0, "c": 1}, "'b'", 1, None), ({"a": 1, "b": 0}, "'a'", 0, 1), ({"a": 0, "b": 1, "c": 2}, "'c'", None, 2)],
)
def test_tokenizers_that_differ_name_the_first_token(
    theirs: dict[str, int], token: str, here: int | None, there: int | None
) -> None:
    message = tokenizer_misfit(_tokenizer(a=0, b=1), _tokenizer(**theirs))
    assert message is not None
    assert message.startswith("LVSPEC needs a draft whose tokenizer gives every token the target's id; found ")
    assert message.endswith("Use a draft that was trained with the target's tokenizer.")
    # Of two tokens that share the first id that differs, either may be named.
    named = {
        f"{token} at {here} in the target's and at {there} in the draft's",
        "'c' at None in the target's and at 1 in the draft's",
        "'b' at 1 in the target's and at 0 in the draft's",
    }
    assert any(f"found {text}" in message for text in named)


def test_a_missing_tokenizer_is_no_misfit() -> None:
    assert tokenizer_misfit(None, _tokenizer(a=0)) is None
    assert tokenizer_misfit(_tokenizer(a=0), None) is None


def test_facts_are_those_of_the_config(tmp_path: Path) -> None:
    target = read_facts(str(write_target(tmp_path / "target")), trust_remote_code=False)
    assert target == ModelFacts(str(tmp_path / "target"), "Qwen2_5_VLForConditionalGeneration", 512, 64, True)
    draft = read_facts(str(write_draft(tmp_path / "draft")), trust_remote_code=False)
    assert draft == ModelFacts(str(tmp_path / "draft"), "Qwen2ForCausalLM", 512, 32, False)


def test_facts_follow_the_overrides_of_the_command_line(tmp_path: Path) -> None:
    path = str(write_draft(tmp_path))
    assert read_facts(path, trust_remote_code=False, overrides={"vocab_size": 99}).vocab_size == 99


def test_a_config_without_architecture_is_refused_as_none(tmp_path: Path) -> None:
    facts = read_facts(str(write_draft(tmp_path, architectures=None)), trust_remote_code=False)
    message = find_misfit(TARGET, facts)
    assert message is not None
    assert "found none in" in message
