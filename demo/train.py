"""Trains the demo pair: `python -m demo.train [target] [draft]`. Resumes where a broken run stopped.

Stages, all measured in steps: `vision` teaches the tower with supervised heads; `language` trains everything, first
on terse lists, then on the full mixture, while the vision losses stay on at a small weight.
"""

from __future__ import annotations

import argparse
import math
import shutil
import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn
from torch.utils.data import DataLoader
from tqdm import tqdm

from demo import model as pair_model
from demo import tokenizer as pair_tokenizer
from demo.curriculum import GROUP, IGNORE, Lessons
from demo.render import patchify
from demo.tokenizer import Vocabulary

TOKENIZER_FILES = (
    "tokenizer.json", "tokenizer_config.json", "vocab.json", "merges.txt", "chat_template.jinja",
    "preprocessor_config.json", "video_preprocessor_config.json",
)  # fmt: skip


@dataclass(frozen=True)
class Recipe:
    """What differs between the two roles. Steps are optimizer steps; rates are peak learning rates."""

    seed: int
    vision_steps: int
    language_steps: int
    terse_steps: int
    vision_rate: float
    language_rate: float
    tower_rate_factor: float
    vision_weight: float
    vision_clips: int = 32
    language_clips: int = 24
    style_shift: float = 0.0
    # Of tokens that state or decide a fact, once wordings are learned: the noise of wordings would drown them.
    fact_weight: float = 3.0
    fact_weight_from: int = 1400  # language step


RECIPES = {
    "target": Recipe(10, 1200, 7000, 400, 1.5e-3, 1.2e-3, 0.8, 0.6, language_clips=16),
    "draft": Recipe(
        20, 1200, 3000, 400, 2e-3, 2e-3, 0.5, 0.4, language_clips=16, style_shift=0.6, fact_weight_from=1200
    ),
}


def rate_at(done: float, warm: float = 0.03, floor: float = 0.02) -> float:
    """Share of the peak learning rate when `done` (0..1) of a stage is over: linear warm-up, then cosine."""
    if done < warm:
        return done / warm + 0.01
    return floor + (1 - floor) * 0.5 * (1 + math.cos(math.pi * min(1.0, (done - warm) / (1 - warm))))


def optimizer_for(modules: list[tuple[list[nn.Parameter], float]]) -> torch.optim.AdamW:
    """AdamW over groups of (parameters, rate factor); no decay on vectors."""
    groups = []
    for parameters, factor in modules:
        for is_matrix in (True, False):
            chosen = [p for p in parameters if (p.dim() > 1) == is_matrix]
            groups.append({"params": chosen, "weight_decay": 0.05 if is_matrix else 0.0, "factor": factor})
    return torch.optim.AdamW(groups, lr=1e-3, betas=(0.9, 0.98), fused=True)


