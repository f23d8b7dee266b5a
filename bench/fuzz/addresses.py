"""A web server on loopback that serves media badly, and addresses that lead to it or nowhere; to no other host."""

from __future__ import annotations

import contextlib
import gzip
import http.server
import random
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cache
from urllib.parse import urlsplit

from bench.fuzz import media
from bench.fuzz.values import STRINGS

HANG_S = 25.0  # longer than a server should wait for the first byte
DRIP_S = 12.0
HUGE = 2**36


class Handler(http.server.BaseHTTPRequestHandler):
    """Each path is one way to fail; `/good.mp4` and `/good.png` do not."""

    protocol_version = "HTTP/1.1"

    def do_GET(self) -> None:
        """What the path's last part names."""
        name = urlsplit(self.path).path.rpartition("/")[2].partition(".")[0]
        wants_image = ".png" in self.path
        content = media.image() if wants_image else media.video()
        self.close_connection = True
        with contextlib.suppress(OSError):  # whoever asked has gone
            ANSWERS.get(name, _absent)(self, content)

    def do_HEAD(self) -> None:
        """The same."""
        self.do_GET()

    def send(self, content: bytes, status: int = 200, **headers: str) -> None:
        """An answer, with headers in place of the usual ones."""
        self.send_response(status)
        named = {name.replace("_", "-"): value for name, value in headers.items()}
        for name, value in ({"Content-Length": str(len(content))} | named).items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(content)

    def log_message(self, *_: object) -> None:
        """Keeps the fuzzer's own output readable."""


def _absent(handler: Handler, _: bytes) -> None:
    handler.send(b"there is none", 404)


def _drip(handler: Handler, content: bytes) -> None:
    handler.send(content[:1], Content_Length=str(len(content)))
    until = time.monotonic() + DRIP_S
    while time.monotonic() < until:
        handler.wfile.write(b"\0")
        time.sleep(0.5)


def _hang(handler: Handler, _: bytes) -> None:
    time.sleep(HANG_S)


def _hang_inside(handler: Handler, content: bytes) -> None:
    handler.send(content[:100], Content_Length=str(len(content)))
    time.sleep(HANG_S)


@cache
def _bomb() -> bytes:
    return gzip.compress(bytes(80 * 2**20), 6)


ANSWERS: dict[str, Callable[[Handler, bytes], None]] = {
    "good": lambda handler, content: handler.send(content),
    "empty": lambda handler, _: handler.send(b""),
    "forbidden": lambda handler, _: handler.send(b"no", 403),
    "broken": lambda handler, _: handler.send(b"no", 500),
    "nothing": lambda handler, _: handler.send(b"", 204),
    "part": lambda handler, content: handler.send(content[:200], 206, Content_Range=f"bytes 0-199/{len(content)}"),
    "odd": lambda handler, content: handler.send(content, 999),
    "moved": lambda handler, _: handler.send(b"", 302, Location="good.mp4"),
    "loop": lambda handler, _: handler.send(b"", 302, Location="loop.mp4"),
    "local": lambda handler, _: handler.send(b"", 302, Location="file:///dev/null"),
    "elsewhere": lambda handler, _: handler.send(b"", 301, Location="ftp://127.0.0.1:9/x.mp4"),
    "blank": lambda handler, _: handler.send(b"", 302, Location=""),
    "longer": lambda handler, content: handler.send(content, Content_Length=str(len(content) + 1000)),
    "shorter": lambda handler, content: handler.send(content, Content_Length="100"),
    "negative": lambda handler, content: handler.send(content, Content_Length="-5"),
    "words": lambda handler, content: handler.send(content, Content_Length="many"),
    "huge": lambda handler, content: handler.send(content, Content_Length=str(HUGE)),
    "chunks": lambda handler, content: handler.send(b"zz\r\n" + content, Transfer_Encoding="chunked"),
    "squeezed": lambda handler, content: handler.send(content, Content_Encoding="gzip"),
    "bomb": lambda handler, _: handler.send(_bomb(), Content_Encoding="gzip"),
    "page": lambda handler, _: handler.send(b"<html>not found</html>", Content_Type="text/html"),
    "silent": lambda handler, _: handler.connection.shutdown(socket.SHUT_RDWR),
    "garbage": lambda handler, _: handler.connection.sendall(b"\x16\x03\x01 no HTTP at all\r\n\r\n"),
    "drip": _drip,
    "hang": _hang,
    "inside": _hang_inside,
}  # fmt: skip
SLOW = frozenset({"drip", "hang", "inside", "bomb"})


@contextmanager
def bad_web_server() -> Iterator[str]:
    """Its URL, without a slash at the end, while it runs."""
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        server.daemon_threads = True
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()


def address(rng: random.Random, base: str, suffix: str) -> str:
    """An address of a file that ends in `suffix`: mostly there, mostly not right.

    Args:
        base: URL of the bad web server.
    """
    port = urlsplit(base).port
    if rng.random() < 0.45:
        name = rng.choice([name for name in ANSWERS if name not in SLOW or rng.random() < 0.08])
        return f"{base}/{name}{suffix}"
    host = f"127.0.0.1:{port}"
    odd = rng.choice(STRINGS)
    return rng.choice(
        (
            f"HTTP://{host}/good{suffix}", f" http://{host}/good{suffix}", f"http://{host}/good{suffix}\n",
            f"http://{host}/{'a' * 9000}{suffix}", f"http://{host}/good{suffix}?q={odd}#x",
            f"http://{host}/%zz%00{suffix}", f"http://{host}/../../good{suffix}", f"http://{host}//good{suffix}",
            f"http://user:word@{host}/good{suffix}", f"http://localhost:{port}/good{suffix}",
            f"http://2130706433:{port}/good{suffix}", f"http://[::1]:{port}/good{suffix}", "http://[::1",
            f"https://{host}/good{suffix}", "http://127.0.0.1:9/x.mp4", "http://127.0.0.1:99999/x.mp4",
            "http://127.0.0.1:-1/x", "http://127.0.0.1:port/x", "http://", "http:", "https:///x", "http://\0/", "://",
            "ftp://127.0.0.1:9/x.mp4", "gopher://127.0.0.1:9/_x", "s3://bucket/key", "javascript:alert(1)",
            "about:blank",
            "file://", "file:///", "file:///absent.mp4", "file:///dev/null", "file:///etc", "FILE:///etc/hostname",
            "file://127.0.0.1/etc/hostname", "/etc/hostname", "/absent.mp4", ".", "..", "~", "absent.mp4",
            "\\\\host\\x",
            "data:", "data:,", "data:,x", "data:video/mp4", "data:video/mp4;base64", "data:video/mp4;base64,",
            "data:video/mp4;base64,!!!!", "data:video/mp4;base64,AAAA", "data:video/mp4;base64,A",
            "data:;base64,\ud800",
            "data:video/mp4;base64, " + media.data_url(media.video()).partition(",")[2],
            media.data_url(media.video()).upper(), media.data_url(media.video()).partition(",")[2],
            media.data_url(media.video(), "text/plain;charset=x;base64"), "DATA:" + media.data_url(media.video())[5:],
            odd, odd * 3, "A" * 40_000,
        )
    )  # fmt: skip
