"""A small batched greedy runner with a KV cache over the Hugging Face weights: the offline evaluation's engine.

Rows have their own lengths and positions, and later writes overwrite earlier ones, so speculative rollback is free.
A test checks it against `generate`. It knows one layout: some videos or images of SIDE x SIDE in a conversation.
"""

from __future__ import annotations

from pathlib import Path

import torch
from transformers import Qwen2_5_VLForConditionalGeneration

from demo.curriculum import positions_of
from demo.model import embed, rotate, see
from demo.tokenizer import Vocabulary


class Runner:
    """One model and the KV cache of one batch of prompts, float32."""

    def __init__(self, folder: Path, longest: int = 512) -> None:
        self.vocabulary = Vocabulary(folder)
        self.model = Qwen2_5_VLForConditionalGeneration.from_pretrained(folder, dtype=torch.float32).eval()
        self.text = self.model.model.language_model
        self.longest = longest

    @torch.no_grad()
    def prefill(self, prompts: list[list[int]], patches: torch.Tensor | None, clips: int) -> torch.Tensor:
        """Logits `[B, V]` after each prompt.

        Args: prompts: ids with their picture tokens in place; patches: as `patchify` gives them, of all `clips`
        clips in the order of the prompts, each of the same number of frames.
        """
        batch, longest = len(prompts), max(map(len, prompts))
        ids = torch.tensor([p + [self.vocabulary.pad] * (longest - len(p)) for p in prompts])
        features = None if patches is None else see(self.model.model.visual, patches, clips)
        x = embed(self.model, ids, features, self.vocabulary)
        # A row's table continues one by one after its prompt, so decoding reads its positions from it as well.
        places = torch.zeros(3, batch, self.longest, dtype=torch.long)
        for row, prompt in enumerate(prompts):
            known = torch.from_numpy(positions_of(prompt, self.vocabulary))
            places[:, row, : len(prompt)] = known
            places[:, row, len(prompt) :] = int(known[0, -1]) + 1 + torch.arange(self.longest - len(prompt))
        self.cos, self.sin = self.text.rotary_emb(x, places)
        first = self.text.layers[0].self_attn
        heads = first.k_proj.out_features // first.head_dim
        shape = (batch, heads, self.longest, first.head_dim)
        self.keys = [torch.zeros(shape) for _ in self.text.layers]
        self.values = [torch.zeros(shape) for _ in self.text.layers]
        self.lengths = torch.tensor([len(p) for p in prompts])
        logits = self._forward(x, torch.zeros(batch, dtype=torch.long))
        return logits[torch.arange(batch), self.lengths - 1]

    @torch.no_grad()
    def extend(self, ids: torch.Tensor, start: torch.Tensor) -> torch.Tensor:
        """Logits `[B, n, V]` of ids `[B, n]` placed at cache slots `start[b]`, `start[b] + 1`, ..."""
        return self._forward(self.text.embed_tokens(ids), start)

    def _forward(self, x: torch.Tensor, start: torch.Tensor) -> torch.Tensor:
        batch, count, _ = x.shape
        slots = start[:, None] + torch.arange(count)
        rows = torch.arange(batch)[:, None].expand(batch, count)
        cos, sin = self.cos[rows, slots][:, None], self.sin[rows, slots][:, None]
        end = int(slots.max()) + 1
        visible = torch.arange(end) <= slots[:, None, :, None]
        for i, layer in enumerate(self.text.layers):
            attention, y = layer.self_attn, layer.input_layernorm(x)
            q, k, v = (
                p(y).view(batch, count, -1, attention.head_dim).transpose(1, 2)
                for p in (attention.q_proj, attention.k_proj, attention.v_proj)
            )
            self.keys[i][rows, :, slots] = rotate(k, cos, sin).transpose(1, 2)
            self.values[i][rows, :, slots] = v.transpose(1, 2)
            # Query heads that share a key head go as more rows of one product, so no key or value is copied.
            shared = (batch, k.shape[1], -1, attention.head_dim)
            scores = rotate(q, cos, sin).reshape(shared) @ self.keys[i][:, :, :end].transpose(2, 3)
            scores = scores.view(batch, -1, count, end) * attention.head_dim**-0.5
            weights = scores.masked_fill(~visible, float("-inf")).softmax(-1)
            self.observe(i, weights)
            out = weights.view(batch, k.shape[1], -1, end) @ self.values[i][:, :, :end]
            out = out.view(batch, -1, count, attention.head_dim)
            x = x + attention.o_proj(out.transpose(1, 2).reshape(batch, count, -1))
            x = x + layer.mlp(layer.post_attention_layernorm(x))
        self.states = self.text.norm(x)
        logits: torch.Tensor = self.model.lm_head(self.states)
        return logits

    def observe(self, layer: int, weights: torch.Tensor) -> None:
        """Called with the attention weights [B, heads, n, end] of every layer; measurements override it."""

    def greedy(
        self, prompts: list[list[int]], patches: torch.Tensor | None, clips: int, limit: int = 160
    ) -> list[list[int]]:
        """Greedy answers without their end token, at most `limit` tokens each."""
        current = self.prefill(prompts, patches, clips).argmax(-1)
        place, answers = self.lengths.clone(), [[] for _ in prompts]  # type: list[list[int]]
        done = torch.zeros(len(prompts), dtype=torch.bool)
        for _ in range(limit):
            done |= current == self.vocabulary.eos
            if done.all():
                break
            for row in torch.nonzero(~done).flatten().tolist():
                answers[row].append(int(current[row]))
            current = self.extend(current[:, None], place)[:, 0].argmax(-1)
            place = place + 1
        return answers


