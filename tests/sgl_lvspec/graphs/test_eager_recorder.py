"""The stand-in for CUDA graphs behaves like them; else tests with it prove nothing."""

from __future__ import annotations

import pytest
import torch

from tests.sgl_lvspec.graphs.eager_recorder import AskedTheDeviceError, EagerRecorder


def test_a_replay_reads_what_stands_in_the_buffers_now() -> None:
    source, total = torch.tensor([1.0, 2.0]), torch.zeros(2)
    replay = EagerRecorder().record(lambda: total.copy_((source * 2)[:1] + source.view(2).flip(0)))
    assert total.tolist() == [0, 0], "recording runs nothing"
    replay()
    assert total.tolist() == [4, 3]
    source[0] = 10
    replay()
    assert total.tolist() == [22, 30]


def test_tables_that_a_body_updates_are_updated_once_a_replay() -> None:
    table, rows = torch.zeros(4), torch.tensor([1, 3])

    def body() -> None:
        table[rows] = table[rows] + 1
        table.add_(table)

    replay = EagerRecorder().record(body)
    assert not table.any()
    for expected in (2, 6):
        replay()
        assert table.tolist() == [0, expected, 0, expected]


def test_numbers_and_tensors_of_the_host_are_baked_in() -> None:
    given = {"tensor": torch.tensor([1.0]), "number": 1.0}
    out = torch.zeros(1)
    replay = EagerRecorder().record(lambda: out.copy_(given["tensor"] + given["number"]))
    given.update(tensor=torch.tensor([5.0]), number=7.0)
    replay()
    assert out.tolist() == [2.0]


def test_results_lie_where_they_lay() -> None:
    """Who keeps a result over a replay reads the next round's."""
    source, kept = torch.tensor([1.0]), []
    replay = EagerRecorder().record(lambda: kept.append(source + 1))
    source[0] = 4
    replay()
    assert kept[0].tolist() == [5.0]


@pytest.mark.parametrize("ask", [lambda t: t.item(), lambda t: bool(t.any()), lambda t: t[t > 0], torch.nonzero])
def test_a_body_that_asks_the_device_cannot_be_recorded(ask: object) -> None:
    with pytest.raises(AskedTheDeviceError):
        EagerRecorder().record(lambda: ask(torch.ones(1)))  # type: ignore[operator]
