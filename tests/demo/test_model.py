"""The training forward and the evaluation's runner compute what the library computes, on the trained models.

At random initialisation a wrong rotary layout hides behind small attention weights: only trained weights show it.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import Qwen2_5_VLForConditionalGeneration

from demo import model as pair_model
from demo.curriculum import IGNORE, language_batches
from demo.evaluate import prompt_ids
from demo.heldout import held_out, served_patches
from demo.render import patchify
from demo.runner import Runner, chain
from demo.wording import Style

PAIR = Path(__file__).parents[2] / "demo/pair"


@pytest.fixture(scope="module")
def runners() -> dict[str, Runner]:
    return {role: Runner(PAIR / role) for role in ("target", "draft")}


def _library_logits(model: Qwen2_5_VLForConditionalGeneration, batch, vocabulary) -> torch.Tensor:
    kinds = (batch.ids == vocabulary.video).int() * 2 + (batch.ids == vocabulary.image).int()
    inputs = {}
    if batch.frames is not None:
        patches = patchify(batch.frames)
        grid = torch.tensor([[batch.frames.shape[1] // 2, 8, 8]] * len(batch.frames))
        if (kinds == 1).any():
            inputs = {"pixel_values": patches, "image_grid_thw": grid}
        else:
            inputs = {
                "pixel_values_videos": patches,
                "video_grid_thw": grid,
                "second_per_grid_ts": torch.ones(len(grid)),
            }
    mask = (batch.ids != vocabulary.pad).long()
    return model(input_ids=batch.ids, attention_mask=mask, mm_token_type_ids=kinds, **inputs).logits


@pytest.mark.parametrize("role", ["target", "draft"])
def test_training_forward_equals_the_library(runners: dict[str, Runner], role: str) -> None:
    runner, kinds = runners[role], set()
    for seed in range(40):
        rng = np.random.default_rng(seed)
        batch = next(language_batches(runner.vocabulary, Style(), rng, 2, 1, terse=False))
        kind = None if batch.frames is None else (batch.frames.shape[1], len(batch.frames))
        if kind in kinds or kind == (12, 2):  # long videos follow SGLang's convention half the time
            continue
        kinds.add(kind)
        wanted = batch.labels != IGNORE
        with torch.no_grad():
            features = None
            if batch.frames is not None:
                features = pair_model.see(runner.model.model.visual, patchify(batch.frames), len(batch.frames))
            x = pair_model.embed(runner.model, batch.ids, features, runner.vocabulary)
            ours = pair_model.read(runner.model, x, batch.positions, wanted)
            theirs = _library_logits(runner.model, batch, runner.vocabulary)[wanted]
        assert torch.allclose(ours, theirs, atol=2e-3), f"{kind}: {(ours - theirs).abs().max()}"
    assert len(kinds) >= 4, "videos of several lengths, images and plain text"


def test_runner_answers_as_generate_does(runners: dict[str, Runner]) -> None:
    runner = runners["target"]
    clips = list(held_out(3, seed=5))
    patches = served_patches(clips)
    prompts = [prompt_ids(runner.vocabulary, c, i) for i, c in enumerate(clips)]
    ours = runner.greedy(prompts, patches, len(clips))
    for clip, prompt, answer in zip(clips, prompts, ours, strict=True):
        ids = torch.tensor([prompt])
        output = runner.model.generate(
            input_ids=ids,
            attention_mask=torch.ones_like(ids),
            mm_token_type_ids=(ids == runner.vocabulary.video).int() * 2,
            pixel_values_videos=served_patches([clip]),
            video_grid_thw=torch.tensor([[4, 8, 8]]),
            second_per_grid_ts=torch.tensor([1.0]),
            max_new_tokens=160,
            do_sample=False,
        )
        assert output[0, len(prompt) :].tolist() == [*answer, runner.vocabulary.eos]


def test_strict_chain_commits_the_targets_own_answers(runners: dict[str, Runner]) -> None:
    target, draft = runners["target"], runners["draft"]
    clips = list(held_out(4, seed=6))
    patches = served_patches(clips)
    prompts = [prompt_ids(target.vocabulary, c, 0) for c in clips]
    alone = target.greedy(prompts, patches, len(clips))
    answers, accepted = chain(target, draft, prompts, patches, len(clips))
    assert answers == alone
    itself, everything = chain(target, target, prompts, patches, len(clips))
    assert itself == alone
    # Drafting for itself the target is always right: only the last round may be cut short, by the answer's end.
    assert all(n == 10 for row in everything for n in row[:-1])
    rounds = [len(row) for row in accepted]
    assert all(sum(row) + n >= len(answer) for row, n, answer in zip(accepted, rounds, answers, strict=True))
