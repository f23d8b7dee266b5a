"""Strict mode at temperature > 0: many rounds of draft and verify emit the sequences that the target alone would.

The target is a Markov chain over five tokens, so the probability of every sequence is known; the draft is
deterministic and often wrong, as a greedy draft is.
"""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch
from sglang.srt.model_executor.forward_batch_info import ForwardMode
from sglang.srt.sampling.sampling_params import SamplingParams

from lvspec_kernels import accept_chain
from sgl_lvspec.verification.commit import Commit, after_eagle_sample
from tests.sgl_lvspec.verification.sampling import FALSE_ALARM, Batch, Request, defined_distribution, p_value

V = 5
NUM_TOKENS = 3  # of each sequence that are compared: 125 outcomes
WIDTH = 4
FIRST = 0  # the last prompt token of every request
NUM_SEQUENCES = 6000  # of each kind; a shift of .01 in a common sequence is seen

KINDS: dict[str, dict[str, Any]] = {
    "temperature-1": {},
    "cold-with-top-p": {"temperature": 0.7, "top_p": 0.9},
    "hot-with-top-k": {"temperature": 1.6, "top_k": 3},
    "min-p": {"min_p": 0.25},
    "one-token-a-round-at-first": {"min_new_tokens": 2},
}


def target_logits() -> torch.Tensor:
    """Logits of the next token after each token, [V, V]."""
    return torch.randn(V, V, generator=torch.Generator().manual_seed(1)) * 1.2


def draft_chain(tokens: torch.Tensor) -> torch.Tensor:
    """Node 0 and K drafts of a model that agrees with the target about half of the time: [B] -> [B, WIDTH]."""
    noise = torch.randn(V, V, generator=torch.Generator().manual_seed(2)) * 1.2
    next_token = (target_logits() + noise).argmax(dim=-1)
    chain = [tokens]
    for _ in range(WIDTH - 1):
        chain.append(next_token[chain[-1]])
    return torch.stack(chain, dim=1)


def generate(requests: list[Request], use_hook: bool = True) -> tuple[torch.Tensor, float]:
    """Serve the requests until each has NUM_TOKENS tokens: (tokens [B, NUM_TOKENS], mean committed a round)."""
    num_requests = len(requests)
    batch = Batch(requests, V, forward_mode=ForwardMode.DECODE)
    output = torch.zeros(num_requests, NUM_TOKENS + WIDTH, dtype=torch.int64)
    lens = torch.zeros(num_requests, dtype=torch.int64)
    last = torch.full((num_requests,), FIRST)
    rows, committed = torch.arange(num_requests), []
    while int(lens.min()) < NUM_TOKENS:
        draft = draft_chain(last)
        logits = target_logits()[draft.flatten()]
        result = Commit(*accept_chain(draft, logits.argmax(dim=-1).view_as(draft)))
        verify_input = SimpleNamespace(draft_token=draft.flatten(), positions=torch.arange(draft.numel()))
        if use_hook:
            hooked = after_eagle_sample(result, verify_input, batch, SimpleNamespace(next_token_logits=logits))  # type: ignore[arg-type]
            result = hooked or result
        for node in range(WIDTH):  # SGLang reads the tokens of a row at its accept_index
            index = result.accept_index[:, node].long()
            is_kept = (index >= 0) & (lens < NUM_TOKENS)
            output[rows[is_kept], lens[is_kept]] = result.predict[index[is_kept]].long()
            lens += is_kept
            last = torch.where(index >= 0, result.predict[index.clamp(min=0)].long(), last)
        committed.append(result.accept_lens.double().mean())
        for request, tokens, count in zip(requests, output.tolist(), lens.tolist(), strict=True):
            request.output_ids = tokens[:count]
    return output[:, :NUM_TOKENS], float(torch.stack(committed).mean())


def counts_of(tokens: torch.Tensor) -> torch.Tensor:
    """How often each sequence was emitted, [V ** NUM_TOKENS]."""
    code = torch.zeros(len(tokens), dtype=torch.int64)
    for column in tokens.T:
        code = code * V + column
    return code.bincount(minlength=V**NUM_TOKENS)


def sequence_probabilities(params: dict[str, Any]) -> torch.Tensor:
    """Probability of each sequence when the target alone is sampled, [V ** NUM_TOKENS]."""
    after = torch.stack([defined_distribution(row, SamplingParams(**params)) for row in target_logits()])
    probs = after[FIRST]
    for _ in range(NUM_TOKENS - 1):
        probs = (probs.view(-1, V, 1) * after).flatten()
    return probs


@pytest.fixture(autouse=True)
def _seeded() -> None:
    torch.manual_seed(11)


def test_emitted_sequences_have_the_targets_own_distribution() -> None:
    """All kinds are served in one batch."""
    requests = [Request(**params) for params in KINDS.values() for _ in range(NUM_SEQUENCES)]
    tokens, mean_committed = generate(requests)
    assert 1.2 < mean_committed < WIDTH - 1, "drafts must be accepted often, and often not"
    for kind, (name, params) in enumerate(KINDS.items()):
        counts = counts_of(tokens[kind * NUM_SEQUENCES : (kind + 1) * NUM_SEQUENCES])
        assert p_value(counts, sequence_probabilities(params)) > FALSE_ALARM, name


def test_greedy_requests_beside_sampled_ones_emit_the_one_greedy_sequence() -> None:
    requests = [Request(temperature=0.0) if row % 2 else Request() for row in range(20)]
    tokens, _ = generate(requests)
    expected, last = [], FIRST
    for _ in range(NUM_TOKENS):
        last = int(target_logits()[last].argmax())
        expected.append(last)
    assert tokens[1::2].tolist() == [expected] * 10


@pytest.mark.parametrize("name", ["temperature-1", "min-p"])
def test_the_comparison_can_fail(name: str) -> None:
    """SGLang's own CPU verify (argmax at any temperature) and a slightly warmer target are told apart."""
    params = KINDS[name]
    requests = [Request(**params) for _ in range(NUM_SEQUENCES)]
    as_sglang, _ = generate(requests, use_hook=False)
    assert p_value(counts_of(as_sglang), sequence_probabilities(params)) < FALSE_ALARM
    tokens, _ = generate([Request(**params) for _ in range(NUM_SEQUENCES)])
    warmer = sequence_probabilities({**params, "temperature": 1.2})
    assert p_value(counts_of(tokens), warmer) < FALSE_ALARM
