"""The acceptance rule of `relax` told token by token, and rounds to try it on.

Shares no code and no constant with the package: what is wrong there is not wrong here for the same reason.
"""

from __future__ import annotations

import ctypes
import math
from dataclasses import dataclass
from typing import NamedTuple

import torch

from lvspec_kernels import Relaxed, RuleRows, StateRows

MATCH, FILLER, SHIFT, BONUS, PADDING = 0, 1, 2, 3, -1
LARGEST_TOKEN_ID = 152_063  # of Qwen2.5-VL's padded vocabulary


class Round(NamedTuple):
    """A verified round as `relax` takes it, [B, D] each."""

    draft_token: torch.Tensor
    choice: torch.Tensor
    care: torch.Tensor
    logprob: torch.Tensor
    is_allowed: torch.Tensor


@dataclass
class Setup:
    """All that one call of `relax` needs."""

    round: Round
    rows: torch.Tensor
    rules: RuleRows
    state: StateRows
    edges: torch.Tensor

    def to(self, device: str) -> Setup:
        """A copy, for a call that changes its state."""

        def moved(parts: tuple[torch.Tensor, ...]) -> list[torch.Tensor]:
            return [part.to(device, copy=True) for part in parts]

        rows, edges = moved((self.rows, self.edges))
        return Setup(
            Round(*moved(self.round)), rows, RuleRows(*moved(self.rules)), StateRows(*moved(self.state)), edges
        )

    def arguments(self) -> tuple[object, ...]:
        return (*self.round, self.rows, self.rules, self.state, self.edges)


class Chain(NamedTuple):
    """A row's part of a round."""

    draft: list[int]
    choice: list[int]
    care: list[float]
    logprob: list[float]
    is_allowed: list[bool]


class Rule(NamedTuple):
    """A row of RuleRows."""

    relaxation: float
    log_floor: float
    window: int
    shift: int
    max_share: float
    max_run: int
    max_care: float


class State(NamedTuple):
    """A row of StateRows."""

    counts: list[float]
    tokens: int
    loosened: int


def rule(setup: Setup) -> tuple[Relaxed, StateRows]:
    """What a round commits and the state after it, row by row; the setup is left unchanged."""
    num_requests, width = setup.round.draft_token.shape
    predict = [0] * (num_requests * width)
    accept_lens = []
    accept_index = [[-1] * width for _ in range(num_requests)]
    label = [[PADDING] * width for _ in range(num_requests)]
    state = StateRows(*(part.clone() for part in setup.state))
    for request, row in enumerate(setup.rows.tolist()):
        tokens, labels, after = rule_of_row(
            Chain(*(part[request].tolist() for part in setup.round)),
            Rule(*(part[row].item() for part in setup.rules)),
            State(setup.state.counts[row].tolist(), int(setup.state.tokens[row]), int(setup.state.loosened[row])),
            setup.edges.tolist(),
        )
        accept_lens.append(len(tokens))
        for node, token in enumerate(tokens):
            predict[request * width + node] = token
            accept_index[request][node] = request * width + node
            label[request][node] = labels[node]
        for table, value in zip(state, after, strict=True):
            table[row] = torch.tensor(value)
    return (
        Relaxed(
            torch.tensor(predict, dtype=torch.int32),
            torch.tensor(accept_lens, dtype=torch.int32),
            torch.tensor(accept_index, dtype=torch.int32).reshape(num_requests, width),
            torch.tensor(label, dtype=torch.int8).reshape(num_requests, width),
        ),
        state,
    )


def rule_of_row(chain: Chain, rule: Rule, state: State, edges: list[float]) -> tuple[list[int], list[int], State]:
    """The tokens that a request commits, what each is, and what the request has shown then."""
    threshold = min(rule.max_care, quantile(state.counts, edges, rule.relaxation))
    counts, loosened, run = list(state.counts), state.loosened, 0
    tokens: list[int] = []
    labels: list[int] = []
    for at in range(1, len(chain.draft)):
        if chain.draft[at] == chain.choice[at - 1]:
            label, run = MATCH, 0
        else:
            if not math.isnan(chain.care[at]):
                counts[bin_of(chain.care[at], edges)] += 1
            share = float32(rule.max_share * max(state.tokens + at, 32))
            if not chain.is_allowed[at] or loosened + 1 > share or run + 1 > rule.max_run:
                break
            if chain.care[at] < threshold and -math.inf < chain.logprob[at] and rule.log_floor <= chain.logprob[at]:
                label = FILLER
            elif rule.relaxation > 0 and is_shifted(chain, at, rule):
                label = SHIFT
            else:
                break
            loosened, run = loosened + 1, run + 1
        tokens.append(chain.draft[at])
        labels.append(label)
    tokens.append(chain.choice[len(tokens)])
    return tokens, [*labels, BONUS], State(counts, state.tokens + len(tokens), loosened)


def is_shifted(chain: Chain, at: int, rule: Rule) -> bool:
    """Whether the word of draft `at` stands a few positions apart; position p is drafted at p and wanted at p - 1."""
    for position in range(1, len(chain.draft) + 1):
        if abs(position - at) > rule.window:
            continue
        if rule.shift in (1, 3) and position < len(chain.draft) and chain.draft[position] == chain.choice[at - 1]:
            return True
        if rule.shift in (2, 3) and chain.choice[position - 1] == chain.draft[at]:
            return True
    return False


