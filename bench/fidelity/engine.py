"""Runs one batch of questions under many acceptance rules: prefill once, then a chain speculation per rule.

Offline and batched, over the weights of the demo pair (`demo.runner`), because forty arms over a thousand clips would
keep a CPU server busy for days. What it decides with is the server's own: see `server_rule`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import torch

from demo.runner import Runner
from lvspec_kernels import visual_similarity

K = 10  # drafted tokens a round
LIMIT = 200  # tokens an answer has at most
TIE = 1e-4  # nats; below it, which of two tokens is likelier depends on the shape of a matrix product
_NARROW_AT = 0.75  # share of live rows at which they are moved together; moving costs about one verify forward


@dataclass
class Round:
    """What one verify forward shows, for B rows; D = K + 1 nodes, node 0 is the last committed token.

    Attributes:
        rows: int64 [B], places of the rows in the exam.
        is_live: bool [B], whether their answers go on; what is decided about others is thrown away.
        draft_token: int64 [B, D].
        logits: float32 [B, D, V], the target's after each node.
        draft_logprob: float32 [B, D], the draft's log-probability of each drafted token (node 0: 0).
        mass: float32 [B, D, layers, heads], share of the node's attention on visual tokens.
        states: float32 [B, D, hidden], last-layer states after the final norm.
        choice: int64 [B, D], the target's token after each node.
    """

    rows: torch.Tensor
    is_live: torch.Tensor
    draft_token: torch.Tensor
    logits: torch.Tensor
    draft_logprob: torch.Tensor
    mass: torch.Tensor
    states: torch.Tensor
    choice: torch.Tensor


@dataclass
class Transcript:
    """One answer under one rule."""

    tokens: list[int] = field(default_factory=list)  # with the end token, if it came
    labels: list[int] = field(default_factory=list)  # of the tokens: 0 match, 1 filler, 2 shift, 3 the target's own
    gaps: list[float] = field(default_factory=list)  # log p(target's choice) - log p(token)
    others: int = 0  # tokens that were not the target's choice given what stood before them
    accepted: list[int] = field(default_factory=list)  # draft tokens accepted, per round
    rejected: int = 0  # rounds that a mismatch ended
    margins: list[float] = field(default_factory=list)  # of `alone`: how far each token leads the next likely one


# Decides a round: labels [B, D] of the token committed after each node (-1: none), and tokens int64 [B, D].
Decide = Callable[[Round], tuple[torch.Tensor, torch.Tensor]]


class NarrowRunner(Runner):
    """A runner that can forget rows of its batch, and remember them again."""

    by_row: tuple[str, ...] = ("keys", "values", "cos", "sin")  # attributes, tensors or lists of them, [rows, ...]

    def narrow(self, rows: torch.Tensor) -> None:
        """Keep `rows` of the present ones."""
        for name in self.by_row:
            part = getattr(self, name)
            setattr(self, name, [each[rows] for each in part] if isinstance(part, list) else part[rows])

    @contextmanager
    def all_rows_after(self) -> Iterator[None]:
        """Whatever is narrowed inside is whole again behind it."""
        kept = {name: getattr(self, name) for name in self.by_row}
        yield
        for name, part in kept.items():
            setattr(self, name, part)


class ProbedRunner(NarrowRunner):
    """A runner that keeps the attention mass on visual tokens and the final states of its last forward."""

    by_row = (*NarrowRunner.by_row, "is_visual", "visual_states")

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
        is_visual = self.is_visual[:, : weights.shape[-1]].to(weights.dtype)
        self.mass.append((weights @ is_visual[:, None, :, None])[..., 0].transpose(1, 2))

    def similarity(self, states: torch.Tensor, top_n: int = 10) -> torch.Tensor:
        """The paper's relevance of `states` [B, n, H] -> float32 [B, n]."""
        batch, longest = self.visual_states.shape[:2]
        return visual_similarity(
            states.flatten(0, 1),
            self.visual_states.flatten(0, 1),
            torch.arange(batch * longest, dtype=torch.int32).view(batch, longest),
            torch.arange(batch),
            torch.full((batch,), longest),
            self.is_visual[:, :longest].flatten(),
            top_n,
        ).view(batch, -1)


Pair = tuple[ProbedRunner, NarrowRunner]


