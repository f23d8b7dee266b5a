"""`accept_chain`: the definition against the rule spelled out in Python, the kernel against the definition.

Three regimes catch distinct bugs: every pair of chains over two tokens (edges of the prefix), random shapes where the
prefix has a given length (widths that are no power of two, batches), ids at the end of a real vocabulary (overflow).
"""

from __future__ import annotations

import doctest
import importlib
import itertools
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from lvspec_kernels import accept_chain
from tests.lvspec_kernels.sglang_walk import sglang_greedy_walk

module = importlib.import_module("lvspec_kernels.accept_chain")

Chains = tuple[torch.Tensor, torch.Tensor, torch.Tensor]
Implementation = Callable[[torch.Tensor, torch.Tensor], Chains]

LARGEST_TOKEN_ID = 152_063  # of Qwen2.5-VL's padded vocabulary
BATCHES = [0, 1, 3, 7, 64]
WIDTHS = [1, 2, 4, 9, 11, 16]


def rule(draft_token: torch.Tensor, choice: torch.Tensor) -> Chains:
    """The longest drafted prefix that the target chose itself, token by token."""
    num_requests, width = draft_token.shape
    predict = [0] * (num_requests * width)
    accept_lens = []
    accept_index = [[-1] * width for _ in range(num_requests)]
    for row in range(num_requests):
        draft, wanted = draft_token[row].tolist(), choice[row].tolist()
        last = 0  # the node after which the target speaks
        while last + 1 < width and draft[last + 1] == wanted[last]:
            last += 1
        accept_lens.append(last + 1)
        for node in range(last + 1):
            predict[row * width + node] = wanted[node]
            accept_index[row][node] = row * width + node
    return (
        torch.tensor(predict, dtype=torch.int32),
        torch.tensor(accept_lens, dtype=torch.int32),
        torch.tensor(accept_index, dtype=torch.int32).reshape(num_requests, width),
    )


def chains(num_requests: int, width: int, largest_id: int = LARGEST_TOKEN_ID) -> tuple[torch.Tensor, torch.Tensor]:
    """Draft and choice whose matching prefixes have every length from none to all; behind it a half of them match."""
    rng = torch.Generator().manual_seed(num_requests * 100 + width)
    draft = torch.randint(0, largest_id + 1, (num_requests, width), generator=rng)
    choice = draft.roll(-1, dims=1)
    choice[:, -1] = torch.randint(0, largest_id + 1, (num_requests,), generator=rng)
    is_other = torch.rand(num_requests, width, generator=rng) < 0.5
    first_other = torch.arange(num_requests)[:, None] % width
    node = torch.arange(width)
    changed = (choice + 1) % (largest_id + 1)
    return draft, torch.where((node == first_other) | ((node > first_other) & is_other), changed, choice)