def quantile(counts: list[float], edges: list[float], relaxation: float) -> float:
    """The care that a share of `relaxation` of the counted mismatches lies below, every operation in float32."""
    total = sum(counts)
    if relaxation <= 0 or total < 8:
        return -math.inf
    if relaxation >= 1:
        return math.inf
    wanted, upto = float32(relaxation * total), 0.0
    for count, low, high in zip(counts, edges, edges[1:], strict=False):
        if upto + count >= wanted:
            part = float32((wanted - upto) / count)
            return min(high, float32(low + float32(float32(high - low) * part)))
        upto += count
    raise AssertionError("a share below 1 of the counts is reached")


def bin_of(care: float, edges: list[float]) -> int:
    """The last bin that begins at or below `care`; the first if none does."""
    last = 0
    for each, begin in enumerate(edges[:-1]):
        if begin <= care:
            last = each
    return last


def float32(value: float) -> float:
    """The float32 next to a result of one double operation on float32 numbers, which is what float32 itself gives."""
    return ctypes.c_float(value).value


def assert_same(actual: Relaxed, state: StateRows, expected: Relaxed, expected_state: StateRows) -> None:
    """Every output and every row of state, exactly."""
    ours = {**actual._asdict(), **state._asdict()}
    theirs = {**expected._asdict(), **expected_state._asdict()}
    assert ours.keys() == theirs.keys()
    for name, tensor in ours.items():
        assert tensor.dtype == theirs[name].dtype, f"{name} is {tensor.dtype}"
        assert tensor.shape == theirs[name].shape, f"{name} has shape {tuple(tensor.shape)}"
        assert torch.equal(tensor.cpu(), theirs[name]), f"{name}: {tensor.tolist()} is not {theirs[name].tolist()}"


def random_setup(num_requests: int, width: int, num_bins: int = 32, seed: int = 0) -> Setup:
    """A round whose rows differ in everything, in scattered rows of larger tables; many a number sits on its bound."""
    rng = torch.Generator().manual_seed(seed * 1_000_003 + num_requests * 1009 + width * 97 + num_bins)

    def among(values: list[float], *shape: int) -> torch.Tensor:
        return torch.tensor(values)[torch.randint(0, len(values), shape, generator=rng)]

    num_rows = num_requests + 3
    rows = torch.randperm(num_rows, generator=rng)[:num_requests]
    edges = torch.rand(num_bins + 1, generator=rng).sort().values
    rules = RuleRows(
        among([0.0, 0.25, 0.3, 0.5, 0.7, 0.9, 1.0], num_rows),
        among([-math.inf, -3.0, -1.0], num_rows),
        among([0, 1, 2, 3, 20], num_rows).to(torch.int32),
        among([0, 1, 2, 3, 3], num_rows).to(torch.int32),
        among([0.0, 1 / 32, 0.1, 0.25, 1.0, 1.0, 1.0], num_rows),
        among([0, 1, 2, 4, 2**31 - 1, 2**31 - 1], num_rows).to(torch.int32),
        among([math.inf, math.inf, math.inf, 0.6, 0.2, -math.inf], num_rows),
    )
    counts = among([0.0, 0.0, 1.0, 5.0], num_rows, num_bins)
    counts[:, 0] += among([0.0, 6.0, 7.0, 8.0, 30.0], num_rows)
    tokens = among([1, 5, 20, 30, 31, 32, 400], num_rows).to(torch.int32)
    bound = (rules.max_share * tokens.clamp_min(32)).to(torch.int32)
    loosened = (bound - among([0, 1, 2, 6, 6, 6], num_rows).to(torch.int32)).clamp_min(0)
    state = StateRows(counts, tokens, loosened)

    # Few tokens, so that words recur nearby; match rates from none to nearly all, so that prefixes get long.
    draft = LARGEST_TOKEN_ID - torch.randint(0, 6, (num_requests, width), generator=rng)
    choice = draft.roll(-1, dims=1)
    is_other = torch.rand(num_requests, width, generator=rng) < among([0.1, 0.4, 0.8, 1.0], num_requests, 1)
    choice = torch.where(is_other, LARGEST_TOKEN_ID - torch.randint(0, 8, choice.shape, generator=rng), choice)
    care = torch.rand(num_requests, width, generator=rng) * among([0.2, 0.6, 1.2], num_requests, 1)
    thresholds = [quantile(counts[row].tolist(), edges.tolist(), rules.relaxation[row].item()) for row in rows.tolist()]
    at_bound = torch.tensor(thresholds)[:, None].expand_as(care) if num_requests else care
    care = _with(care, at_bound, rng)
    care = _with(care, rules.max_care[rows][:, None].expand_as(care), rng)
    care = _with(care, edges[torch.randint(0, num_bins + 1, care.shape, generator=rng)], rng)
    care = _with(care, among([math.nan, math.inf, -math.inf, -0.5, 1.5], *care.shape), rng)
    logprob = -6 * torch.rand(num_requests, width, generator=rng) * among([0.0, 0.3, 1.0], num_requests, 1)
    logprob = _with(logprob, rules.log_floor[rows][:, None].expand_as(logprob), rng)
    logprob = _with(logprob, among([-math.inf, math.nan], *logprob.shape), rng)
    is_allowed = torch.rand(num_requests, width, generator=rng) < 0.9
    return Setup(Round(draft, choice, care, logprob, is_allowed), rows, rules, state, edges)


def _with(values: torch.Tensor, others: torch.Tensor, rng: torch.Generator) -> torch.Tensor:
    """Values of which one in fourteen is another."""
    return torch.where(torch.rand(values.shape, generator=rng) < 1 / 14, others, values)
