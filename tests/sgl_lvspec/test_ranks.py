"""Cores of the ranks of a CPU server, where the user has not named any."""

from __future__ import annotations

import os
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from sglang.srt.server_args import ServerArgs

from sgl_lvspec import flags, ranks, startup


@pytest.fixture(autouse=True)
def unset(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ranks, "_set_here", {})
    for name in (ranks.BIND, ranks.THREADS):
        monkeypatch.setenv(name, "for the undoing")
        monkeypatch.delenv(name)


def _machine(monkeypatch: pytest.MonkeyPatch, nodes: list[list[int]], allowed: set[int] | None = None) -> None:
    every = {core for node in nodes for core in node}
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: every if allowed is None else allowed)
    monkeypatch.setattr(ranks, "nodes_of_machine", lambda: nodes)


def _server(**fields: Any) -> Any:
    one = {"tp_size": 1, "pp_size": 1, "dp_size": 1, "nnodes": 1, "base_gpu_id": 0, "gpu_id_step": 1}
    return SimpleNamespace(**{**one, "max_total_tokens": 16384, **fields})


@pytest.mark.parametrize(
    ("server", "nodes", "allowed", "bound", "threads"),
    [
        ({"tp_size": 2}, [[0, 1]], None, "0|1", "1"),
        ({"dp_size": 2}, [[0, 1]], None, "0|1", "1"),
        ({"tp_size": 2, "dp_size": 2}, [[0, 1, 2, 3, 4, 5, 6, 7]], None, "0,1|2,3|4,5|6,7", "2"),
        ({"tp_size": 3}, [[0, 1, 2, 3, 4, 5, 6, 7]], None, "0,1|2,3,4|5,6,7", "2"),
        # Neighbours are neighbours on a node, whatever their numbers (hyper-threads have high ones).
        ({"tp_size": 4}, [[0, 1, 4, 5], [2, 3, 6, 7]], None, "0,1|4,5|2,3|6,7", "2"),
        # A container with some of the machine's cores.
        ({"tp_size": 2}, [[0, 1, 2, 3], [4, 5, 6, 7]], {2, 3, 6}, "2|3,6", "1"),
        # Two machines with two ranks each.
        ({"tp_size": 4, "nnodes": 2}, [[0, 1]], None, "0|1", "1"),
        # SGLang looks entries up by the number of the device.
        ({"tp_size": 2, "base_gpu_id": 1, "gpu_id_step": 2}, [[0, 1, 2, 3]], None, "2,3|0,1|0,1|2,3", "2"),
        # The kernel says nothing of nodes.
        ({"tp_size": 2}, [], {0, 1}, "0|1", "1"),
    ],
)
def test_ranks_share_the_cores_that_this_process_may_use(
    monkeypatch: pytest.MonkeyPatch, server: dict, nodes: list, allowed: set | None, bound: str, threads: str
) -> None:
    _machine(monkeypatch, nodes, allowed)
    ranks.bind(_server(**server))
    assert os.environ[ranks.BIND] == bound
    assert os.environ[ranks.THREADS] == threads


