"""`draw_choice` draws at every node what the target alone would: SGLang's parameters, row by row."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from sglang.srt.layers.logits_processor import LogitsProcessorOutput
from sglang.srt.layers.sampler import Sampler
from sglang.srt.sampling.sampling_batch_info import SamplingBatchInfo
from sglang.srt.sampling.sampling_params import SamplingParams

from sgl_lvspec.verification.choice import draw_choice
from tests.sgl_lvspec.verification.sampling import FALSE_ALARM, defined_distribution, make_info, p_value

V = 8
WIDTH = 3
NUM_DRAWS = 4000  # a token of probability .03 missing, or one of .003 too many, is seen
GREEDY = {"temperature": 0.0}

# A batch a line; SGLang's sampler has a path of its own for each.
BATCHES: dict[str, list[dict[str, Any]]] = {
    "temperature-only": [{"temperature": 0.6}, {"temperature": 1.0}, {"temperature": 2.5}],
    "top-k-in-every-row": [{"top_k": 2}, {"top_k": 5, "temperature": 1.7}, {"top_k": 3, "temperature": 0.8}],
    "top-p": [{"top_p": 0.5}, {"top_p": 0.9, "temperature": 1.5}, {}],
    "min-p": [{"min_p": 0.3}, {"min_p": 0.05, "temperature": 1.5}, {}],
    "top-k-before-top-p": [{"top_k": 2, "top_p": 0.6}, {"top_k": 3, "top_p": 0.8, "temperature": 1.3}],
    "everything": [{"top_k": 5, "top_p": 0.9, "min_p": 0.1, "temperature": 1.4}, {"min_p": 0.2}, {"top_k": 4}],
    "beside-greedy": [GREEDY, {"temperature": 0.9}, {"top_k": 1}, {"top_p": 0.8, "temperature": 2.0}],
}


@pytest.fixture
def rng() -> torch.Generator:
    return torch.Generator().manual_seed(3)


@pytest.fixture(autouse=True)
def _seed_of_the_draws() -> None:
    torch.manual_seed(5)


def positions_of(num_requests: int) -> torch.Tensor:
    return (torch.arange(num_requests)[:, None] * 100 + torch.arange(WIDTH)).flatten()


def repeat_rows(info_params: list[dict[str, Any]], logits: torch.Tensor) -> tuple[SamplingBatchInfo, torch.Tensor]:
    """NUM_DRAWS requests of each kind with the same logits [kinds, WIDTH, V], kind by kind."""
    params = [row for row in info_params for _ in range(NUM_DRAWS)]
    return make_info(params, V), logits.repeat_interleave(NUM_DRAWS, dim=0).flatten(0, 1)


@pytest.mark.parametrize("name", BATCHES)
def test_every_node_is_drawn_from_the_distribution_that_its_request_asks_for(name: str, rng: torch.Generator) -> None:
    kinds = BATCHES[name]
    logits = torch.randn(len(kinds), WIDTH, V, generator=rng)
    info, many = repeat_rows(kinds, logits)
    choice = draw_choice(many, info, positions_of(many.shape[0] // WIDTH)).view(len(kinds), NUM_DRAWS, WIDTH)
    assert choice.dtype == torch.int64
    for kind, params in enumerate(kinds):
        for node in range(WIDTH):
            counts = choice[kind, :, node].bincount(minlength=V)
            if params in (GREEDY, {"top_k": 1}):
                assert counts[logits[kind, node].argmax()] == NUM_DRAWS
                continue
            probs = defined_distribution(logits[kind, node], SamplingParams(**params))
            assert p_value(counts, probs) > FALSE_ALARM, f"{params} at node {node}: {counts} is not {probs}"


def test_a_wrong_distribution_would_be_noticed(rng: torch.Generator) -> None:
    """The comparison tells neighbouring settings apart, so passing it means something."""
    logits = torch.randn(1, WIDTH, V, generator=rng)
    for asked, other in (
        ({"temperature": 1.0}, {"temperature": 1.15}),
        ({"top_k": 3}, {"top_k": 4}),
        ({"top_p": 0.6}, {"top_p": 0.9}),
        ({"min_p": 0.3}, {"min_p": 0.1}),
    ):
        info, many = repeat_rows([asked], logits)
        counts = draw_choice(many, info, positions_of(NUM_DRAWS))[:, 0].bincount(minlength=V)
        assert p_value(counts, defined_distribution(logits[0, 0], SamplingParams(**other))) < FALSE_ALARM


def test_nodes_of_one_request_are_drawn_independently(rng: torch.Generator) -> None:
    """Equal logits at two nodes: the pair of draws has the product distribution."""
    logits = torch.randn(1, 1, V, generator=rng).expand(1, WIDTH, V)
    info, many = repeat_rows([{"temperature": 1.0}], logits)
    choice = draw_choice(many, info, positions_of(NUM_DRAWS))
    probs = defined_distribution(logits[0, 0], SamplingParams())
    pairs = (choice[:, 0] * V + choice[:, 1]).bincount(minlength=V * V)
    assert p_value(pairs, (probs[:, None] * probs).flatten()) > FALSE_ALARM


@pytest.mark.parametrize("others", [[], [{"temperature": 1.0}]], ids=["all-greedy", "beside-a-sampled-row"])
def test_ties_of_a_greedy_row_are_settled_as_argmax_does(others: list[dict[str, Any]]) -> None:
    logits = torch.zeros((1 + len(others)) * WIDTH, 1000)
    logits[:, 400:] = 1.0
    choice = draw_choice(logits, make_info([GREEDY, *others], 1000), positions_of(1 + len(others)))
    assert choice[0].tolist() == logits[:WIDTH].argmax(dim=-1).tolist()


def test_each_request_keeps_its_own_parameters_at_all_its_nodes(rng: torch.Generator) -> None:
    """Rows that leave one token alternate with rows that leave all of them."""
    logits = torch.randn(40 * WIDTH, V, generator=rng) * 0.1
    narrow, wide = {"top_p": 1e-6}, {"temperature": 100.0}
    choice = draw_choice(logits, make_info([narrow, wide] * 20, V), positions_of(40))
    is_argmax = choice == logits.argmax(dim=-1).view(40, WIDTH)
    assert is_argmax[::2].all()
    assert is_argmax[1::2].float().mean() < 0.5


@pytest.mark.parametrize("name", BATCHES)
def test_the_logits_and_the_parameters_are_left_unchanged(name: str, rng: torch.Generator) -> None:
    info = make_info(BATCHES[name], V)
    logits = torch.randn(len(BATCHES[name]) * WIDTH, V, generator=rng)
    tensors = [logits, info.temperatures, info.top_ks, info.top_ps, info.min_ps]
    before = [tensor.clone() for tensor in tensors]
    draw_choice(logits, info, positions_of(len(BATCHES[name])))
    assert all(torch.equal(ours, theirs) for ours, theirs in zip(tensors, before, strict=True))


# SGLang refuses min-p with a seed (srt/layers/sampler.py: assertion on sampling_seed).
@pytest.mark.parametrize("name", [name for name in BATCHES if name not in ("min-p", "everything")])
@pytest.mark.usefixtures("seeded")
def test_a_seeded_draw_is_the_one_that_sglang_makes_without_speculation(name: str, rng: torch.Generator) -> None:
    params = [{**row, "sampling_seed": seed} for seed, row in enumerate(BATCHES[name] * 20, start=-30)]
    info = make_info(params, V)
    logits = torch.randn(len(params), WIDTH, V, generator=rng)
    positions = positions_of(len(params))
    choice = draw_choice(logits.flatten(0, 1), info, positions)
    for node in range(WIDTH):
        alone = sglang_sampler().forward(
            LogitsProcessorOutput(next_token_logits=logits[:, node].clone()),
            info,
            return_logprob=False,
            top_logprobs_nums=[0] * len(params),
            token_ids_logprobs=[[]] * len(params),
            positions=positions.view(-1, WIDTH)[:, node],
        )
        assert choice[:, node].tolist() == alone.tolist(), f"node {node}"
    assert len(set(choice.flatten().tolist())) > 2, "the draws must not be trivial"


@pytest.mark.usefixtures("seeded")
def test_a_seeded_draw_changes_with_the_position_and_with_the_seed() -> None:
    info = make_info([{"sampling_seed": 1}] * 50 + [{"sampling_seed": 2}] * 50, V)
    logits = torch.zeros(100 * WIDTH, V)
    choice = draw_choice(logits, info, torch.arange(50 * WIDTH).repeat(2)).view(2, -1)
    assert (choice[0] == choice[1]).float().mean() < 0.4
    assert choice[0].unique().numel() == V


def sglang_sampler() -> Sampler:
    """SGLang's sampler without the process groups that its constructor looks up."""
    sampler = Sampler.__new__(Sampler)
    torch.nn.Module.__init__(sampler)
    sampler.rl_on_policy_target = None
    sampler.enable_deterministic = True
    sampler.use_log_softmax_logprob = False
    sampler.use_ascend_backend = False
    return sampler


@pytest.mark.parametrize("kinds", [[{"temperature": 0.9}, GREEDY, {}], [{"top_p": 0.8}, GREEDY, {"min_p": 0.1}]])
@pytest.mark.parametrize("forbidden", [0, 1, 2])
def test_a_row_that_a_grammar_forbids_altogether_ends_nobodys_draws(
    kinds: list[dict[str, Any]], forbidden: int, rng: torch.Generator
) -> None:
    logits = torch.randn(3, WIDTH, V, generator=rng)
    logits[forbidden, 1] = -torch.inf
    logits[forbidden, 2, 4] = torch.nan
    logits[:, 0, 3] = 1e4
    choice = draw_choice(logits.flatten(0, 1), make_info(kinds, V), positions_of(3))
    assert choice[:, 0].tolist() == [3, 3, 3], "what has a distribution is drawn from it"
    assert ((choice >= 0) & (choice < V)).all()
    assert choice[forbidden, 1:].tolist() == logits[forbidden, 1:].argmax(-1).tolist()