def chain(
    target: Runner,
    draft: Runner,
    prompts: list[list[int]],
    patches: torch.Tensor,
    clips: int,
    k: int = 10,
    limit: int = 160,
) -> tuple[list[list[int]], list[list[int]]]:
    """Strict greedy chain speculation: the target's own answers, and the accepted draft tokens of every round, per row.

    A round drafts `k` tokens, accepts the longest prefix that equals the target's choices, and commits one target
    token after it. The counts exclude that bonus token (the paper's T is their mean).
    """
    vocabulary = target.vocabulary
    token = target.prefill(prompts, patches, clips).argmax(-1)
    draft.prefill(prompts, patches, clips)
    place, batch = target.lengths.clone(), len(prompts)
    answers: list[list[int]] = [[] for _ in prompts]
    accepted: list[list[int]] = [[] for _ in prompts]
    done = torch.zeros(batch, dtype=torch.bool)
    for row in range(batch):
        answers[row].append(int(token[row]))
        done[row] = bool(token[row] == vocabulary.eos)
    while not done.all():
        drafted, last = [], token
        for step in range(k):
            last = draft.extend(last[:, None], place + step)[:, 0].argmax(-1)
            drafted.append(last)
        draft.extend(last[:, None], place + k)  # its key and value, in case all k are accepted
        proposal = torch.stack(drafted, 1)
        choice = target.extend(torch.cat([token[:, None], proposal], 1), place).argmax(-1)
        right = (proposal == choice[:, :k]).long().cumprod(1).sum(1)
        for row in torch.nonzero(~done).flatten().tolist():
            count = int(right[row])
            committed = choice[row, : count + 1].tolist()
            if vocabulary.eos in committed:  # nothing after the end counts, and the end itself may be a drafted token
                committed = committed[: committed.index(vocabulary.eos) + 1]
                done[row] = True
            accepted[row].append(min(count, len(committed)))
            answers[row] += committed
            done[row] |= len(answers[row]) >= limit
        token = choice[torch.arange(batch), right]
        # A finished row stands still, so that its slots never run out.
        place = torch.where(done, place, place + right + 1)
    return [[t for t in a if t != vocabulary.eos] for a in answers], accepted
