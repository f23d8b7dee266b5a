"""Which cores each rank of a CPU server runs on, where the user has not said so.

SGLang binds a CPU's ranks by NUMA node and refuses more ranks than nodes, unless SGLANG_CPU_OMP_THREADS_BIND names the
cores of each (srt/utils/numa_utils.py:454). Set in the main process, before the ranks are started.
"""

from __future__ import annotations

import itertools
import logging
import os
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from sglang.srt.server_args import ServerArgs

logger = logging.getLogger(__name__)

BIND, THREADS = "SGLANG_CPU_OMP_THREADS_BIND", "OMP_NUM_THREADS"
_NODES = Path("/sys/devices/system/node")

_set_here: dict[str, str] = {}  # what this process set for its last server: the next one may have other ranks


def bind(server_args: ServerArgs) -> None:
    """Share the cores that this process may use among the server's ranks; what the user has set stays.

    A server with one rank is left alone, and so is one whose ranks SGLang gives a NUMA node each.
    """
    for name, value in _set_here.items():
        if os.environ.get(name) == value:
            del os.environ[name]
    _set_here.clear()
    num_ranks = server_args.tp_size * server_args.pp_size * server_args.dp_size // server_args.nnodes
    if num_ranks < 2 or BIND in os.environ:
        return
    allowed, nodes = os.sched_getaffinity(0), nodes_of_machine()
    if num_ranks <= len(nodes) and allowed.issuperset(core for node in nodes for core in node):
        return
    cores = [core for node in nodes for core in node if core in allowed]
    shares = share(cores or sorted(allowed), num_ranks)
    first, step = server_args.base_gpu_id, server_args.gpu_id_step  # SGLang looks a rank up by its device's number
    entries = [shares[(number - first) // step % num_ranks] for number in range(first + (num_ranks - 1) * step + 1)]
    _set(BIND, "|".join(",".join(map(str, entry)) for entry in entries))
    _set(THREADS, str(min(map(len, shares))))  # else every rank starts a thread for every core of the machine
    logger.info(
        "LVSPEC: %d ranks on the CPU: %s=%s and %s=%s unless set.",
        num_ranks, BIND, os.environ[BIND], THREADS, os.environ[THREADS],
    )  # fmt: skip
    if len(allowed) < num_ranks:
        logger.warning("LVSPEC: %d ranks share %d cores and wait for each other.", num_ranks, len(allowed))
    if server_args.max_total_tokens is None:
        logger.warning(
            "LVSPEC: each of %d ranks would size its KV pool by all of the memory; name --max-total-tokens.", num_ranks
        )


def share(cores: Sequence[int], num_ranks: int) -> list[list[int]]:
    """Neighbouring cores for each rank, as many for one as for another but for one core; fewer cores are shared."""
    if len(cores) < num_ranks:
        return [[cores[rank % len(cores)]] for rank in range(num_ranks)]
    ends = [rank * len(cores) // num_ranks for rank in range(num_ranks + 1)]
    return [list(cores[start:end]) for start, end in itertools.pairwise(ends)]


def nodes_of_machine(folder: Path = _NODES) -> list[list[int]]:
    """Cores of each NUMA node in order; no nodes where the kernel tells of none."""
    found = {int(path.parent.name.removeprefix("node")): path for path in folder.glob("node[0-9]*/cpulist")}
    lists = [_cores_in(found[number].read_text()) for number in sorted(found)]
    return [cores for cores in lists if cores]


def _cores_in(text: str) -> list[int]:
    """`0-2,8` as numbers."""
    parts = [part.partition("-") for part in text.strip().split(",") if part]
    return [core for first, _, last in parts for core in range(int(first), int(last or first) + 1)]


def _set(name: str, value: str) -> None:
    if name not in os.environ:
        os.environ[name] = _set_here[name] = value
