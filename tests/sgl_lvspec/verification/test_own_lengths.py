"""A loose request whose chain ended before its neighbours': it is verified as if nothing had been drafted behind it."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch
from sglang.srt.layers.logits_processor import LogitsProcessorOutput

from sgl_lvspec.verification import commit
from sgl_lvspec.verification.decision import offered
from tests.sgl_lvspec.verification.loose_rounds import ALL, VideoRequest, batch_of, make_rule, random_round

WIDTH, V = 9, 40
ASKS = {**ALL, "relaxation": 0.6, "window": 3, "shift": "both"}


def test_what_is_offered_is_the_root_and_the_first_tokens_of_the_chain() -> None:
    chain = torch.arange(10).view(2, 5)
    assert offered(chain, torch.tensor([2, 4])).tolist() == [[0, 1, 2, -1, -1], [5, 6, 7, 8, 9]]
    assert offered(chain, None) is chain


@pytest.mark.parametrize("sampled", [False, True])
@pytest.mark.parametrize("seed", range(25))
def test_a_shorter_chain_beside_longer_ones_is_decided_as_if_it_were_alone(seed: int, sampled: bool) -> None:
    """Tokens, labels and what the request has shown: the mismatch that nobody drafted is none."""
    rng = torch.Generator().manual_seed(seed)
    round_ = random_round(3, WIDTH, V, seed)
    own = torch.randint(1, WIDTH, (3,), generator=rng)
    relevance = torch.rand(3, WIDTH, generator=rng)
    # Temperature 0.5 and no filter: the choices are given, so the same ones count.
    more: dict[str, Any] = {"temperature": 0.5} if sampled else {}
    requests = [VideoRequest(row, asks=ASKS, **more) for row in (1, 2, 3)]

    def decide(rows: list[int], length: int, lengths: torch.Tensor | None) -> tuple[Any, Any]:
        rule = make_rule(relevance[rows, : length + 1], vocabulary=V, slope=0.02)
        batch = batch_of(*(requests[row] for row in rows), vocabulary=V)
        rule.rows.write(batch)
        draft, choice = (part[rows, : length + 1] for part in (round_.draft, round_.choice))
        logits = round_.logits.view(3, WIDTH, V)[rows, : length + 1].flatten(0, 1)
        draft = offered(draft, lengths)
        if sampled:
            return rule.decide(draft, choice, logits, batch.sampling_info, batch.req_pool_indices), rule.rows.state
        return rule.decide_greedy(draft, logits, batch.req_pool_indices), rule.rows.state

    together, state = decide([0, 1, 2], WIDTH - 1, own)
    for row, length in enumerate(own.tolist()):
        alone, state_alone = decide([row], length, None)
        count = int(alone.relaxed.accept_lens)
        assert int(together.relaxed.accept_lens[row]) == count <= length + 1
        ids, ids_alone = together.relaxed.predict.view(3, WIDTH)[row], alone.relaxed.predict
        assert ids[:count].tolist() == ids_alone[:count].tolist()
        assert together.relaxed.label[row, :count].tolist() == alone.relaxed.label[0, :count].tolist()
        for ours, theirs in zip(state, state_alone, strict=True):
            assert torch.equal(ours[row + 1], theirs[row + 1])


def test_the_hook_reads_what_each_request_is_offered() -> None:
    """All may be loosened, but only two drafts are this request's; the strict one beside it may match all of them."""
    loose, strict = (VideoRequest(row, asks=asks, temperature=0.0) for row, asks in ((1, ALL), (2, {"mode": "strict"})))
    rule = make_rule(vocabulary=V)
    batch = batch_of(loose, strict, vocabulary=V)
    rule.rows.write(batch)
    draft = torch.arange(1, 2 * WIDTH + 1).view(2, WIDTH) % V
    logits = torch.zeros(2 * WIDTH, V)
    logits[torch.arange(WIDTH, 2 * WIDTH - 1), draft[1, 1:]] = (
        5.0  # the target says what was drafted for the strict one
    )
    theirs = commit.Commit(
        torch.cat([torch.zeros(WIDTH), draft[1, 1:], torch.zeros(1)]).int(),
        torch.tensor([1, WIDTH], dtype=torch.int32),
        torch.full((2, WIDTH), -1, dtype=torch.int32),
    )
    verify_input: Any = SimpleNamespace(draft_token=draft.flatten(), positions=torch.arange(2 * WIDTH))
    setattr(verify_input, commit.LOOSE_RULE, rule)
    setattr(verify_input, commit.OWN_LENGTHS, torch.tensor([2, WIDTH - 1]))
    output = LogitsProcessorOutput(next_token_logits=logits)
    found = commit._commit(theirs, verify_input, batch, output)
    assert found is not None
    assert found.accept_lens.tolist() == [3, WIDTH]
    assert found.predict[:2].tolist() == draft[0, 1:3].tolist()
