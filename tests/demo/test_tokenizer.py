"""The tokenizer is lossless, loads the stock way, and the chat template lays a conversation out as training does."""

from __future__ import annotations

from pathlib import Path

import pytest
from transformers import AutoTokenizer, PreTrainedTokenizerBase

from demo.curriculum import IGNORE, TOKENS_PER_GRID, encode_chat
from demo.facts import ATTRIBUTE_WORDS
from demo.tokenizer import SPECIAL, VOCAB_SIZE, Vocabulary

PAIR = Path(__file__).parents[2] / "demo/pair"


@pytest.fixture(scope="module")
def vocabulary() -> Vocabulary:
    return Vocabulary(PAIR / "target")


@pytest.fixture(scope="module")
def stock() -> PreTrainedTokenizerBase:
    return AutoTokenizer.from_pretrained(PAIR / "target")


@pytest.mark.parametrize(
    "text",
    [
        "The video shows two shapes on a navy background.",
        '{"count": 3, "objects": [{"color": "red"}], "events": []}',
        "12 + 34 = 46; 0.5 %\n\n\ttabs  and   spaces ",
        "Grüße, λ × 東京 🎬 \u200d é",
        "".join(chr(c) for c in range(32, 127)),
        "",
    ],
)
def test_any_text_survives_the_round_trip(vocabulary: Vocabulary, stock: PreTrainedTokenizerBase, text: str) -> None:
    ids = vocabulary.encode(text)
    assert vocabulary.decode(ids) == text
    assert stock(text).input_ids == ids
    assert stock.decode(ids) == text


def test_every_single_byte_has_a_token(vocabulary: Vocabulary) -> None:
    for code in range(0x100, 0x800):
        assert vocabulary.decode(vocabulary.encode(chr(code))) == chr(code)


def test_facts_are_one_token_each(vocabulary: Vocabulary) -> None:
    assert [w for w in sorted(ATTRIBUTE_WORDS) if len(vocabulary.encode(" " + w)) != 1] == []


def test_special_tokens_are_single_and_fit_the_embedding(
    vocabulary: Vocabulary, stock: PreTrainedTokenizerBase
) -> None:
    assert [len(vocabulary.encode(t)) for t in SPECIAL] == [1] * len(SPECIAL)
    assert max(vocabulary.id(t) for t in SPECIAL) < VOCAB_SIZE
    assert (stock.eos_token_id, stock.pad_token_id) == (vocabulary.eos, vocabulary.pad)


def test_both_models_have_the_same_tokenizer() -> None:
    for name in ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja"):
        assert (PAIR / "target" / name).read_bytes() == (PAIR / "draft" / name).read_bytes()


def _grow(ids: list[int], pad: int, grids: int) -> list[int]:
    """What the processor does to each picture token of the template."""
    return [x for i in ids for x in ([i] * (grids * TOKENS_PER_GRID) if i == pad else [i])]


@pytest.mark.parametrize("system", [None, "Answer in plain English. Do not guess."])
@pytest.mark.parametrize("media", [["video"], ["image"], ["video", "video"], []])
def test_template_lays_out_conversations_as_training_does(
    vocabulary: Vocabulary, stock: PreTrainedTokenizerBase, media: list[str], system: str | None
) -> None:
    turns = [
        ("How many objects are there?", "I count one shape: a red ring."),
        ("What happens first?", "No event takes place."),
    ]
    content = [{"type": m} for m in media] + [{"type": "text", "text": turns[0][0]}]
    messages = [{"role": "system", "content": system}] if system else []
    messages += [
        {"role": "user", "content": content},
        {"role": "assistant", "content": turns[0][1]},
        {"role": "user", "content": [{"type": "text", "text": turns[1][0]}]},
    ]
    text = stock.apply_chat_template(messages, add_generation_prompt=True, tokenize=False)
    pad, grids = (vocabulary.image, 1) if "image" in media else (vocabulary.video, 4)
    ids, labels = encode_chat(vocabulary, turns, [(pad, grids)] * len(media), system)
    answer = len(vocabulary.encode(turns[1][1])) + 2  # its end and the line break after it
    assert _grow(vocabulary.encode(text), pad, grids) == ids[:-answer]
    assert sum(label != IGNORE for label in labels) == sum(len(vocabulary.encode(a)) + 1 for _, a in turns)


def test_template_understands_openai_parts_and_plain_strings(stock: PreTrainedTokenizerBase) -> None:
    parts = [{"type": "video_url", "video_url": {"url": "x"}}, {"type": "text", "text": "Hi."}]
    text = stock.apply_chat_template([{"role": "user", "content": parts}], tokenize=False)
    assert text.count("<|vision_start|><|video_pad|><|vision_end|>Hi.") == 1
    plain = stock.apply_chat_template([{"role": "user", "content": "Hi."}], tokenize=False, add_generation_prompt=True)
    assert plain.endswith("<|im_start|>user\nHi.<|im_end|>\n<|im_start|>assistant\n")
