"""Placeholder until the request checks land."""

from __future__ import annotations

from typing import Any


def install(_server_args: Any) -> None:
    """Nothing yet."""