class Trainer:
    """One role's run: model, heads, optimizer of the current stage, and the folder that holds its checkpoint."""

    def __init__(self, role: str, recipe: Recipe, folder: Path, device: str) -> None:
        self.role, self.recipe, self.folder, self.device = role, recipe, folder, device
        folder.mkdir(parents=True, exist_ok=True)
        if not (folder / "tokenizer.json").exists():
            pair_tokenizer.build(folder)
        self.vocabulary = Vocabulary(folder)
        self.model = pair_model.build(role, self.vocabulary, recipe.seed).to(device)
        self.tower = self.model.model.visual
        self.heads = pair_model.VisionHeads(self.model.config.text_config.hidden_size).to(device)
        self.stage, self.step = "vision", 0
        self.checkpoint = folder / "checkpoint.pt"
        self.saved: dict[str, object] | None = None
        if self.checkpoint.exists():
            self.saved = torch.load(self.checkpoint, map_location=device, weights_only=True)
            self.model.load_state_dict(self.saved["model"])
            self.heads.load_state_dict(self.saved["heads"])
            self.stage, self.step = str(self.saved["stage"]), int(self.saved["step"])  # type: ignore[call-overload]
        pair_model.use_fused_norm()

    def save(self, optimizer: torch.optim.Optimizer) -> None:
        """Checkpoint everything that a resumed run needs; replaces the old one at once, never half-written."""
        state = {
            "model": self.model.state_dict(), "heads": self.heads.state_dict(), "optimizer": optimizer.state_dict(),
            "stage": self.stage, "step": self.step,
        }  # fmt: skip
        torch.save(state, self.checkpoint.with_suffix(".new"))
        self.checkpoint.with_suffix(".new").replace(self.checkpoint)

    def _resume(self, optimizer: torch.optim.Optimizer) -> None:
        if self.saved is not None:
            optimizer.load_state_dict(self.saved["optimizer"])  # type: ignore[arg-type]
            self.saved = None

    def _update(self, optimizer: torch.optim.Optimizer, loss: torch.Tensor, rate: float) -> None:
        loss.backward()
        nn.utils.clip_grad_norm_(self.model.parameters(), 1.0)
        for group in optimizer.param_groups:
            group["lr"] = rate * group["factor"]
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)

    def run(self, save_every: int) -> None:
        """Both stages, from wherever the checkpoint stands."""
        if save_every % GROUP:
            raise ValueError(
                f"--save-every needs a multiple of {GROUP}, got {save_every}; batches are made {GROUP} at a time."
            )
        if self.stage == "vision":
            self._vision(save_every)
            self.stage, self.step = "language", 0
        self._language(save_every)

    def _lessons(self, *, is_vision: bool) -> DataLoader:  # type: ignore[type-arg]
        """Batches from the current step on, made by one worker process beside the training."""
        recipe = self.recipe
        clips = recipe.vision_clips if is_vision else recipe.language_clips
        lessons = Lessons(self.folder, recipe.style_shift, recipe.seed, clips, recipe.terse_steps, self.step, is_vision)
        return DataLoader(lessons, batch_size=None, num_workers=1, prefetch_factor=2 * GROUP)

    def _vision(self, save_every: int) -> None:
        recipe = self.recipe
        optimizer = optimizer_for([([*self.tower.parameters(), *self.heads.parameters()], 1.0)])
        self._resume(optimizer)
        bar = tqdm(total=recipe.vision_steps, initial=self.step, desc="vision", mininterval=10)
        for batch in self._lessons(is_vision=True):
            if self.step >= recipe.vision_steps:
                break
            patches = patchify(batch.frames).to(self.device)
            cells, background = batch.cells.to(self.device), batch.background.to(self.device)
            with torch.autocast(self.device, torch.bfloat16):
                features = pair_model.see(self.tower, patches, len(cells))
            loss, right = self.heads.loss(features.float(), cells, background)
            self._update(optimizer, loss, recipe.vision_rate * rate_at(self.step / recipe.vision_steps))
            self.step += 1
            bar.update()
            if self.step % 20 == 0:
                bar.set_postfix(loss=f"{loss.item():.2f}", **{k: f"{v:.2f}" for k, v in right.items()})
            if self.step % save_every == 0:
                self.save(optimizer)

    def _language(self, save_every: int) -> None:
        recipe, is_fact = self.recipe, torch.from_numpy(self.vocabulary.is_fact).to(self.device)
        ends_clause = torch.from_numpy(self.vocabulary.ends_clause).to(self.device)
        tower = list(self.tower.parameters())
        known = {id(p) for p in tower}
        rest = [p for p in self.model.parameters() if id(p) not in known]
        optimizer = optimizer_for(
            [(rest, 1.0), (tower, recipe.tower_rate_factor), (list(self.heads.parameters()), 1.0)]
        )
        self._resume(optimizer)
        bar = tqdm(total=recipe.language_steps, initial=self.step, desc="language", mininterval=10)
        seen, right = np.zeros(4), dict[str, float]()
        for batch in self._lessons(is_vision=False):
            if self.step >= recipe.language_steps:
                break
            ids, labels, positions = (x.to(self.device) for x in (batch.ids, batch.labels, batch.positions))
            features, wanted = None, labels != IGNORE
            with torch.autocast(self.device, torch.bfloat16):
                if batch.frames is not None:
                    features = pair_model.see(self.tower, patchify(batch.frames).to(self.device), len(batch.frames))
                x = pair_model.embed(self.model, ids, features, self.vocabulary)
                logits = pair_model.read(self.model, x, positions, wanted)
            truth = labels[wanted]
            losses = F.cross_entropy(logits.float(), truth, reduction="none")
            fact = is_fact[truth]
            decides = fact | ends_clause[ids[wanted]]
            weights = torch.where(decides, recipe.fact_weight if self.step >= recipe.fact_weight_from else 1.0, 1.0)
            loss = (losses * weights).sum() / weights.sum()
            if features is not None:
                seeing, right = self.heads.loss(
                    features.float(), batch.cells.to(self.device), batch.background.to(self.device)
                )
                loss = loss + recipe.vision_weight * seeing
            self._update(optimizer, loss, recipe.language_rate * rate_at(self.step / recipe.language_steps))
            self.step += 1
            bar.update()
            with torch.no_grad():
                hit = logits.argmax(-1) == truth
                seen += [(hit & fact).sum().item(), fact.sum().item(), (hit & ~fact).sum().item(), (~fact).sum().item()]
            if self.step % 40 == 0:
                bar.set_postfix(
                    loss=f"{losses.mean().item():.3f}",
                    facts=f"{seen[0] / seen[1]:.3f}",
                    words=f"{seen[2] / seen[3]:.3f}",
                    shape=f"{right.get('shape', 0):.2f}",
                )
                seen[:] = 0
            if self.step % save_every == 0:
                self.save(optimizer)
        self.save(optimizer)


