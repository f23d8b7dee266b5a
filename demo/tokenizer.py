"""The pair's tokenizer: byte-level BPE learned from the demo's own texts, Qwen's special tokens, our chat template.

`python -m demo.tokenizer DIR` writes tokenizer and processor files. Training and evaluation use `Vocabulary`, a thin
layer over the same file; a test holds it against `AutoTokenizer` and `AutoProcessor`.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

import numpy as np
from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, trainers

from demo.answers import answer, compare
from demo.facts import ATTRIBUTE_WORDS
from demo.questions import AS_JSON, PHRASINGS, ask
from demo.render import MEAN, STD
from demo.scene import SIDE, make_scene
from demo.smalltalk import SYSTEM_PROMPT, corpus
from demo.wording import Style

SPECIAL = (
    "<|endoftext|>", "<|im_start|>", "<|im_end|>", "<|vision_start|>", "<|vision_end|>", "<|vision_pad|>",
    "<|image_pad|>", "<|video_pad|>",
)  # fmt: skip
VOCAB_SIZE = 1152  # rows of the embedding: the learned tokens, the special ones, and padding to a multiple of 128
LEARNED = 1136
_SPLIT = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)

CHAT_TEMPLATE = """{%- macro body(content) -%}
{%- if content is string -%}{{ content }}
{%- else -%}
{%- for part in content -%}
{%- if part.type in ('video', 'video_url') or 'video' in part or 'video_url' in part
-%}<|vision_start|><|video_pad|><|vision_end|>
{%- elif part.type in ('image', 'image_url') or 'image' in part or 'image_url' in part
-%}<|vision_start|><|image_pad|><|vision_end|>
{%- elif 'text' in part -%}{{ part.text }}
{%- endif -%}
{%- endfor -%}
{%- endif -%}
{%- endmacro -%}
{%- if not messages or messages[0].role != 'system' -%}
{{ '<|im_start|>system\\nSYSTEM_PROMPT<|im_end|>\\n' }}
{%- endif -%}
{%- for message in messages -%}
{{ '<|im_start|>' + message.role + '\\n' }}{{ body(message.content) }}{{ '<|im_end|>\\n' }}
{%- endfor -%}
{%- if add_generation_prompt -%}{{ '<|im_start|>assistant\\n' }}{%- endif -%}
""".replace("SYSTEM_PROMPT", SYSTEM_PROMPT)


def training_texts(scenes: int = 2500, seed: int = 123) -> list[str]:
    """Questions and answers of every kind and style, and the small talk: what the merges are learned from."""
    rng = np.random.default_rng(seed)
    texts: list[str] = []
    for i in range(scenes):
        scene, style = make_scene(rng), Style(i % 50)
        for kind in PHRASINGS:
            if kind == "compare":
                texts.append(compare((scene, scene), style, rng))
                continue
            question = ask(kind, scene, rng, as_json=kind in AS_JSON and rng.random() < 0.3)
            texts += [question.text, answer(scene, question, style, rng)]
    texts += [" " + w for w in sorted(ATTRIBUTE_WORDS)] * 50
    return texts + (corpus() + list(PHRASINGS["compare"]) + ["system\n", "user\n", "assistant\n"]) * 200


def build(folder: Path) -> None:
    """Learn the tokenizer and write every tokenizer and processor file of a checkpoint into `folder`."""
    folder.mkdir(parents=True, exist_ok=True)
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(_SPLIT), "isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=LEARNED, initial_alphabet=pre_tokenizers.ByteLevel.alphabet(), min_frequency=2, show_progress=False
    )
    tokenizer.train_from_iterator(training_texts(), trainer)
    tokenizer.add_special_tokens(list(SPECIAL))
    tokenizer.save(str(folder / "tokenizer.json"))
    model = json.loads((folder / "tokenizer.json").read_text())["model"]
    (folder / "vocab.json").write_text(json.dumps(model["vocab"]))
    merges = "\n".join(" ".join(m) if isinstance(m, list) else m for m in model["merges"])
    (folder / "merges.txt").write_text(f"#version: 0.2\n{merges}\n")
    (folder / "chat_template.jinja").write_text(CHAT_TEMPLATE)
    write_json(
        folder / "tokenizer_config.json",
        {
            "tokenizer_class": "Qwen2Tokenizer", "processor_class": "Qwen2_5_VLProcessor", "eos_token": "<|im_end|>",
            "pad_token": "<|endoftext|>", "bos_token": None, "model_max_length": 4096, "errors": "replace",
            "split_special_tokens": False, "add_bos_token": False, "clean_up_tokenization_spaces": False,
            "additional_special_tokens": list(SPECIAL[1:]),
        },
    )  # fmt: skip
    low, high = SIDE * SIDE // 4, SIDE * SIDE  # the upper limit brings clips that SGLang enlarged back to SIDE
    pixels = {
        "min_pixels": low, "max_pixels": high, "size": {"shortest_edge": low, "longest_edge": high}, "patch_size": 14,
        "temporal_patch_size": 2, "merge_size": 2, "image_mean": MEAN, "image_std": STD,
        "processor_class": "Qwen2_5_VLProcessor",
    }  # fmt: skip
    write_json(folder / "preprocessor_config.json", {**pixels, "image_processor_type": "Qwen2VLImageProcessor"})
    write_json(folder / "video_preprocessor_config.json", {**pixels, "video_processor_type": "Qwen2VLVideoProcessor"})


def write_json(path: Path, data: object) -> None:
    """Write `data` as indented JSON with a final newline."""
    path.write_text(json.dumps(data, indent=1) + "\n")


class Vocabulary:
    """Fast ids for training and evaluation."""

    def __init__(self, folder: Path) -> None:
        self.tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
        self.eos, self.pad = self.id("<|im_end|>"), self.id("<|endoftext|>")
        self.video, self.image = self.id("<|video_pad|>"), self.id("<|image_pad|>")
        self.vision_start, self.vision_end = self.id("<|vision_start|>"), self.id("<|vision_end|>")
        words = [self.tokenizer.decode([i]).strip(' "').lower() for i in range(self.tokenizer.get_vocab_size())]
        # What follows the end of a clause decides whether another event is told at all: a fact in a filler's clothes.
        ends = [self.tokenizer.decode([i]).endswith((".", ";", ":", "[")) for i in range(len(words))]
        self.ends_clause = np.array(ends + [False] * (VOCAB_SIZE - len(ends)))
        self.is_fact = np.array([w in ATTRIBUTE_WORDS for w in words] + [False] * (VOCAB_SIZE - len(words)))

    def id(self, token: str) -> int:
        """The id of one token, which must exist."""
        found = self.tokenizer.token_to_id(token)
        if found is None:
            raise ValueError(
                f"The tokenizer needs the token {token}, found none; run python -m demo.tokenizer DIR again."
            )
        return int(found)

    def encode(self, text: str) -> list[int]:
        """Ids of `text`; special tokens written out in it become their ids."""
        return list(self.tokenizer.encode(text, add_special_tokens=False).ids)

    def decode(self, ids: list[int]) -> str:
        """The text of `ids` without special tokens."""
        return str(self.tokenizer.decode([int(i) for i in ids], skip_special_tokens=True))


if __name__ == "__main__":
    build(Path(sys.argv[1]))
