"""`select_context`: the definition and the kernel against both stages spelled out in Python with whole numbers.

Regimes that catch distinct bugs: all scores over {-1, 0, 1, 2} of up to four tokens with every budget (ties, signs,
both stages), random scores around the block size (counting over blocks), 40,000 tokens (numbers beyond 32 bits), scores
at the ends of float32 (their order, their mass). Whatever is asked, `budget` tokens are chosen: checked on all results.
"""

from __future__ import annotations

import doctest
import importlib
import itertools
import math
import struct
from collections.abc import Callable
from functools import partial

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from lvspec_kernels import select_context
from lvspec_kernels.tuning import of_gpu

module = importlib.import_module("lvspec_kernels.select_context")

BLOCK = of_gpu("select_context", "")["block"]

Implementation = Callable[[torch.Tensor, int, float], torch.Tensor]

UNITS = 2**20  # as it stands in the docstring
SHARES = [0.0, 0.3, 0.4, 0.5, 1.0]
IMPLEMENTATIONS = {
    "torch": module.select_context_torch,
    "triton": module.select_context_triton,
    "triton in blocks": partial(module.select_context_triton, block=32),
}
FLOATS = st.floats(width=32, allow_nan=False, allow_infinity=False)


def to_float32(number: float) -> float:
    return struct.unpack("f", struct.pack("f", number))[0]


def masses(score: list[float]) -> list[int]:
    """Quotients of two float32 in double precision round to float32 as if there were no double between."""
    largest = max([*score, 2.0**-100])
    return [math.floor(to_float32(max(number, 0.0) / largest) * UNITS) for number in score]