def all_chains(width: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Every pair of a draft and a choice over a vocabulary of two."""
    rows = list(itertools.product(itertools.product((0, 1), repeat=width), repeat=2))
    pairs = torch.tensor(rows, dtype=torch.int64)
    return pairs[:, 0].contiguous(), pairs[:, 1].contiguous()


def assert_same(actual: Chains, expected: Chains) -> None:
    for name, ours, theirs in zip(("predict", "accept_lens", "accept_index"), actual, expected, strict=True):
        assert ours.dtype == theirs.dtype == torch.int32, f"{name} is {ours.dtype}"
        assert ours.shape == theirs.shape, f"{name} has shape {tuple(ours.shape)}"
        assert torch.equal(ours.cpu(), theirs.cpu()), f"{name}: {ours.tolist()} is not {theirs.tolist()}"


@pytest.fixture(params=["torch", "triton"])
def implementation(request: pytest.FixtureRequest) -> Implementation:
    return {"torch": module.accept_chain_torch, "triton": module.accept_chain_triton}[request.param]


@pytest.mark.parametrize("width", WIDTHS, ids="D{}".format)
@pytest.mark.parametrize("num_requests", BATCHES, ids="B{}".format)
@pytest.mark.usefixtures("garbage_in_new_memory")
def test_every_shape_follows_the_rule(
    implementation: Implementation, num_requests: int, width: int, device: str
) -> None:
    draft, choice = chains(num_requests, width)
    assert_same(implementation(draft.to(device), choice.to(device)), rule(draft, choice))


@pytest.mark.parametrize("width", [1, 2, 3, 4], ids="D{}".format)
@pytest.mark.usefixtures("garbage_in_new_memory")
def test_every_pair_of_chains_over_two_tokens_follows_the_rule(
    implementation: Implementation, width: int, device: str
) -> None:
    draft, choice = all_chains(width)
    assert_same(implementation(draft.to(device), choice.to(device)), rule(draft, choice))


@pytest.mark.usefixtures("garbage_in_new_memory")
def test_columns_of_a_larger_tensor_are_read_by_their_strides(implementation: Implementation, device: str) -> None:
    draft, choice = (ids.to(device) for ids in chains(7, 9))
    wide = torch.full((7, 18), -5, dtype=torch.int64, device=device)
    wide[:, ::2] = draft
    transposed = choice.t().contiguous().t()
    assert not wide[:, ::2].is_contiguous()
    assert not transposed.is_contiguous()
    assert_same(implementation(wide[:, ::2], transposed), rule(draft, choice))


def test_a_chain_of_the_largest_ids_is_compared_and_returned_whole(implementation: Implementation, device: str) -> None:
    draft = torch.arange(LARGEST_TOKEN_ID - 10, LARGEST_TOKEN_ID + 1)[None].to(device)
    choice = torch.cat([draft[:, 1:], draft[:, :1]], dim=1)
    predict, accept_lens, _ = implementation(draft, choice)
    assert predict.tolist() == choice[0].tolist()
    assert accept_lens.tolist() == [11]


def test_ids_that_agree_in_their_low_bits_only_are_different_tokens(
    implementation: Implementation, device: str
) -> None:
    draft = torch.tensor([[0, 5 + (1 << 32)]], device=device)
    assert implementation(draft, torch.tensor([[5, 6]], device=device))[1].tolist() == [1]


def test_without_drafts_the_round_is_one_token_of_the_target(implementation: Implementation, device: str) -> None:
    predict, accept_lens, accept_index = implementation(
        torch.tensor([[3], [4]], device=device), torch.tensor([[8], [9]], device=device)
    )
    assert predict.tolist() == [8, 9]
    assert accept_lens.tolist() == [1, 1]
    assert accept_index.tolist() == [[0], [1]]


def test_a_match_behind_a_miss_is_not_accepted(implementation: Implementation, device: str) -> None:
    draft = torch.tensor([[0, 1, 2, 3]], device=device)
    predict, accept_lens, accept_index = implementation(draft, torch.tensor([[1, 7, 3, 4]], device=device))
    assert predict.tolist() == [1, 7, 0, 0]
    assert accept_lens.tolist() == [2]
    assert accept_index.tolist() == [[0, 1, -1, -1]]


def test_the_inputs_are_left_unchanged(implementation: Implementation, device: str) -> None:
    draft, choice = (ids.to(device) for ids in chains(3, 4))
    before = draft.clone(), choice.clone()
    implementation(draft, choice)
    assert torch.equal(draft, before[0])
    assert torch.equal(choice, before[1])


@pytest.mark.parametrize("width", [2, 11], ids="D{}".format)
def test_sglangs_own_greedy_walk_of_a_chain_commits_the_same(width: int, device: str) -> None:
    pytest.importorskip("sgl_kernel", reason="compares with SGLang, which needs its kernels to be imported")
    draft, choice = (ids.to(device) for ids in chains(64, width))
    assert_same(accept_chain(draft, choice), sglang_greedy_walk(draft, choice))


@pytest.mark.parametrize(
    ("draft_shape", "choice_shape"),
    [((2, 3), (2, 4)), ((2, 3), (3, 3)), ((6,), (6,)), ((1, 2, 3), (1, 2, 3)), ((2, 0), (2, 0))],
    ids=str,
)
def test_other_shapes_are_refused_by_name(draft_shape: tuple[int, ...], choice_shape: tuple[int, ...]) -> None:
    draft, choice = torch.zeros(draft_shape, dtype=torch.int64), torch.zeros(choice_shape, dtype=torch.int64)
    with pytest.raises(ValueError, match="accept_chain needs draft_token and choice of one shape") as error:
        accept_chain(draft, choice)
    assert str(draft_shape) in str(error.value)
    assert str(choice_shape) in str(error.value)


def test_a_tensor_is_served_where_it_lies(device: str, monkeypatch: pytest.MonkeyPatch) -> None:
    expected = "accept_chain_triton" if device == "cuda" else "accept_chain_torch"
    called = []
    for name in ("accept_chain_torch", "accept_chain_triton"):
        original = getattr(module, name)
        monkeypatch.setattr(
            module, name, lambda *ids, name=name, original=original: called.append(name) or original(*ids)
        )
    draft, choice = (ids.to(device) for ids in chains(1, 2))
    accept_chain(draft, choice)
    assert called == [expected]


def test_the_docstrings_example_is_true() -> None:
    results = doctest.testmod(module)
    assert results.attempted > 0
    assert results.failed == 0


def test_the_example_worked_by_hand_in_the_readme_is_true() -> None:
    readme = Path(__file__).parents[2] / "triton_kernels" / "README.md"
    results = doctest.testfile(str(readme), module_relative=False, encoding="utf-8")
    assert results.attempted > 0
    assert results.failed == 0
