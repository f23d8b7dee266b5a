"""The watch on waits for the device: what it refuses on CPU, what it lets pass, and what it asks of torch on CUDA."""

from __future__ import annotations

from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from sgl_lvspec.graphs import no_sync
from sgl_lvspec.graphs.no_sync import HostWaitError, exempt, section


@pytest.fixture
def switched_on(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(no_sync._Watch, "is_on", False)
    no_sync.switch_on()


NUMBERS = torch.tensor([1.0, -2.0, 3.0])
WAITS: dict[str, Callable[[torch.Tensor], Any]] = {
    "item": lambda t: t[0].item(),
    "float": lambda t: float(t[0]),
    "int": lambda t: int(t[0]),
    "bool": lambda t: bool(t[0] > 0),
    "if": lambda t: 1 if t.any() else 0,
    "index": lambda t: [1, 2, 3][t.argmax()],
    "tolist": lambda t: t.tolist(),
    "numpy": lambda t: t.numpy(),
    "cpu": lambda t: t.cpu(),
    "to-cpu": lambda t: t.to("cpu", non_blocking=False),
    "nonzero": lambda t: t.nonzero(),
    "where-of-one": lambda t: torch.where(t > 0),
    "mask": lambda t: t[t > 0],
    "mask-written": lambda t: t.clone().index_put_((t > 0,), t[:1]),
    "masked_select": lambda t: torch.masked_select(t, t > 0),
    "equal": lambda t: torch.equal(t, t),
    "unique": torch.unique,
    "repeat": lambda t: t.repeat_interleave(torch.tensor([1, 0, 2])),
}
FREE: dict[str, Callable[[torch.Tensor], Any]] = {
    "arithmetic": lambda t: (t * 2 + 1).cumsum(0).clamp_min(0).softmax(0),
    "rows": lambda t: t[torch.tensor([2, 0])],
    "rows-written": lambda t: t.clone().index_put_((torch.tensor([1]),), t[:1]),
    "mask-filled-with-a-number": lambda t: t.clone().__setitem__(t > 0, 0.0),
    "where": lambda t: torch.where(t > 0, t, 0.0),
    "repeat-of-a-known-number": lambda t: t.repeat_interleave(3, dim=0),
    "of-the-host": lambda _t: torch.tensor([True, False]),
    "shape": lambda t: len(t) + t.numel() + t.shape[0],
    "to-another-dtype": lambda t: t.to(torch.int32).long(),
}


@pytest.mark.usefixtures("switched_on")
class TestOnCpu:
    @pytest.mark.parametrize("name", WAITS)
    def test_what_would_wait_is_refused_with_the_sections_name(self, name: str) -> None:
        with section("the accept step"), pytest.raises(HostWaitError, match="in the accept step"):
            WAITS[name](NUMBERS)

    @pytest.mark.parametrize("name", FREE)
    def test_what_would_not_wait_passes(self, name: str) -> None:
        with section("the accept step"):
            FREE[name](NUMBERS)

    def test_an_exemption_ends_with_its_block(self) -> None:
        with section("a round"):
            with exempt("reading a prompt"):
                assert NUMBERS.tolist() == [1, -2, 3]
                with exempt("within another"):
                    assert NUMBERS[0].item() == 1
                assert float(NUMBERS[1]) == -2
            with pytest.raises(HostWaitError):
                NUMBERS.tolist()

    def test_an_exemption_ends_with_an_error_too(self) -> None:
        with section("a round"):
            with pytest.raises(KeyError), exempt("reading a prompt"):
                raise KeyError
            with pytest.raises(HostWaitError):
                NUMBERS.tolist()

    def test_outside_of_sections_anything_may_wait(self) -> None:
        with section("a round"):
            pass
        for wait in WAITS.values():
            wait(NUMBERS)


def test_switched_off_nothing_is_watched() -> None:
    assert not no_sync._Watch.is_on
    with section("a round"), exempt("a reason"):
        for wait in WAITS.values():
            wait(NUMBERS)


@pytest.mark.usefixtures("switched_on")
def test_on_cuda_torch_watches(monkeypatch: pytest.MonkeyPatch) -> None:
    """And nothing else: a tensor on the host may be read."""
    modes = ["warn"]
    cuda = SimpleNamespace(
        is_available=lambda: True, get_sync_debug_mode=lambda: modes[-1], set_sync_debug_mode=modes.append
    )
    monkeypatch.setattr(no_sync.torch, "cuda", cuda)
    with section("a round"):
        assert modes[-1] == "error"
        NUMBERS.tolist()
        with exempt("a reason"):
            assert modes[-1] == "default"
        assert modes[-1] == "error"
    assert modes[-1] == "warn"
    with pytest.raises(KeyError), section("a round"):
        raise KeyError
    assert modes[-1] == "warn"