def rule(score: torch.Tensor, budget: int, mass_share: float) -> list[int]:
    """The chosen tokens in order."""
    numbers = score.tolist()
    mass = masses(numbers)
    needed = math.floor(mass_share * UNITS) * sum(mass)
    chosen: list[int] = []
    reached = 0
    for token in sorted(range(len(numbers)), key=lambda token: (-numbers[token], token)):
        if len(chosen) == budget or (mass_share < 1.0 and reached * UNITS >= needed):
            break
        chosen.append(token)
        reached += mass[token]
    rest = sorted(set(range(len(numbers))) - set(chosen))
    spaced = budget - len(chosen)
    taken = {(2 * j + 1) * len(rest) // (2 * spaced) for j in range(spaced)}
    return sorted(chosen + [token for rank, token in enumerate(rest) if rank in taken])


def run(implementation: Implementation, score: torch.Tensor, budget: int, mass_share: float, device: str) -> list[int]:
    result = implementation(score.to(device), budget, mass_share)
    assert result.dtype == torch.bool
    assert result.shape == score.shape
    chosen = result.nonzero()[:, 0].tolist()
    assert len(chosen) == budget
    return chosen


def assert_rule(
    implementation: Implementation, score: torch.Tensor, budget: int, mass_share: float, device: str
) -> None:
    expected = rule(score, budget, mass_share)
    actual = run(implementation, score, budget, mass_share, device)
    assert actual == expected, f"{budget} of {score.tolist()} with {mass_share}"


def random_scores(length: int, few: bool = False) -> torch.Tensor:
    """Like attention, with ties and some below 0; of few values if wanted."""
    rng = torch.Generator().manual_seed(length)
    score = torch.randn(length, generator=rng).exp() * 1e-3
    kind = torch.rand(length, generator=rng)
    score = torch.where(kind < 0.3, (score * 1e3).round() / 1e3, torch.where(kind < 0.4, -score, score))
    return (score * 1e3).round() if few else score


@pytest.fixture(params=IMPLEMENTATIONS)
def implementation(request: pytest.FixtureRequest) -> Implementation:
    return IMPLEMENTATIONS[request.param]


@pytest.fixture(params=["torch", "triton"])
def in_large_blocks(request: pytest.FixtureRequest) -> Implementation:
    """As `implementation`, where small blocks would only take long to interpret."""
    return IMPLEMENTATIONS[request.param]


@pytest.mark.usefixtures("garbage_in_new_memory")
def test_all_scores_of_few_tokens_follow_the_rule(in_large_blocks: Implementation, device: str) -> None:
    """Thinned for the interpreter, which takes 0.1 s for each: 12 of them, in all places of the list."""
    cases = [
        (score, budget, mass_share)
        for length in range(5)
        for score in itertools.product((-1.0, 0.0, 1.0, 2.0), repeat=length)
        for budget in range(length + 1)
        for mass_share in SHARES
    ]
    if in_large_blocks is module.select_context_triton and device == "cpu":
        cases = cases[7 :: len(cases) // 12]
    for score, budget, mass_share in cases:
        assert_rule(in_large_blocks, torch.tensor(score, dtype=torch.float32), budget, mass_share, device)


@pytest.mark.parametrize(
    ("length", "budget", "mass_share"),
    [(1, 1, 0.4), (15, 4, 0.4), (16, 9, 1.0), (17, 3, 0.0), (33, 11, 0.3), (50, 49, 0.9), (64, 20, 0.15)],
)
@pytest.mark.parametrize("few", [False, True], ids=["many values", "few values"])
@pytest.mark.usefixtures("garbage_in_new_memory")
def test_random_scores_follow_the_rule(
    implementation: Implementation, length: int, budget: int, mass_share: float, few: bool, device: str
) -> None:
    assert_rule(implementation, random_scores(length, few), budget, mass_share, device)


@pytest.mark.parametrize("length", [BLOCK, 2 * BLOCK + 1])
@pytest.mark.usefixtures("garbage_in_new_memory")
def test_long_prompts_follow_the_rule(in_large_blocks: Implementation, length: int, device: str) -> None:
    assert_rule(in_large_blocks, random_scores(length), length // 5, 0.4, device)


@given(st.lists(FLOATS | st.sampled_from([0.0, -0.0, 1.0, 1e-3]), max_size=40), st.data())
def test_the_definition_follows_the_rule_for_all_numbers(numbers: list[float], data: st.DataObject) -> None:
    budget = data.draw(st.integers(0, len(numbers)))
    mass_share = data.draw(st.sampled_from(SHARES) | st.floats(0.0, 1.0))
    score = torch.tensor(numbers, dtype=torch.float32)
    assert_rule(module.select_context_torch, score, budget, mass_share, "cpu")


@pytest.fixture(params=["torch", "triton in one block"])
def in_one_block(request: pytest.FixtureRequest) -> Implementation:
    """For 40,000 tokens, which are not many steps to interpret in one block."""
    return {"torch": module.select_context_torch, "triton in one block": in_block_of_65536}[request.param]


def in_block_of_65536(score: torch.Tensor, budget: int, mass_share: float) -> torch.Tensor:
    block = 65_536 if not score.is_cuda else BLOCK  # more than a real program has registers for
    return module.select_context_triton(score, budget, mass_share, block=block)


@pytest.mark.parametrize(("budget", "mass_share"), [(36_000, 0.0), (39_000, 0.4), (30_000, 1.0)])
def test_many_tokens_of_one_score_do_not_overflow(
    in_one_block: Implementation, budget: int, mass_share: float, device: str
) -> None:
    """Their mass together is 2 ** 35.3, and 2 r m of the second stage 2 ** 31.4 and more."""
    chosen = run(in_one_block, torch.full((40_000,), 0.5), budget, mass_share, device)
    best = min(budget, math.ceil(math.floor(mass_share * UNITS) * 40_000 / UNITS))
    rest, spaced = 40_000 - best, budget - best
    assert chosen == [*range(best), *(best + (2 * j + 1) * rest // (2 * spaced) for j in range(spaced))]


def test_the_best_are_taken_until_they_have_the_share(implementation: Implementation, device: str) -> None:
    """16 of 40 are 0.4: two tokens of 8 (the first of three); 4 of the 8 others: ranks 1, 3, 5 and 7."""
    score = torch.tensor([1.0, 8.0, 1.0, 8.0, 1.0, 8.0, 6.0, 4.0, 2.0, 1.0])
    chosen = run(implementation, score, 6, 0.4, device)
    assert chosen == [1, 2, 3, 5, 7, 9]
    assert run(implementation, score, 1, 0.4, device) == [1]


def test_the_whole_share_is_the_best_ones_whatever_their_mass(implementation: Implementation, device: str) -> None:
    score = torch.tensor([-1.0, 9.0, -3.0, 0.0, -2.0, 0.0, -2.0])
    assert run(implementation, score, 5, 1.0, device) == [0, 1, 3, 4, 5]
    assert run(implementation, score - 10.0, 5, 1.0, device) == [0, 1, 3, 4, 5]


@pytest.mark.parametrize("score", [0.0, -1.0, 5.0])
def test_without_a_share_or_mass_tokens_are_evenly_spaced(
    in_large_blocks: Implementation, score: float, device: str
) -> None:
    """10 of 20: the middle of each two. 3 of 20: of 6 2/3."""
    for budget, expected in ((10, list(range(1, 20, 2))), (3, [3, 10, 16])):
        mass_share = 0.0 if score > 0 else 0.4
        assert run(in_large_blocks, torch.full((20,), score), budget, mass_share, device) == expected


@pytest.mark.parametrize("mass_share", SHARES)
def test_all_or_nothing(in_large_blocks: Implementation, mass_share: float, device: str) -> None:
    score = random_scores(20)
    assert run(in_large_blocks, score, 20, mass_share, device) == list(range(20))
    assert run(in_large_blocks, score, 0, mass_share, device) == []


def test_both_zeros_are_one_score(in_large_blocks: Implementation, device: str) -> None:
    score = torch.tensor([-1.0, -0.0, 0.0, -0.0, 0.0])
    assert run(in_large_blocks, score, 1, 1.0, device) == [1]
    assert run(in_large_blocks, score, 3, 1.0, device) == [1, 2, 3]


def test_the_ends_of_float32_are_in_order(in_large_blocks: Implementation, device: str) -> None:
    """The smallest number above 0, too, which devices like to take for 0; none of these but the largest has mass."""
    tiny, largest = 2.0**-149, torch.finfo(torch.float32).max
    score = torch.tensor([-largest, -tiny, 0.0, tiny, 2 * tiny, 1.0, largest])
    for budget in range(1, 7):
        assert run(in_large_blocks, score, budget, 1.0, device) == list(range(7 - budget, 7))
    assert run(in_large_blocks, score, 3, 0.9, device) == [1, 4, 6]
    assert run(in_large_blocks, score[:5], 2, 0.9, device) == [1, 3]  # without mass: as evenly spaced as can be


def test_mass_is_rounded_to_float32_and_then_down(in_large_blocks: Implementation, device: str) -> None:
    """1 / 3 is 349525.34 units in float32. Half of what three of them have beside 1 is one unit more than 1 has."""
    score = torch.tensor([1 / 3, 1.0, 1 / 3, 1 / 3, 1 / 3, 0.0])
    assert masses(score.tolist()) == [349_525, UNITS, 349_525, 349_525, 349_525, 0]
    for mass_share in (0.4285, 0.4286, 0.4287, 0.571, 0.5715):
        assert_rule(in_large_blocks, score, 4, mass_share, device)


@pytest.mark.parametrize(
    ("score", "expected"),
    [
        # Others have 699050.67 and 349526.7 units, of which 699050 + 349526 are as much as the first: it suffices.
        ([1.0, 2 / 3, 349_526.7 / UNITS], [0, 2]),
        # Others have 13 and UNITS - 12 units, one more than the first; times 1 / 41 in float32 they would have fewer.
        ([41.0, 41 * 13 / UNITS, 41 * (UNITS - 12) / UNITS, 0.0, 0.0], [0, 2]),
        # 13 units fewer than the first.
        ([41.0, 41 * 13 / UNITS, 41 * (UNITS - 26) / UNITS, 0.0, 0.0], [0, 3]),
    ],
    ids=["rounded down", "divided", "fewer"],
)
def test_one_unit_of_mass_decides(
    in_large_blocks: Implementation, score: list[float], expected: list[int], device: str
) -> None:
    """Two of them with half of the mass: the first, and the middle one of the others or the second best."""
    assert rule(torch.tensor(score), 2, 0.5) == expected
    assert run(in_large_blocks, torch.tensor(score), 2, 0.5, device) == expected


def test_other_strides_are_read_as_they_are(implementation: Implementation, device: str) -> None:
    score = random_scores(20)
    wide = torch.full((20, 3), 99.0)
    wide[:, 1] = score
    assert run(implementation, wide.to(device)[:, 1], 7, 0.4, device) == rule(score, 7, 0.4)


def test_the_inputs_are_left_unchanged(in_large_blocks: Implementation, device: str) -> None:
    score = random_scores(20).to(device)
    before = score.clone()
    in_large_blocks(score, 7, 0.4)
    assert torch.equal(score, before)


@pytest.mark.parametrize(
    ("shape", "budget", "mass_share"),
    [((4, 1), 1, 0.4), ((4,), 5, 0.4), ((4,), -1, 0.4), ((4,), 2, 1.1), ((4,), 2, -0.1), ((4,), 2, math.nan)],
    ids=str,
)
def test_what_makes_no_sense_is_refused_by_name(shape: tuple[int, ...], budget: int, mass_share: float) -> None:
    with pytest.raises(ValueError, match=r"select_context needs score \[n\]") as error:
        select_context(torch.ones(shape), budget, mass_share)
    assert f"{shape}, {budget} and {mass_share}" in str(error.value)


def test_a_tensor_is_served_where_it_lies(device: str, monkeypatch: pytest.MonkeyPatch) -> None:
    called = []
    for name in ("select_context_torch", "select_context_triton"):
        monkeypatch.setattr(module, name, lambda *args, name=name: called.append(name))
    select_context(torch.ones(3, device=device), 2, 0.4)
    assert called == ["select_context_triton" if device == "cuda" else "select_context_torch"]


def test_the_docstrings_example_is_true() -> None:
    results = doctest.testmod(module)
    assert results.attempted > 0
    assert results.failed == 0
