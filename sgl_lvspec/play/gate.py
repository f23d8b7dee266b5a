"""Who may talk to the companion, and how much they may send; what every answer tells the browser.

A page of another site may send requests to a port of this machine, and a name that it owns may come to mean 127.0.0.1
(DNS rebinding). So a request must name a host that is ours, and must come from our own page or from no page at all.
"""

from __future__ import annotations

import ipaddress
import json
from collections.abc import Callable, Collection, Mapping
from http import HTTPStatus
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from starlette.types import ASGIApp, Message, Receive, Scope, Send

LOOPBACK = frozenset({"127.0.0.1", "localhost", "::1"})
API = "/api/"
HEADERS: Mapping[str, str] = {
    # Nothing from anywhere else; blob: is a clip that the user has chosen, data: the page's own small pictures.
    "content-security-policy": (
        "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' blob: data:; media-src 'self' blob:; "
        "connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
    ),
    "x-content-type-options": "nosniff",
    "referrer-policy": "no-referrer",
    "cross-origin-resource-policy": "same-origin",
    "cross-origin-opener-policy": "same-origin",
    "cache-control": "no-store",
}


class Gate:
    """ASGI middleware in front of the app.

    Args:
        hosts: names that the companion is reached by.
        takes_addresses: whether any IP address will do, too: nobody can rebind one, and a companion that listens on all
            of a machine's addresses cannot tell which of them somebody uses.
        limit_of: the longest body in bytes that a path takes; `remedy_of`: what to do about a longer one.
    """

    def __init__(
        self,
        app: ASGIApp,
        *,
        hosts: Collection[str],
        takes_addresses: bool,
        limit_of: Callable[[str], int],
        remedy_of: Callable[[str], str],
    ) -> None:
        self._app = app
        self._hosts = {name.lower() for name in hosts}
        self._takes_addresses = takes_addresses
        self._limit_of = limit_of
        self._remedy_of = remedy_of

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass the request on, or refuse it."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return

        async def send_with_headers(message: Message) -> None:
            if message["type"] == "http.response.start":
                ours = [(name.encode(), value.encode()) for name, value in HEADERS.items()]
                message = {**message, "headers": [*message.get("headers", ()), *ours]}
            await send(message)

        headers = {name.decode("latin-1"): value.decode("latin-1") for name, value in scope["headers"]}
        refusal = self._refusal(scope["method"], scope["path"], headers)
        if refusal is None:
            await self._app(scope, receive, send_with_headers)
            return
        status, message = refusal
        body = json.dumps({"error": message}).encode()
        start = [(b"content-type", b"application/json"), (b"content-length", str(len(body)).encode())]
        await send_with_headers({"type": "http.response.start", "status": int(status), "headers": start})
        await send_with_headers({"type": "http.response.body", "body": body})

    def _refusal(self, method: str, path: str, headers: Mapping[str, str]) -> tuple[HTTPStatus, str] | None:
        """Status and what a person is told; None where the request may pass."""
        host = headers.get("host", "")
        if not self._is_ours(host_name(host)):
            return HTTPStatus.FORBIDDEN, (
                f"This page answers to {', '.join(sorted(self._hosts))}; found the host {host!r}. "
                "Use one of these, or start lvspec play with --allow-host NAME."
            )
        origin = headers.get("origin")
        if origin is not None and origin not in (f"http://{host}", f"https://{host}"):
            return HTTPStatus.FORBIDDEN, f"Only this page may ask; found a request of {origin}."
        if path.startswith(API) and headers.get("sec-fetch-site", "none") not in ("same-origin", "none"):
            return HTTPStatus.FORBIDDEN, "Only this page may ask; found a request of another site."
        if method not in ("GET", "HEAD"):
            return self._too_long(path, headers)
        return None

    def _too_long(self, path: str, headers: Mapping[str, str]) -> tuple[HTTPStatus, str] | None:
        """Judges what is declared, before anything is read: the HTTP server hands on no more than that."""
        declared = headers.get("content-length", "")
        if not declared.isdecimal():
            return HTTPStatus.LENGTH_REQUIRED, "A request must declare its length; found none. Send Content-Length."
        limit = self._limit_of(path)
        if int(declared) > limit:
            return HTTPStatus.REQUEST_ENTITY_TOO_LARGE, (
                f"At most {in_mb(limit)} can be sent here; found {in_mb(int(declared))}. {self._remedy_of(path)}"
            )
        return None

    def _is_ours(self, name: str) -> bool:
        return name in self._hosts or (self._takes_addresses and is_address(name))


def host_name(host: str) -> str:
    """Name in a Host header, without port and brackets. Any port will do: ports may be forwarded."""
    if host.startswith("["):
        return host[1:].partition("]")[0].lower()
    return host.partition(":")[0].lower()


def is_address(name: str) -> bool:
    """Whether it is an IP address rather than a name."""
    try:
        ipaddress.ip_address(name)
    except ValueError:
        return False
    return True


def in_mb(num_bytes: int) -> str:
    """A size for a person."""
    return f"{num_bytes / 2**20:.1f} MB"


def gate_options(host: str, allowed: Collection[str]) -> dict[str, Any]:
    """`hosts` and `takes_addresses` of a companion that listens on `host`.

    Args:
        allowed: further names that it is reached by.
    """
    is_loopback = host.lower() in LOOPBACK
    return {"hosts": LOOPBACK | {host} | set(allowed), "takes_addresses": not is_loopback}