def export(trainer: Trainer, folder: Path, dtype: torch.dtype) -> None:
    """Write a folder that transformers and SGLang load: weights in `dtype`, tokenizer and processor files."""
    model = trainer.model
    generation = model.generation_config
    generation.eos_token_id, generation.pad_token_id = trainer.vocabulary.eos, trainer.vocabulary.pad
    generation.bos_token_id, generation.do_sample = None, False
    model.to(dtype).save_pretrained(folder)
    for name in TOKENIZER_FILES:
        shutil.copy(trainer.folder / name, folder / name)


def main() -> None:
    """Parse the command line; train and export each role asked for."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("roles", nargs="*", metavar="role", help="target and/or draft; both if none is named")
    parser.add_argument("--work", type=Path, default=Path("build/demo-pair"), help="checkpoints and the tokenizer")
    parser.add_argument("--out", type=Path, default=Path("demo/pair"), help="where the finished pair goes")
    parser.add_argument("--device", default="cpu", choices=("cpu", "cuda"))
    parser.add_argument("--threads", type=int, default=1, help="CPU threads; more than there are free cores is slower")
    parser.add_argument("--save-every", type=int, default=100, help="steps between checkpoints")
    parser.add_argument("--export-only", action="store_true", help="write the pair from the last checkpoint")
    parser.add_argument("--dtype", default="bfloat16", choices=("bfloat16", "float16", "float32"), help="as exported")
    args = parser.parse_args()
    unknown = set(args.roles) - set(RECIPES)
    if unknown:
        parser.error(f"A role is one of {', '.join(RECIPES)}, got {', '.join(sorted(unknown))}; name one of these.")
    torch.set_num_threads(args.threads)
    for role in args.roles or RECIPES:
        trainer = Trainer(role, RECIPES[role], args.work / role, args.device)
        if not args.export_only:
            began = time.time()
            trainer.run(args.save_every)
            tqdm.write(f"{role}: trained in {(time.time() - began) / 60:.1f} minutes")
        export(trainer, args.out / role, getattr(torch, args.dtype))


if __name__ == "__main__":
    main()
