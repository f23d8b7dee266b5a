"""`row_choice`: the definition and the kernel against the row read token by token in Python.

Regimes that catch distinct bugs: every row over {-inf, 0, 1, NaN} of up to four tokens (ties, rows without numbers),
random rows around the block size (masks, joining of parts), rows of real vocabularies (sums, the last ids).
"""

from __future__ import annotations

import doctest
import importlib
import itertools
import math
from collections.abc import Callable
from functools import partial

import pytest
import torch

from lvspec_kernels import RowChoice, row_choice

module = importlib.import_module("lvspec_kernels.row_choice")

Implementation = Callable[..., RowChoice]

# Adding up a vocabulary in float32 is off by some units in the last place (6e-8 of the sum), and so are exp and ln; a
# token that is missed or counted twice changes a tiny vocabulary's numbers by more than 1e-2.
TOLERANCE = {"rtol": 1e-5, "atol": 1e-6}
IMPLEMENTATIONS = {
    "torch": module.row_choice_torch,
    "triton": module.row_choice_triton,
    "triton in parts": partial(module.row_choice_triton, block=2),
}
NO_NUMBER = [-math.inf, math.nan]


def rule(logits: torch.Tensor, drafted: torch.Tensor, temperature: torch.Tensor | None = None) -> RowChoice:
    """Each row token by token, in double precision."""
    temperatures = [1.0] * len(logits) if temperature is None else temperature.tolist()
    rows = [
        rule_of_row(row, token, at)
        for row, token, at in zip(logits.double().tolist(), drafted.tolist(), temperatures, strict=True)
    ]
    dtypes = RowChoice(torch.int64, torch.float32, torch.float32, torch.int32, torch.float32, torch.float32)
    return RowChoice(*(torch.tensor([row[i] for row in rows], dtype=dtype) for i, dtype in enumerate(dtypes)))


def rule_of_row(row: list[float], drafted: int, temperature: float) -> tuple[int, float, float, int, float, float]:
    row = [-math.inf if math.isnan(logit) else logit for logit in row]
    choice = 0
    for token, logit in enumerate(row):
        if logit > row[choice]:
            choice = token
    if row[choice] == -math.inf:
        return choice, -math.inf, math.inf, len(row) if drafted < 0 else 0, 1.0 if drafted < 0 else 0.0, 0.0
    at_one = [math.exp(logit - row[choice]) for logit in row]
    three = [weight / math.fsum(at_one) for weight in sorted(at_one)[-3:]]
    entropy = -math.fsum(p * math.log(p) for p in three if p > 0)
    if drafted < 0:
        return choice, -math.inf, math.inf, len(row), 1.0, entropy
    weights = [math.exp((logit - row[choice]) / temperature) for logit in row]
    total = math.fsum(weights)
    above = [token for token, logit in enumerate(row) if logit > row[drafted]]
    distance = (row[choice] - row[drafted]) / temperature
    mass_above = math.fsum(weights[token] for token in above) / total
    return choice, -distance - math.log(total), distance, len(above), mass_above, entropy


def assert_same(actual: RowChoice, expected: RowChoice) -> None:
    for name, ours, theirs in zip(RowChoice._fields, actual, expected, strict=True):
        exact = {} if theirs.is_floating_point() else {"rtol": 0, "atol": 0}
        torch.testing.assert_close(
            ours.cpu(), theirs, **(exact or TOLERANCE), msg=lambda text, name=name: f"{name}: {text}"
        )


def all_rows(vocabulary: int, thinned: bool) -> tuple[torch.Tensor, torch.Tensor]:
    """Every row over {-inf, 0, 1, NaN} with every drafted token and none.

    Thinned, because a row is 20 ms of interpreter: every row once (the choice depends on the order, but not on the
    drafted token), and every drafted logit among the same others once (the rest depends on no order).
    """
    rows, seen = [], set()
    for row in itertools.product((-math.inf, 0.0, 1.0, math.nan), repeat=vocabulary):
        for drafted in range(-1, vocabulary):
            key = (str(sorted(map(str, row))), str(row[drafted]) if drafted >= 0 else "none")
            if not thinned or row not in seen or key not in seen:
                rows.append((row, drafted))
                seen |= {row, key}
    return torch.tensor([row for row, _ in rows]), torch.tensor([drafted for _, drafted in rows])


