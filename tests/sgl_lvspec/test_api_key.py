"""Keys are told to nobody; who opens a server to others without one is warned."""

from __future__ import annotations

import logging
from types import SimpleNamespace
from typing import Any

import pytest

pytest.importorskip("sglang")

from sglang.srt.entrypoints import engine

from sgl_lvspec import api_key

SECRET, ADMIN = "s3cret-key", "s3cret-key-of-the-admin"


def server(host: str = "127.0.0.1", key: str | None = None) -> Any:
    return SimpleNamespace(host=host, api_key=key)


@pytest.fixture(autouse=True)
def _installed() -> None:
    api_key.install(server())
    api_key.install(server())


@pytest.mark.parametrize(
    "arguments",
    [
        {"api_key": SECRET, "admin_api_key": ADMIN},
        {"api_key": None, "admin_api_key": ADMIN},
        {"api_key": SECRET, "launch_command": f"launch_server --api-key {SECRET} --port 1"},
        {"api_key": SECRET, "admin_api_key": ADMIN, "launch_command": f"x --admin-api-key={ADMIN} --api-key={SECRET}"},
    ],
)
def test_the_log_has_no_key(arguments: dict[str, Any]) -> None:
    """By the function that SGLang's log lines are made with."""
    told = engine._server_args_for_logging(SimpleNamespace(resolved_dict=lambda: {"port": 1, **arguments}))  # type: ignore[arg-type]
    assert SECRET not in str(told)
    assert told["port"] == 1
    assert {name: told[name] for name in arguments if arguments[name] is None} == dict.fromkeys(
        name for name in arguments if arguments[name] is None
    )
    assert arguments.get("api_key") != api_key.REDACTED, "the server's own arguments stay"


def test_what_has_no_key_stays_as_it_is() -> None:
    for told in ({"api_key": None, "launch_command": "x"}, {"port": 1}, ["api_key"], None):
        assert api_key.redact_keys(told, told) is told


@pytest.mark.parametrize(
    ("host", "key", "is_warned"),
    [
        ("127.0.0.1", None, False), ("127.0.0.2", None, False), ("localhost", None, False), ("::1", None, False),
        ("[::1]", None, False), ("0.0.0.0", "k", False), ("0.0.0.0", None, True), ("::", None, True),
        ("192.168.0.7", None, True), ("a-name", None, True), ("", None, True),
    ],
)  # fmt: skip
def test_open_doors(host: str, key: str | None, is_warned: bool, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING, "sgl_lvspec.api_key"):
        api_key.install(server(host, key))
    assert [f"listens on {host} without an API key" in line for line in caplog.messages] == [True] * is_warned
