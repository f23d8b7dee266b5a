"""What is made wrong with a request on its way: its JSON, its size, its headers, its method."""

from __future__ import annotations

import json
import random

from bench.fuzz import values
from bench.fuzz.request import JSON, Request
from bench.fuzz.surroundings import Surroundings

METHODS = ("GET", "PUT", "DELETE", "PATCH", "OPTIONS", "HEAD", "TRACE", "post", "FUZZ")
CONTENT_TYPES = (
    "", "text/plain", "application/xml", "application/x-www-form-urlencoded", "multipart/form-data; boundary=x",
    "multipart/form-data", "application/json; charset=utf-16", "application/json;", "APPLICATION/JSON", "json",
    "x" * 2000,
)  # fmt: skip
DEPTHS = (50, 900, 20_000, 200_000)
LARGE = (200_000, 2_000_000)
ENORMOUS = 50_000_000


def malformed_json(rng: random.Random, request: Request, _: Surroundings) -> bool:
    """No JSON, or not quite."""
    content = request.content
    if not content:
        return False
    middle = rng.randrange(len(content))
    request.raw = rng.choice(
        (
            content[:middle], content[:-1], content + b"}", content + content, b"", b" ", b"null", b"true", b"[]",
            b'""', b"7",
            b"{", b'{"', b"\xef\xbb\xbf" + content, content.decode().encode("utf-16"), content.replace(b'"', b"'"),
            content[:middle] + rng.randbytes(3) + content[middle:], content.replace(b",", b",,", 1),
            b"\xff\xfe" + content,
            content.replace(b'": ', b'": +', 1), content.replace(b"0", b"00"), b"[" + content + b"]", content[middle:],
            content.replace(b'":', b'"', 1), b"\0" * 30, content.replace(b"}", b",}"), b"// why\n" + content,
        )
    )  # fmt: skip
    return True


def odd_json(rng: random.Random, request: Request, _: Surroundings) -> bool:
    """JSON that is right, but deep, long, or says things twice."""
    if not isinstance(request.body, dict) or request.raw is not None:
        return False
    inner = request.content[1:-1]
    name = json.dumps(rng.choice((*request.body, "no_such_field", "custom_params", "text", "sampling_params"))).encode()
    depth = rng.choice(DEPTHS)
    odd = rng.choice(
        (
            b"[" * depth + b"]" * depth, b'{"a":' * depth + b"1" + b"}" * depth, b"9" * 5000, b"-" + b"9" * 400,
            b"1e400", b"-1e999", b"0." + b"0" * 3000 + b"1", b"1E+2", b"-0", b"NaN", b"Infinity", b'"\\ud800"',
            b'"\\u0000"',
            b'"\\udc00\\ud800"', b'{"a": 1, "a": 2}', b"[" + b"0," * 50_000 + b"0]", b'["' + b'","' * 20_000 + b'"]',
        )
    )  # fmt: skip
    entry = name + b": " + odd
    request.raw = b"{" + rng.choice((inner + b", " + entry, entry + b", " + inner)) + b"}"
    return True


def large_body(rng: random.Random, request: Request, _: Surroundings) -> bool:
    """Hundreds of kB, some MB, now and then 50 MB."""
    if not isinstance(request.body, dict) or request.raw is not None:
        return False
    size = ENORMOUS if rng.random() < 0.02 else rng.choice(LARGE)
    name = rng.choice(("text", "no_such_field", "rid", "video_data", "image_data", "model", "input_ids", "stop"))
    inner, value = request.content[1:-1], b'"' + b"ab " * (size // 3) + b'"'
    if name in ("video_data", "image_data"):
        value = b'"' + b"A" * size + b'"'
    elif name == "input_ids":
        value = b"[" + b"7, " * (size // 3) + b"7]"
    request.raw = b"{" + inner + b', "' + name.encode() + b'": ' + value + b"}"
    return True


def content_type(rng: random.Random, request: Request, _: Surroundings) -> bool:
    """Another one, or none."""
    request.headers.pop("Content-Type", None)
    if rng.random() < 0.8:
        request.headers["Content-Type"] = rng.choice(CONTENT_TYPES)
    return True


def method(rng: random.Random, request: Request, _: Surroundings) -> bool:
    """Another one."""
    request.method = rng.choice(METHODS)
    request.may_be_cut = request.method in ("post", "FUZZ", "TRACE")
    return True


def headers(rng: random.Random, request: Request, _: Surroundings) -> bool:
    """Headers that lie, are odd, or are too long."""
    name, value = rng.choice(
        (
            ("Content-Length", "0"), ("Content-Length", "-1"), ("Content-Length", "9" * 30), ("Content-Length", "x"),
            ("Content-Length", "5"), ("Content-Length", str(len(request.content) + 50)), ("Transfer-Encoding",
            "chunked"),
            ("Transfer-Encoding", "gzip"), ("Content-Encoding", "gzip"), ("Content-Encoding", "x"), ("Expect",
            "100-continue"),
            ("Expect", "x"), ("Host", ""), ("Host", "a b"), ("Host", "x" * 3000), ("Authorization", "Bearer \u00e9"),
            ("Authorization", "Bearer x"), ("Authorization", ""), ("X-Data-Parallel-Rank", "7"),
            ("X-Data-Parallel-Rank", "x"),
            ("x-smg-routing-key", values.string(rng).replace("\r", "").replace("\n", "")), ("Accept", "image/png"),
            ("Upgrade", "websocket"), ("Connection", "Upgrade"), ("Connection", "x"), ("Cookie", "a=" + "b" * 9000),
            ("X-Long", "y" * 70_000), ("X-\0", "1"), ("traceparent", "00-x"), ("X-Request-Id", "\ufeff"), ("Range",
            "bytes=0-1"),
            ("If-None-Match", "*"), ("X-Forwarded-For", "127.0.0.1"), ("X-HTTP-Method-Override", "DELETE"), (" X", "1"),
        )
    )  # fmt: skip
    request.headers[name] = value
    request.may_be_cut = True
    return True


def path(rng: random.Random, request: Request, _: Surroundings) -> bool:
    """Slashes, dots, escapes and queries around the endpoint's path."""
    where = request.path
    request.path = rng.choice(
        (where + "/", "/" + where, where.upper(), where + "?stream=true&n=x", where + "%00", where + "/../x",
        where + "/%2e%2e",
         "/x" + where, where + ";a=b", where + "?" + "a=b&" * 2000, where + "#x", where + "%ff", "/" + "a" * 9000)
    )  # fmt: skip
    request.may_be_cut = True
    return True


def no_json_type(rng: random.Random, request: Request, _: Surroundings) -> bool:
    """The body as a form, or in parts."""
    inner = b"text=Hello&sampling_params=x"
    request.raw = rng.choice((inner, b"--x\r\nContent-Disposition: form-data; name=text\r\n\r\nHello\r\n--x--\r\n"))
    request.headers["Content-Type"] = rng.choice(
        (JSON, "application/x-www-form-urlencoded", "multipart/form-data; boundary=x")
    )
    return True
