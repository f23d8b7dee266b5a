"""One HTTP request as the fuzzer builds it, down to its bytes: nothing on the way mends what is wrong."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from typing import Any

GENERATE, CHAT, COMPLETIONS = "/generate", "/v1/chat/completions", "/v1/completions"
JSON = "application/json"


@dataclass
class Request:
    """What is sent.

    Attributes:
        body: a JSON value; ignored where `raw` is given; None: no body.
        raw: the body's bytes.
        headers: what is sent beside Host and Content-Length; one of these names replaces them.
        may_be_cut: whether the server may close the connection without an answer, because this is no HTTP.
    """

    method: str
    path: str
    body: Any = None
    raw: bytes | None = None
    headers: dict[str, str] = field(default_factory=lambda: {"Content-Type": JSON})
    may_be_cut: bool = False

    @property
    def content(self) -> bytes:
        """The body's bytes. Half a surrogate pair travels as an escape, NaN and infinity as Python writes them."""
        if self.raw is not None:
            return self.raw
        return b"" if self.body is None else json.dumps(self.body).encode()

    @property
    def sampling(self) -> dict[str, Any] | None:
        """Where its sampling parameters stand; None where it has none that could be changed."""
        if not isinstance(self.body, dict) or self.raw is not None:
            return None
        if self.path == GENERATE:
            params = self.body.setdefault("sampling_params", {})
            return params if isinstance(params, dict) else None
        return self.body if self.path in (CHAT, COMPLETIONS) else None

    @property
    def is_stream(self) -> bool:
        """Whether its answer comes as events."""
        return isinstance(self.body, dict) and self.body.get("stream") is True and self.raw is None

    def wire(self, host: str) -> bytes:
        """All of it, as HTTP/1.1."""
        content = self.content
        headers = {"Host": host, "Connection": "close"}
        if content or self.method in ("POST", "PUT", "PATCH"):
            headers["Content-Length"] = str(len(content))
        headers |= self.headers
        lines = [f"{self.method} {self.path} HTTP/1.1", *(f"{name}: {value}" for name, value in headers.items())]
        return "\r\n".join([*lines, "", ""]).encode("utf-8", "surrogatepass") + content

    def __str__(self) -> str:
        """For a person, long ones cut."""
        text = self.content[:2000].decode("utf-8", "backslashreplace")
        return f"{self.method} {self.path} {text}{' ...' if len(self.content) > 2000 else ''}"
