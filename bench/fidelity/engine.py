"""Runs one batch of questions under many acceptance rules: prefill once, then a chain speculation per rule.

Offline and batched, over the weights of the demo pair (`demo.runner`), because fifteen arms over a thousand clips would
keep a CPU server busy for a day. What it decides with is the server's own: the same kernels, the same rule.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import torch
from demo.runner import Runner

from lvspec_kernels import visual_similarity

K = 10
NONE = -1


@dataclass
class Round:
    """What one verify forward shows, for every row of the batch; D = K + 1 nodes, node 0 is the last committed token.

    Attributes:
        draft_token: int64 [B, D].
        logits: float32 [B, D, V], the target's after each node.
        draft_logprob: float32 [B, D], the draft's log-probability of each drafted token (node 0: 0).
        mass: float32 [B, D, layers, heads], share of the node's attention on visual tokens.
        states: float32 [B, D, hidden], last-layer states after the final norm.
    """

    draft_token: torch.Tensor
    logits: torch.Tensor
    draft_logprob: torch.Tensor
    mass: torch.Tensor
    states: torch.Tensor


@dataclass
class Transcript:
    """One answer under one rule: tokens, their labels, rounds."""

    tokens: list[int] = field(default_factory=list)
    labels: list[int] = field(default_factory=list)
    gaps: list[float] = field(default_factory=list)
    accepted: list[int] = field(default_factory=list)  # draft tokens accepted, per round


# Decides a round: labels int8 [B, D] of the token committed after each node (-1: none), and tokens int64 [B, D].
Decide = Callable[[Round, torch.Tensor], tuple[torch.Tensor, torch.Tensor]]


class ProbedRunner(Runner):
    """A runner that keeps the attention mass on visual tokens and the final states of its last forward."""

    def prefill(self, prompts: list[list[int]], patches: torch.Tensor | None, clips: int) -> torch.Tensor:
        """As the runner's; also notes which slots are visual."""
        self.mass: list[torch.Tensor] = []
        visual = {self.vocabulary.video, self.vocabulary.image}
        self.is_visual = torch.zeros(len(prompts), self.longest, dtype=torch.bool)
        for row, prompt in enumerate(prompts):
            self.is_visual[row, : len(prompt)] = torch.tensor([token in visual for token in prompt])
        logits = super().prefill(prompts, patches, clips)
        self.visual_states = torch.nn.functional.normalize(self.states, dim=-1)
        return logits

    def extend(self, ids: torch.Tensor, start: torch.Tensor) -> torch.Tensor:
        """As the runner's."""
        self.mass = []
        return super().extend(ids, start)

    def observe(self, layer: int, weights: torch.Tensor) -> None:
        """Keep `[B, n, heads]` of a layer's attention weights `[B, heads, n, end]`."""
        end = weights.shape[-1]
        self.mass.append((weights * self.is_visual[:, None, None, :end]).sum(-1).transpose(1, 2))


@dataclass
class Exam:
    """A batch of prompts that both models have read."""

    target: ProbedRunner
    draft: Runner
    first: torch.Tensor
    limit: int

    @classmethod
    def of(
        cls, pair: tuple[ProbedRunner, Runner], prompts: list[list[int]], patches: torch.Tensor, limit: int = 200
    ) -> Exam:
        """Prefill both models with `prompts`, each about one clip of `patches`."""
        target, draft = pair
        first = target.prefill(prompts, patches, len(prompts)).argmax(-1)
        draft.prefill(prompts, patches, len(prompts))
        return cls(target, draft, first, limit)

    def run(self, decide: Decide, on_round: Callable[[Round, torch.Tensor], None] | None = None) -> list[Transcript]:
        """Answer every prompt with chains verified by `decide`; later writes overwrite the caches of earlier runs."""
        eos = self.target.vocabulary.eos
        token, place = self.first.clone(), self.target.lengths.clone()
        batch = token.shape[0]
        answers = [Transcript([int(t)], [3], [0.0]) for t in token]
        done = token == eos
        rows = torch.arange(batch)
        while not done.all():
            seen = self.look(token, place)
            if on_round is not None:
                on_round(seen, ~done)
            labels, tokens = decide(seen, ~done)
            count = (labels >= 0).sum(1)
            for row in torch.nonzero(~done).flatten().tolist():
                n = int(count[row])
                committed = tokens[row, :n].tolist()
                gaps = gap_of(seen.logits[row, :n], tokens[row, :n])
                is_over = eos in committed
                if is_over:  # nothing after the end counts, and the end itself may be a drafted token
                    n = committed.index(eos) + 1
                answer = answers[row]
                answer.tokens += committed[:n]
                answer.labels += labels[row, :n].tolist()
                answer.gaps += gaps[:n].tolist()
                answer.accepted.append(min(int(count[row]) - 1, n))
                done[row] = is_over or len(answer.tokens) >= self.limit
            token = tokens[rows, count - 1]
            place = torch.where(done, place, place + count)
        return answers

    def look(self, token: torch.Tensor, place: torch.Tensor) -> Round:
        """Draft K tokens behind `token` [B] at slots `place` [B] and let the target read them."""
        drafted, logprob, last = [token], [torch.zeros(token.shape[0])], token
        for step in range(K):
            logits = self.draft.extend(last[:, None], place + step)[:, 0]
            best, last = logits.max(-1)
            drafted.append(last)
            logprob.append(best - logits.logsumexp(-1))
        self.draft.extend(last[:, None], place + K)  # its key and value, in case all K are accepted
        chain = torch.stack(drafted, 1)
        logits = self.target.extend(chain, place)
        return Round(chain, logits, torch.stack(logprob, 1), torch.stack(self.target.mass, 2), self.target.states)

    def similarity(self, states: torch.Tensor, top_n: int = 10) -> torch.Tensor:
        """The paper's relevance of `states` [B, D, H] -> float32 [B, D]."""
        batch, longest = self.target.is_visual.shape[0], self.target.visual_states.shape[1]
        slots = torch.arange(batch * longest, dtype=torch.int32).view(batch, longest)
        return visual_similarity(
            states.flatten(0, 1),
            self.target.visual_states.flatten(0, 1),
            slots,
            torch.arange(batch),
            torch.full((batch,), longest),
            self.target.is_visual[:, :longest].flatten(),
            top_n,
        ).view(batch, -1)


def gap_of(logits: torch.Tensor, tokens: torch.Tensor) -> torch.Tensor:
    """log p(choice) - log p(token): logits [n, V], tokens [n] -> [n]."""
    return logits.max(-1).values - logits.gather(-1, tokens[:, None])[:, 0]


def load(pair: Path) -> tuple[ProbedRunner, Runner]:
    """Both models of `pair`."""
    return ProbedRunner(pair / "target"), Runner(pair / "draft")