@dataclass
class Exam:
    """A batch of prompts that both models have read; every run starts from there."""

    target: ProbedRunner
    draft: NarrowRunner
    first: torch.Tensor  # int64 [B], the target's first tokens
    limit: int = LIMIT

    @classmethod
    def of(cls, pair: Pair, prompts: list[list[int]], patches: torch.Tensor, limit: int = LIMIT) -> Exam:
        """Prefill both models with `prompts`, each about one clip of `patches`."""
        target, draft = pair
        first = target.prefill(prompts, patches, len(prompts)).argmax(-1)
        draft.prefill(prompts, patches, len(prompts))
        return cls(target, draft, first, limit)

    def __len__(self) -> int:
        return len(self.first)

    @torch.no_grad()
    def alone(self) -> list[Transcript]:
        """The target's own greedy answers, token by token."""
        answers = self._begin()
        with self.target.all_rows_after():
            walk = _Walk(self, (self.target,))
            while len(walk.rows):
                logits = self.target.extend(walk.token[:, None], walk.place)[:, 0]
                token = logits.argmax(-1)
                best = logits.topk(2).values
                margin = best[:, 0] - best[:, 1]
                live = walk.is_live
                parts = (walk.rows[live].tolist(), token[live].tolist(), margin[live].tolist())
                for row, each, lead in zip(*parts, strict=True):
                    answers[row].tokens.append(each)
                    answers[row].labels.append(3)
                    answers[row].gaps.append(0.0)
                    answers[row].margins.append(lead)
                walk.advance(answers, token, torch.ones_like(token))
        return answers

    @torch.no_grad()
    def run(self, decide: Decide, on_round: Callable[[Round], None] | None = None) -> list[Transcript]:
        """Answer every prompt with chains verified by `decide`; writes of earlier runs are overwritten."""
        answers = self._begin()
        with self.target.all_rows_after(), self.draft.all_rows_after():
            walk = _Walk(self, (self.target, self.draft))
            while len(walk.rows):
                seen = self._look(walk)
                if on_round is not None:
                    on_round(seen)
                labels, tokens = decide(seen)
                count = (labels >= 0).sum(1)
                self._note(answers, seen, labels, tokens)
                walk.advance(answers, tokens.gather(1, count[:, None] - 1)[:, 0], count)
        return answers

    def _begin(self) -> list[Transcript]:
        return [Transcript([token], [3], [0.0], margins=[torch.inf]) for token in self.first.tolist()]

    def _look(self, walk: _Walk) -> Round:
        """Draft K tokens behind each row's last and let the target read them."""
        drafted, logprob, last = [walk.token], [torch.zeros(len(walk.token))], walk.token
        for step in range(K):
            logits = self.draft.extend(last[:, None], walk.place + step)[:, 0]
            best, last = logits.max(-1)
            drafted.append(last)
            logprob.append(best - logits.logsumexp(-1))
        self.draft.extend(last[:, None], walk.place + K)  # its key and value, in case all K are accepted
        chain = torch.stack(drafted, 1)
        logits = self.target.extend(chain, walk.place)
        mass = torch.stack(self.target.mass, 2)
        return Round(
            walk.rows,
            walk.is_live,
            chain,
            logits,
            torch.stack(logprob, 1),
            mass,
            self.target.states,
            logits.argmax(-1),
        )

    def _note(self, answers: list[Transcript], seen: Round, labels: torch.Tensor, tokens: torch.Tensor) -> None:
        """Add what the rows of a round committed; nothing after the end or the limit counts."""
        eos = self.target.vocabulary.eos
        tokens = torch.where(labels >= 0, tokens, -1)
        gaps = seen.logits.amax(-1) - seen.logits.gather(-1, tokens.clamp_min(0)[..., None])[..., 0]
        is_other = (tokens != seen.choice).tolist()
        columns = zip(seen.rows.tolist(), tokens.tolist(), labels.tolist(), gaps.tolist(), is_other, strict=True)
        for live, (row, token, label, gap, other) in zip(seen.is_live.tolist(), columns, strict=True):
            if not live:
                continue
            answer, drafts = answers[row], sum(each >= 0 for each in label) - 1
            n = min(drafts + 1, self.limit - len(answer.tokens))
            # The end itself may be a drafted token.
            n = token.index(eos, 0, n) + 1 if eos in token[:n] else n
            answer.tokens += token[:n]
            answer.labels += label[:n]
            answer.gaps += gap[:n]
            answer.others += sum(other[:n])
            answer.accepted.append(min(drafts, n))
            answer.rejected += drafts < K and n == drafts + 1


class _Walk:
    """The rows of an exam that are still in the batch, and where each stands."""

    def __init__(self, exam: Exam, runners: tuple[NarrowRunner, ...]) -> None:
        self._exam, self._runners = exam, runners
        self.rows = torch.arange(len(exam))
        self.token, self.place = exam.first.clone(), exam.target.lengths.clone()
        self.is_live = exam.first != exam.target.vocabulary.eos
        self._narrow()

    def advance(self, answers: list[Transcript], token: torch.Tensor, count: torch.Tensor) -> None:
        """Move each live row by `count` committed tokens, the last of which is `token`; see which are finished."""
        # A finished row stands still, so that its slots never run out.
        self.token, self.place = token, self.place + torch.where(self.is_live, count, 0)
        eos, limit = self._exam.target.vocabulary.eos, self._exam.limit
        ended = [answers[row].tokens[-1] == eos or len(answers[row].tokens) >= limit for row in self.rows.tolist()]
        self.is_live = self.is_live & ~torch.tensor(ended)
        self._narrow()

    def _narrow(self) -> None:
        live = torch.nonzero(self.is_live)[:, 0]
        if len(live) and len(live) > _NARROW_AT * len(self.rows):
            return
        self.rows, self.token, self.place = self.rows[live], self.token[live], self.place[live]
        self.is_live = self.is_live[live]
        if len(live):
            for runner in self._runners:
                runner.narrow(live)


def load(pair: Path) -> Pair:
    """Both models of `pair`."""
    return ProbedRunner(pair / "target"), NarrowRunner(pair / "draft")
