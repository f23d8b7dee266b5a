"""A server whose requests go past the main process is refused, with the flag that sends them there."""

from __future__ import annotations

from typing import Any

import pytest

pytest.importorskip("sglang")

from sgl_lvspec import main_process
from tests.sgl_lvspec.main_process_args import server_args

TOKENIZING = [
    ("tokenizer_worker_num", 2, "--tokenizer-worker-num"),
    ("smg_grpc_mode", True, "--smg-grpc-mode"),
    ("grpc_mode", True, "--grpc-mode"),
]
MEDIA = [("encoder_only", True, "--encoder-only"), ("language_only", True, "--language-only")]


@pytest.mark.parametrize("with_media", [False, True])
def test_usual_server_passes(with_media: bool) -> None:
    main_process.require(server_args(), "It", "do that", with_media=with_media)


@pytest.mark.parametrize(("field", "value", "flag"), TOKENIZING + MEDIA)
def test_flag_is_named(field: str, value: Any, flag: str) -> None:
    with pytest.raises(ValueError, match=rf"^It needs {flag} at .*; found {value}\. Drop {flag}, or do that\.$"):
        main_process.require(server_args(**{field: value}), "It", "do that", with_media=True)


@pytest.mark.parametrize(("field", "value", "_flag"), MEDIA)
def test_media_elsewhere_matter_only_to_media(field: str, value: Any, _flag: str) -> None:
    main_process.require(server_args(**{field: value}), "It", "do that")


def test_the_rust_server_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SGLANG_RUST_SERVER", "1")
    with pytest.raises(ValueError, match=r"^It needs SGLang's Python server.* found SGLANG_RUST_SERVER set\."):
        main_process.require(server_args(), "It", "do that")