def random_rows(num_rows: int, vocabulary: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Logits with some ties, some -inf and NaN; drafted tokens or none; temperatures around 1."""
    rng = torch.Generator().manual_seed(num_rows * 1_000_003 + vocabulary)
    logits = torch.randn(num_rows, vocabulary, generator=rng) * 3
    kind = torch.randint(0, 10, logits.shape, generator=rng)
    logits = torch.where(kind == 0, -torch.inf, torch.where(kind == 1, torch.nan, logits))
    logits = torch.where(kind < 4, logits, (logits * 2).round() / 2)
    drafted = torch.randint(-1, vocabulary, (num_rows,), generator=rng)
    return logits, drafted, torch.rand(num_rows, generator=rng) * 1.5 + 0.3


@pytest.fixture(params=IMPLEMENTATIONS)
def implementation(request: pytest.FixtureRequest) -> Implementation:
    return IMPLEMENTATIONS[request.param]


@pytest.fixture(params=["torch", "triton"])
def whole_rows(request: pytest.FixtureRequest) -> Implementation:
    """As `implementation`, for rows of which parts of two tokens would be too many to interpret."""
    return IMPLEMENTATIONS[request.param]


@pytest.mark.parametrize(
    ("which", "vocabulary"),
    [*itertools.product(("torch", "triton"), (1, 2, 3, 4)), ("triton in parts", 3)],
    ids=str,
)
@pytest.mark.usefixtures("garbage_in_new_memory")
def test_every_row_of_few_tokens_follows_the_rule(which: str, vocabulary: int, device: str) -> None:
    logits, drafted = all_rows(vocabulary, thinned=which != "torch" and device == "cpu")
    assert_same(IMPLEMENTATIONS[which](logits.to(device), drafted.to(device)), rule(logits, drafted))


@pytest.mark.parametrize("num_rows", [0, 1, 5], ids="R{}".format)
@pytest.mark.parametrize("vocabulary", [1, 2, 7, 33], ids="V{}".format)
@pytest.mark.parametrize("at_temperature", [False, True], ids=["T1", "T"])
@pytest.mark.usefixtures("garbage_in_new_memory")
def test_random_rows_follow_the_rule(
    implementation: Implementation, num_rows: int, vocabulary: int, at_temperature: bool, device: str
) -> None:
    logits, drafted, temperature = random_rows(num_rows, vocabulary)
    given = temperature if at_temperature else None
    actual = implementation(logits.to(device), drafted.to(device), None if given is None else given.to(device))
    assert_same(actual, rule(logits, drafted, given))


@pytest.mark.parametrize("vocabulary", [1152, 8191, 8192, 8193, 24_577, 151_936, 152_064], ids="V{}".format)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
@pytest.mark.usefixtures("garbage_in_new_memory")
def test_rows_of_large_vocabularies_follow_the_rule(
    whole_rows: Implementation, vocabulary: int, dtype: torch.dtype, device: str
) -> None:
    logits, drafted, temperature = random_rows(2, vocabulary)
    logits = logits.to(dtype)
    drafted[0] = vocabulary - 1
    logits[0, -1] = 1.5
    actual = whole_rows(logits.to(device), drafted.to(device), temperature.to(device))
    assert_same(actual, rule(logits, drafted, temperature))


@pytest.mark.parametrize("place", [0, 8191, 8192, 100_000, 151_935])
def test_the_lowest_of_equal_tokens_is_chosen_wherever_they_are(
    whole_rows: Implementation, place: int, device: str
) -> None:
    logits = torch.zeros(1, 151_936)
    logits[0, place:] = 2.0
    row = whole_rows(logits.to(device), torch.tensor([151_935], device=device))
    assert row.choice.tolist() == [place]
    assert row.rank.tolist() == [0]
    assert row.gap.tolist() == [0.0]
    assert row.mass_above.tolist() == [0.0]


def test_equal_tokens_are_not_above_one_another(implementation: Implementation, device: str) -> None:
    logits = torch.tensor([[3.0, 1.0, 5.0, 3.0, 5.0]] * 5, device=device)
    row = implementation(logits, torch.arange(5, device=device))
    assert row.rank.tolist() == [2, 4, 0, 2, 0]
    assert row.choice.tolist() == [2] * 5


@pytest.mark.parametrize("three", list(itertools.permutations((0, 1, 2))), ids=str)
def test_the_three_likeliest_count_wherever_they_are(
    implementation: Implementation, three: tuple[int, ...], device: str
) -> None:
    """In one part of the vocabulary or in three, in any order."""
    for places in ((0, 1, 2), (0, 2, 4), (1, 4, 5), (4, 5, 6)):
        logits = torch.full((1, 7), -1.0)
        for place, size in zip(places, three, strict=True):
            logits[0, place] = float(size)
        drafted = torch.tensor([3])
        assert_same(implementation(logits.to(device), drafted.to(device)), rule(logits, drafted))


def test_entropy_is_that_of_temperature_one(implementation: Implementation, device: str) -> None:
    """Of four equal tokens three count, not renormalised: 3/4 ln 4, at any temperature."""
    logits = torch.tensor([[1.0, 1.0, 1.0, 1.0], [9.0, 2.0, 1.0, 0.0]], device=device)
    drafted = torch.zeros(2, dtype=torch.int64, device=device)
    hot = implementation(logits, drafted, torch.full((2,), 5.0, device=device)).entropy
    assert hot[0].item() == pytest.approx(0.75 * math.log(4), rel=1e-6)
    assert torch.equal(hot, implementation(logits, drafted).entropy)


def test_each_row_has_its_own_temperature(implementation: Implementation, device: str) -> None:
    """ln 9 apart at 1; at 1/2 the odds are squared, at 2 rooted."""
    logits = torch.tensor([[math.log(9), 0.0]] * 3, device=device)
    row = implementation(
        logits, torch.ones(3, dtype=torch.int64, device=device), torch.tensor([1.0, 0.5, 2.0], device=device)
    )
    torch.testing.assert_close(row.mass_above.cpu(), torch.tensor([9 / 10, 81 / 82, 3 / 4]))
    torch.testing.assert_close(row.gap.cpu(), torch.tensor([9.0, 81.0, 3.0]).log())
    torch.testing.assert_close(row.logprob.cpu(), torch.tensor([1 / 10, 1 / 82, 1 / 4]).log())


@pytest.mark.filterwarnings("ignore:overflow encountered:RuntimeWarning")  # the interpreter's, on the way to -inf
@pytest.mark.parametrize("temperature", [1e-6, 1e6])
def test_extreme_temperatures_and_logits_give_numbers(
    implementation: Implementation, temperature: float, device: str
) -> None:
    logits = torch.tensor([[3e38, -3e38, 0.0, 1e-30], [-3e38, -3e38, -3.1e38, -3e38]])
    drafted = torch.tensor([2, 3])
    row = implementation(logits.to(device), drafted.to(device), torch.full((2,), temperature, device=device))
    assert not any(values.isnan().any() for values in row)
    assert row.choice.tolist() == [0, 0]
    assert row.rank.tolist() == [2, 0]
    torch.testing.assert_close(row.mass_above.cpu(), torch.tensor([1.0, 0.0]))
    assert row.logprob[1].item() == pytest.approx(-math.log(3), rel=1e-6)


def test_infinite_logits_share_the_probability(implementation: Implementation, device: str) -> None:
    logits = torch.tensor([[0.0, math.inf, 5.0, math.inf]] * 2, device=device)
    row = implementation(logits, torch.tensor([3, 2], device=device))
    assert row.choice.tolist() == [1, 1]
    assert row.rank.tolist() == [0, 2]
    assert row.gap[0].item() == 0.0
    assert row.logprob[0].item() == pytest.approx(-math.log(2), rel=1e-6)
    assert row.mass_above.tolist() == [0.0, 1.0]


@pytest.mark.parametrize("nothing", NO_NUMBER)
@pytest.mark.parametrize("vocabulary", [1, 5, 8193], ids="V{}".format)
def test_a_row_without_a_number_has_choice_zero(
    whole_rows: Implementation, vocabulary: int, nothing: float, device: str
) -> None:
    logits = torch.full((2, vocabulary), nothing, device=device)
    row = whole_rows(logits, torch.tensor([vocabulary - 1, -1], device=device))
    assert row.choice.tolist() == [0, 0]
    assert row.logprob.tolist() == [-math.inf, -math.inf]
    assert row.gap.tolist() == [math.inf, math.inf]
    assert row.rank.tolist() == [0, vocabulary]
    assert row.mass_above.tolist() == [0.0, 1.0]
    assert row.entropy.tolist() == [0.0, 0.0]


@pytest.mark.parametrize("drafted", [-1, -2, 4, 1 << 40])
def test_an_id_outside_the_vocabulary_is_no_drafted_token(
    implementation: Implementation, drafted: int, device: str
) -> None:
    logits = torch.tensor([[0.0, 1.0, 2.0, 3.0]], device=device)
    row = implementation(logits, torch.tensor([drafted], device=device))
    assert row.choice.tolist() == [3]
    assert (row.logprob.item(), row.gap.item(), row.rank.item(), row.mass_above.item()) == (-math.inf, math.inf, 4, 1.0)
    assert row.entropy.item() > 0


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_the_choice_is_the_argmax_so_that_greedy_rounds_read_the_logits_once(
    whole_rows: Implementation, dtype: torch.dtype, device: str
) -> None:
    """Few values, so that each row has its largest in most parts; and nothing but one token, as a grammar leaves it."""
    rng = torch.Generator().manual_seed(3)
    logits = torch.randint(0, 900, (5, 152_064), generator=rng).to(dtype)
    logits[3] = -math.inf
    logits[3, 151_999] = -1e30
    logits[4, :100_000] = -math.inf
    choice = whole_rows(logits.to(device), torch.full((5,), -1, device=device)).choice
    assert choice.dtype == torch.int64
    assert choice.tolist() == [int((row == row.max()).nonzero()[0]) for row in logits]
    assert torch.equal(choice, logits.to(device).argmax(dim=1))


def test_other_strides_are_read_as_they_are(implementation: Implementation, device: str) -> None:
    logits, drafted, temperature = random_rows(5, 33)
    expected = rule(logits, drafted, temperature)
    wide = torch.full((10, 99), 7.0)
    wide[::2, 1:34] = logits
    spread = torch.full((5, 66), 7.0)
    spread[:, ::2] = logits
    apart = torch.full((10,), 3, dtype=torch.int64)
    apart[::2] = drafted
    for strided in (wide.to(device)[::2, 1:34], spread.to(device)[:, ::2], logits.t().contiguous().t().to(device)):
        assert not strided.is_contiguous()
        assert_same(implementation(strided, apart.to(device)[::2], temperature.to(device)), expected)


def test_the_inputs_are_left_unchanged(implementation: Implementation, device: str) -> None:
    inputs = [tensor.to(device) for tensor in random_rows(3, 7)]
    before = [tensor.clone() for tensor in inputs]
    implementation(*inputs)
    for tensor, old in zip(inputs, before, strict=True):
        assert torch.equal(tensor.nan_to_num(), old.nan_to_num())


@pytest.mark.parametrize(
    ("logits", "drafted", "temperature"),
    [((2, 3), (3,), None), ((2,), (2,), None), ((2, 0), (2,), None), ((2, 3), (2, 1), None), ((2, 3), (2,), (1,))],
    ids=str,
)
def test_other_shapes_are_refused_by_name(
    logits: tuple[int, ...], drafted: tuple[int, ...], temperature: tuple[int, ...] | None
) -> None:
    with pytest.raises(ValueError, match=r"row_choice needs logits \[R, V\]") as error:
        row_choice(
            torch.zeros(logits),
            torch.zeros(drafted, dtype=torch.int64),
            None if temperature is None else torch.ones(temperature),
        )
    assert f"{logits}, {drafted} and {temperature}" in str(error.value)


def test_a_tensor_is_served_where_it_lies(device: str, monkeypatch: pytest.MonkeyPatch) -> None:
    called = []
    for name in ("row_choice_torch", "row_choice_triton"):
        monkeypatch.setattr(module, name, lambda *args, name=name: called.append(name))
    row_choice(torch.zeros(1, 2, device=device), torch.zeros(1, dtype=torch.int64, device=device))
    assert called == ["row_choice_triton" if device == "cuda" else "row_choice_torch"]


def test_the_docstrings_example_is_true() -> None:
    results = doctest.testmod(module)
    assert results.attempted > 0
    assert results.failed == 0


@pytest.mark.parametrize("with_temperature", [True, False])
def test_many_rows_are_read_in_parts(with_temperature: bool) -> None:
    """A row does not depend on the rows beside it, so 40 rows are what each of them is alone."""
    generator = torch.Generator().manual_seed(3)
    logits = torch.randn(40, 300, generator=generator) * 4
    drafted = torch.randint(-1, 300, (40,), generator=generator)
    temperature = torch.rand(40, generator=generator) + 0.5 if with_temperature else None
    row_choice_torch = importlib.import_module("lvspec_kernels.row_choice").row_choice_torch
    together = row_choice_torch(logits, drafted, temperature)
    for row in range(40):
        one = slice(row, row + 1)
        alone = row_choice_torch(logits[one], drafted[one], None if temperature is None else temperature[one])
        for name, value, other in zip(together._fields, together, alone, strict=True):
            assert value.dtype == other.dtype
            # Sums over 300 numbers may be cut elsewhere: the last bits of float32.
            assert torch.allclose(value[one].double(), other.double(), atol=1e-6), name
