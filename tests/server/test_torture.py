"""The torture bench for a minute: a server of its own that is sabotaged, and the target alone to judge it by."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from bench.torture import plugin
from bench.torture.faults import FAULTS, settings_of_server
from bench.torture.media import Media
from bench.torture.run import SERVER_PRESET, Limits, plan_of, run, words_of
from tests.server.serving import Pair, Server, lvspec_args, start

SEED = 5
REQUESTS = 120
BLOCK = 50  # requests in which every scheduled fault comes


class Tortured(NamedTuple):
    server: Server
    folder: Path


@pytest.fixture(scope="module")
def tortured(pair: Pair, log_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Tortured]:
    folder = tmp_path_factory.mktemp("torture")
    flags, environment = settings_of_server(())
    server = start(
        pair.target, *lvspec_args(pair), "--lvspec-preset", SERVER_PRESET, "--enable-metrics", *flags,
        log=log_dir / "torture.log", env={**plugin.environment(folder, SEED), **environment},
    )  # fmt: skip
    yield Tortured(server, folder)
    server.stop()


@pytest.fixture(scope="module")
def found(tortured: Tortured, plain_server: Server, pair: Pair, clips: Path) -> dict[str, Any]:
    words = words_of(pair.target)
    plan = plan_of(SEED, Media.of_files(clips), words, questions=80, block=BLOCK, without=())
    # Memory is not judged: a minute fills no cache, so whatever it grows by says nothing.
    limits = Limits(first=0, last=REQUESTS, seconds=600.0, least=0, waves=1, clients=6, memory=None)
    server, folder = tortured
    return run(server.url, plain_server.url, server.log, folder, plan, words, limits, print)


def test_nothing_is_wrong(found: dict[str, Any]) -> None:
    assert found["failed"] == 0, json.dumps([*found["wrong"], *found["failures"]], indent=1)


def test_what_was_promised_was_asked(found: dict[str, Any]) -> None:
    assert found["requests"] == REQUESTS
    assert found["kinds"]["strict"] > REQUESTS / 2
    assert found["outcomes"]["strict, equal to the target's own"] > REQUESTS / 4
    assert set(found["outcomes"]) >= {"loose, bounds kept", "sampled, bounds kept", "refused with a 400"}


@pytest.mark.parametrize("fault", FAULTS)
def test_every_fault_happened(fault: str, found: dict[str, Any]) -> None:
    (row,) = (row for row in found["faults"] if row["fault"] == fault)
    assert row["times"] > 0 and row["hit"] > 0, row
