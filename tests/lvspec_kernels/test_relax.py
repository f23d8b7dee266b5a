"""`relax`: the definition and the kernel against the rule told token by token (relax_rule.py).

Regimes that catch distinct bugs: rounds whose rows differ in every setting and sit on their bounds (comparisons, masks,
rows of larger tables), every short round over two tokens (positions of the window), rounds in sequence (the state).
"""

from __future__ import annotations

import importlib
import itertools
from collections.abc import Callable

import pytest
import torch

from lvspec_kernels import Relaxed, RuleRows
from tests.lvspec_kernels.relax_rule import Round, Setup, assert_same, random_setup, rule

module = importlib.import_module("lvspec_kernels.relax")

Implementation = Callable[..., Relaxed]


@pytest.fixture(params=["torch", "triton"])
def implementation(request: pytest.FixtureRequest) -> Implementation:
    return {"torch": module.relax_torch, "triton": module.relax_triton}[request.param]


def assert_follows_the_rule(implementation: Implementation, setup: Setup, device: str) -> None:
    ours = setup.to(device)
    actual = implementation(*ours.arguments())
    assert_same(actual, ours.state, *rule(setup))
    for name, part, before in zip(Round._fields, ours.round, setup.round, strict=True):
        torch.testing.assert_close(part.cpu(), before, rtol=0, atol=0, equal_nan=True, msg=f"{name} was changed")
    for name, part, before in zip(RuleRows._fields, ours.rules, setup.rules, strict=True):
        assert torch.equal(part.cpu(), before), f"{name} was changed"


@pytest.mark.parametrize(
    ("num_requests", "width"), [*itertools.product([0, 1, 7], [1, 2, 3, 11, 16, 17]), (64, 3), (64, 11)], ids=str
)
@pytest.mark.usefixtures("garbage_in_new_memory")
def test_every_shape_follows_the_rule(
    implementation: Implementation, num_requests: int, width: int, device: str
) -> None:
    assert_follows_the_rule(implementation, random_setup(num_requests, width), device)


@pytest.mark.parametrize("num_bins", [1, 2, 5, 31, 33, 64], ids="N{}".format)
@pytest.mark.usefixtures("garbage_in_new_memory")
def test_any_number_of_bins_follows_the_rule(implementation: Implementation, num_bins: int, device: str) -> None:
    assert_follows_the_rule(implementation, random_setup(16, 9, num_bins), device)


@pytest.mark.usefixtures("garbage_in_new_memory")
def test_columns_of_larger_tensors_are_read_by_their_strides(implementation: Implementation, device: str) -> None:
    setup = random_setup(9, 11)
    ours = setup.to(device)

    def strided(part: torch.Tensor) -> torch.Tensor:
        wide = torch.stack([part, torch.full_like(part, 1)], dim=-1)
        return wide[..., 0]

    ours.round = Round(*(strided(part) for part in ours.round))
    ours.round = ours.round._replace(choice=setup.round.choice.t().contiguous().t().to(device))
    ours.rules = RuleRows(*(strided(part) for part in ours.rules))
    ours.rows = strided(ours.rows)
    assert not any(part.is_contiguous() for part in (*ours.round, *ours.rules, ours.rows))
    assert_same(implementation(*ours.arguments()), ours.state, *rule(setup))
