"""Entry point by which SGLang loads the sabotage into every process of one server: see `environment`.

Lines of JSON tell what was seen inside: the pools and the memory of a process that was told to tidy up, and whatever
the watch in the scheduler (`watch`) finds wrong.
"""

from __future__ import annotations

import ctypes
import gc
import json
import os
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psutil

from bench import server_plugin
from bench.torture.clocks import shift_clocks
from bench.torture.switchboard import Switchboard

FOLDER = "LVSPEC_TORTURE_FOLDER"  # where switchboard and lines are
SEED = "LVSPEC_TORTURE_SEED"
LINES = "inside.jsonl"
_POLL_S = 0.2

pools: Callable[[], dict[str, int]] | None = None  # of this process's scheduler, once it has one


def environment(folder: Path, seed: int) -> dict[str, str]:
    """Environment of a server that is sabotaged through `folder`, with the repository on its path."""
    (folder / LINES).touch()
    Switchboard(board_of(folder))
    return {**server_plugin.environment(folder, __name__), FOLDER: str(folder), SEED: str(seed)}


def board_of(folder: Path) -> Path:
    """Where the switchboard of a folder is."""
    return folder / "switchboard"


def read(folder: Path, kind: str) -> list[dict[str, Any]]:
    """All lines of a kind so far."""
    lines = (json.loads(line) for line in (folder / LINES).read_text().splitlines())
    return [line for line in lines if line["kind"] == kind]


def write(**facts: Any) -> None:
    """A line; called inside a server."""
    with (Path(os.environ[FOLDER]) / LINES).open("a") as sink:
        sink.write(json.dumps({"pid": os.getpid(), **facts}) + "\n")


def load() -> None:
    """Called by SGLang in each of its processes."""
    from bench.torture import saboteur

    write(kind="loaded")
    board = Switchboard(board_of(Path(os.environ[FOLDER])))
    shift_clocks(board)
    threading.Thread(target=_tidy_when_told, args=(board,), daemon=True).start()
    saboteur.install(board, int(os.environ[SEED]))


def _tidy_when_told(board: Switchboard) -> None:
    libc, pause, done = ctypes.CDLL(None), threading.Event(), board.read("tidy")
    while True:
        pause.wait(_POLL_S)
        told = board.read("tidy")
        if told == done:
            continue
        done = told
        gc.collect()
        if hasattr(libc, "malloc_trim"):
            libc.malloc_trim(0)
        facts = {} if pools is None else pools()
        write(kind="tidy", number=int(told), resident=psutil.Process().memory_info().rss, **facts)