def test_one_line_says_so(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    _machine(monkeypatch, [[0, 1]])
    with caplog.at_level("INFO"):
        ranks.bind(_server(tp_size=2))
    assert caplog.messages == [
        "LVSPEC: 2 ranks on the CPU: SGLANG_CPU_OMP_THREADS_BIND=0|1 and OMP_NUM_THREADS=1 unless set."
    ]


@pytest.mark.parametrize(
    ("server", "nodes"),
    [({}, [[0, 1]]), ({"tp_size": 2}, [[0, 1], [2, 3]]), ({"tp_size": 2, "nnodes": 2}, [[0, 1]])],
    ids=["one rank", "a node for each rank", "one rank on each machine"],
)
def test_what_sglang_binds_itself_is_left_to_it(monkeypatch: pytest.MonkeyPatch, server: dict, nodes: list) -> None:
    _machine(monkeypatch, nodes)
    ranks.bind(_server(**server))
    assert ranks.BIND not in os.environ
    assert ranks.THREADS not in os.environ


def test_what_the_user_set_stays(monkeypatch: pytest.MonkeyPatch) -> None:
    _machine(monkeypatch, [[0, 1]])
    monkeypatch.setenv(ranks.THREADS, "5")
    ranks.bind(_server(tp_size=2))
    assert (os.environ[ranks.BIND], os.environ[ranks.THREADS]) == ("0|1", "5")
    monkeypatch.setenv(ranks.BIND, "1|0")
    ranks.bind(_server(tp_size=2))
    assert (os.environ[ranks.BIND], os.environ[ranks.THREADS]) == ("1|0", "5")


def test_the_next_server_of_a_process_is_bound_by_its_own_ranks(monkeypatch: pytest.MonkeyPatch) -> None:
    _machine(monkeypatch, [[0, 1, 2, 3]])
    ranks.bind(_server(tp_size=2))
    ranks.bind(_server(tp_size=4))
    assert (os.environ[ranks.BIND], os.environ[ranks.THREADS]) == ("0|1|2|3", "1")
    ranks.bind(_server())
    assert ranks.BIND not in os.environ
    assert ranks.THREADS not in os.environ


@pytest.mark.parametrize(
    ("server", "warning"),
    [
        ({"tp_size": 3}, "LVSPEC: 3 ranks share 2 cores and wait for each other."),
        (
            {"tp_size": 2, "max_total_tokens": None},
            "LVSPEC: each of 2 ranks would size its KV pool by all of the memory; name --max-total-tokens.",
        ),
    ],
)
def test_what_ends_badly_is_a_warning(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, server: dict, warning: str
) -> None:
    _machine(monkeypatch, [[0, 1]])
    ranks.bind(_server(**server))
    assert [entry.message for entry in caplog.records if entry.levelname == "WARNING"] == [warning]
    assert os.environ[ranks.BIND] in ("0|1", "0|1|0")


def test_nodes_are_read_in_order_and_without_those_that_have_memory_alone(tmp_path: Path) -> None:
    for number, text in (("10", "6\n"), ("2", "4-5\n"), ("0", "0-1,3\n"), ("1", "\n")):
        folder = tmp_path / f"node{number}"
        folder.mkdir()
        (folder / "cpulist").write_text(text)
    assert ranks.nodes_of_machine(tmp_path) == [[0, 1, 3], [4, 5], [6]]
    assert ranks.nodes_of_machine(tmp_path / "none") == []


@pytest.mark.parametrize(("device", "is_bound"), [("cpu", True), ("cuda", False), (None, False)])
def test_an_arm_without_speculation_is_bound_alike(
    monkeypatch: pytest.MonkeyPatch, device: str | None, is_bound: bool
) -> None:
    """`make serve SPEC=none` names --lvspec-video-time and --device cpu."""
    _machine(monkeypatch, [[0, 1]])
    server = _server(tp_size=2, device=device, speculative_algorithm=None, model_path="target")
    flags.attach(server, {"video_time": "upstream"})
    assert (ranks.BIND in os.environ) == is_bound
    monkeypatch.delenv(ranks.BIND, raising=False)
    flags.attach(server, {})
    assert ranks.BIND not in os.environ, "SGLang as it is, where nothing of ours was named"


@pytest.mark.parametrize(("device", "is_bound"), [("cpu", True), ("cuda", False)])
def test_lvspec_binds_once_the_device_is_known(monkeypatch: pytest.MonkeyPatch, device: str, is_bound: bool) -> None:
    _machine(monkeypatch, [[0, 1]])
    defaults = ServerArgs(model_path="target", device=device)
    fields = {name: getattr(defaults, name) for name in ServerArgs.__struct_fields__}
    startup.set_defaults(SimpleNamespace(**fields | {"dp_size": 2}))  # type: ignore[arg-type]
    assert (os.environ.get(ranks.BIND) == "0|1") == is_bound
