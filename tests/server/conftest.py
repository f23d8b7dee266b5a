"""Servers and media that the tests in this folder share. A configuration is started once a session."""

from __future__ import annotations

import base64
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from transformers import AutoTokenizer

from tests.server.prompts import situations
from tests.server.serving import PLAIN_ARGS, ROOT, Pair, Server, lvspec_args, start


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if "tests/server/" in item.nodeid:
            item.add_marker(pytest.mark.server)


@pytest.fixture(scope="session")
def pair() -> Pair:
    """The demo pair; LVSPEC_TEST_PAIR names a folder with another `target` and `draft` (and `clips`)."""
    folder = Path(os.environ.get("LVSPEC_TEST_PAIR", ROOT / "demo" / "pair"))
    return Pair(folder / "target", folder / "draft")


@pytest.fixture(scope="session")
def clips(pair: Pair) -> Path:
    """Folder of the sample clips (mp4) and a still (png)."""
    own = pair.target.parent / "clips"
    return own if own.is_dir() else ROOT / "demo" / "clips"


@pytest.fixture(scope="session")
def tokenizer(pair: Pair) -> Any:
    """The target's."""
    return AutoTokenizer.from_pretrained(pair.target)


@pytest.fixture(scope="session")
def log_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where servers write their logs."""
    return tmp_path_factory.mktemp("servers")


@pytest.fixture(scope="session")
def plain_server(pair: Pair, log_dir: Path) -> Iterator[Server]:
    """The target alone: the oracle of every strict comparison."""
    server = start(pair.target, *PLAIN_ARGS, log=log_dir / "plain.log")
    yield server
    server.stop()


@pytest.fixture(scope="session")
def lvspec_server(pair: Pair, log_dir: Path) -> Iterator[Server]:
    """LVSPEC in strict mode with K = 10, four requests at a time."""
    server = start(
        pair.target, *lvspec_args(pair), "--max-running-requests", "4", "--enable-custom-logit-processor",
        "--enable-metrics", log=log_dir / "lvspec.log",
    )  # fmt: skip
    yield server
    server.stop()


@pytest.fixture(scope="session")
def loose_server(pair: Pair, log_dir: Path) -> Iterator[Server]:
    """LVSPEC with the loosest preset and K = 10, four requests at a time; chains end where they do by default.

    Its guard only watches: what one test asks must not change what another is answered.
    """
    server = start(
        pair.target, *lvspec_args(pair), "--lvspec-preset", "paper", "--lvspec-guard", "watch",
        "--max-running-requests", "4", "--enable-metrics", log=log_dir / "loose.log",
    )  # fmt: skip
    yield server
    server.stop()


@pytest.fixture(scope="session")
def videos(clips: Path) -> list[str]:
    """The sample clips as data URLs."""
    paths = sorted(clips.glob("*.mp4"))
    assert len(paths) >= 2, f"{clips} must hold at least two sample clips"
    return [data_url(path, "video/mp4") for path in paths]


@pytest.fixture(scope="session")
def image(clips: Path) -> str:
    """A still as a data URL."""
    return data_url(sorted(clips.glob("*.png"))[0], "image/png")


@pytest.fixture(scope="session")
def requests_by_name(videos: list[str], image: str) -> dict[str, dict[str, Any]]:
    return situations(videos, image)


@pytest.fixture(scope="session")
def plain_answers(plain_server: Server, requests_by_name: dict[str, dict[str, Any]]) -> dict[str, dict]:
    """What the target alone says to every situation."""
    return {name: plain_server.generate(request) for name, request in requests_by_name.items()}


def data_url(path: Path, mime: str) -> str:
    """File as `data:` URL."""
    return f"data:{mime};base64,{base64.b64encode(path.read_bytes()).decode()}"
