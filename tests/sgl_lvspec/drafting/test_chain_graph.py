"""When a GPU's draft steps are a graph, when the loop, and that neither part of ours waits for the device."""

from __future__ import annotations

from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from sgl_lvspec.config import LVSpecConfig
from sgl_lvspec.context import pool as pool_module
from sgl_lvspec.drafting import chain as chain_module
from sgl_lvspec.graphs import no_sync
from sgl_lvspec.graphs.no_sync import HostWaitError
from tests.sgl_lvspec.context.world import WIDTH, World
from tests.sgl_lvspec.drafting.test_chain import ForwardBatch, K, V, Worker

TOKENS = torch.tensor([1, 30])


class Graph:
    """A graph of the steps that drafts something of its own."""

    def __init__(self, fits: bool = True) -> None:
        self.fits = fits
        self.asked: list[tuple[Any, ...]] = []
        self.chain = torch.full((2, K), 9)

    def can_run(self, _batch: Any) -> bool:
        return self.fits

    def run(self, batch: Any, tokens: torch.Tensor, slots: torch.Tensor, one_by_one: Callable[[], Any]) -> Any:
        self.asked.append((batch, tokens, slots, one_by_one))
        return self.chain


def test_a_batch_with_a_graph_is_replayed() -> None:
    worker, batch, graph = Worker(), ForwardBatch([20, 4], is_mrope=True), Graph()
    worker.draft_graph = graph  # type: ignore[assignment]
    assert worker._run_chain(batch, TOKENS) is graph.chain  # type: ignore[arg-type]
    assert worker.seen == [] and worker.planned == []
    ((given, tokens, slots, one_by_one),) = graph.asked
    assert given is batch and tokens is TOKENS
    assert slots.tolist() == [[1000, 1001, 1002, 1003], [1004, 1005, 1006, 1007]]
    assert one_by_one().tolist() == [[8, 15, 22], [37, 44, 1]], "what a new graph is compared with"


def test_a_batch_without_one_goes_step_by_step() -> None:
    worker, graph = Worker(), Graph(fits=False)
    worker.draft_graph = graph  # type: ignore[assignment]
    chain = worker._run_chain(ForwardBatch([20, 4], is_mrope=True), TOKENS)  # type: ignore[arg-type]
    assert chain.tolist() == [[8, 15, 22], [37, 44, 1]]
    assert graph.asked == []


@pytest.mark.parametrize(
    ("device", "setting", "sglang_captures", "expected"),
    [
        ("cuda", "on", True, True),
        ("cuda", "off", True, False),
        ("cuda", "on", False, False),
        ("cpu", "on", True, False),
    ],
)
def test_steps_are_captured_on_a_gpu_where_sglang_captures_decode_steps(
    monkeypatch: pytest.MonkeyPatch, device: str, setting: str, sglang_captures: bool, expected: bool
) -> None:
    worker, asked = Worker(), []
    worker.device = device
    worker.server_args = SimpleNamespace(_lvspec=LVSpecConfig(draft_graph=setting))
    is_disabled = not sglang_captures
    monkeypatch.setattr(
        chain_module,
        "check_cuda_graph_backend",
        lambda phase, kind: (phase, kind) == ("decode", "disabled") and is_disabled,
    )
    monkeypatch.setattr(
        chain_module, "DraftGraph", SimpleNamespace(capture=lambda *args: asked.append(args) or "graphs")
    )
    worker._capture_cuda_graphs()
    assert worker.draft_graph == ("graphs" if expected else None)
    assert asked == ([(worker.draft_runner, worker.draft_attn_backend, K + 1)] if expected else [])
    assert worker.cuda_graph_runner is None and worker.cuda_graph_runner_for_draft_extend is None


class Silent(Worker):
    """Its draft writes nothing down, which would be a wait of its own."""

    def forward(self, batch: Any) -> SimpleNamespace:
        logits = ((batch.input_ids[:, None] + 7) % V == torch.arange(V)).float()
        self.wait(logits)
        return SimpleNamespace(logits_output=SimpleNamespace(next_token_logits=logits))

    def wait(self, logits: torch.Tensor) -> None:
        """Nothing, unless a test puts something here."""


@pytest.fixture
def watched(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(no_sync._Watch, "is_on", False)
    no_sync.switch_on()


@pytest.mark.usefixtures("watched")
class TestWaits:
    def test_the_steps_do_not_wait(self) -> None:
        """SGLang's plan of their attention may: here it reads the lengths."""
        worker = Silent()
        chain = worker._run_chain(ForwardBatch([20, 4], is_mrope=True), TOKENS)  # type: ignore[arg-type]
        assert chain.tolist() == [[8, 15, 22], [37, 44, 1]]
        assert len(worker.planned) == 1

    def test_finding_the_chains_slots_does_not_wait(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """But for the rows' definition on CPU, which reads them on the host; on CUDA that is a kernel."""
        draft_rows = pool_module.draft_rows

        def by_definition(*args: Any) -> None:
            with no_sync.exempt("the definition on CPU"):
                draft_rows(*args)

        monkeypatch.setattr(pool_module, "draft_rows", by_definition)
        pool = World().pool
        rows = torch.tensor([1, 2])
        with no_sync.section("placing"):
            lens = pool.rebuild(rows, torch.tensor([4, 6]))
            placed = pool.place_chain(rows, lens, torch.arange(10, 10 + 2 * WIDTH).view(2, WIDTH))
        assert placed.shape == (2, WIDTH) and len(set(placed.flatten().tolist())) == 2 * WIDTH

    def test_a_wait_between_two_steps_is_an_error(self) -> None:
        worker = Silent()
        worker.wait = lambda logits: logits.argmax().item()  # type: ignore[assignment,method-assign]
        with pytest.raises(HostWaitError, match="the draft's steps"):
            worker._run_chain(ForwardBatch([20, 4], is_mrope=True), TOKENS)  # type: ignore[arg-type]

    def test_outside_of_the_steps_the_host_may_read(self) -> None:
        Silent()._run_chain(ForwardBatch([20, 4], is_mrope=False), TOKENS)  # type: ignore[arg-type]
        assert TOKENS.tolist() == [1, 30]
