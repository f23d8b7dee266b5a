"""`lvspec play`: serve the page beside a running server.

flags ─► target (the server must answer) ─► app ─► uvicorn
"""

from __future__ import annotations

import argparse
import asyncio
import socket
import sys
from pathlib import Path

from sgl_lvspec.client.options import add_server_arguments, api_key_of

DEFAULT_HOST, DEFAULT_PORT = "127.0.0.1", 8765
DEFAULT_UPLOAD_MB, DEFAULT_TOKENS = 64, 256
STOP_LIMIT_S = 2  # for answers that are being written when the companion ends


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the command's arguments."""
    parser.add_argument("--port", type=int, default=DEFAULT_PORT, help="of the page, 0: any (default %(default)s)")
    parser.add_argument(
        "--host", default=DEFAULT_HOST, help="address that the page is served on (default %(default)s: this machine)"
    )
    parser.add_argument(
        "--allow-host", action="append", default=[], metavar="NAME", help="another name that the page is reached by"
    )
    parser.add_argument("--clips", type=Path, metavar="FOLDER", help="videos and images to choose from")
    parser.add_argument(
        "--max-upload-mb", type=int, default=DEFAULT_UPLOAD_MB, metavar="N", help="largest upload (default %(default)s)"
    )
    parser.add_argument(
        "--max-tokens", type=int, default=DEFAULT_TOKENS, metavar="N", help="longest answer (default %(default)s)"
    )
    add_server_arguments(parser)


def run(options: argparse.Namespace) -> int:
    """Serve until interrupted and return the exit code; what a user can mend is told in one line."""
    from sgl_lvspec.client.server import ServerError

    try:
        _play(options)
    except ServerError as error:
        start = " In a clone of sgl-lvspec, in another terminal: make serve."
        print(f"lvspec play: {error}{start if error.status is None else ''}", file=sys.stderr)
        return 1
    except ValueError as error:
        print(f"lvspec play: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print(file=sys.stderr)
    return 0


def _play(options: argparse.Namespace) -> None:
    import uvicorn

    from sgl_lvspec.client.server import Server
    from sgl_lvspec.play import app
    from sgl_lvspec.play.gate import LOOPBACK
    from sgl_lvspec.play.target import Target

    for flag in ("max_upload_mb", "max_tokens"):
        _require_positive(flag, getattr(options, flag))
    if options.clips is not None and not options.clips.is_dir():
        raise ValueError(f"--clips must name a folder; found none at {options.clips}. Correct it or drop it.")
    server = Server(options.url.rstrip("/"), api_key_of(options))
    target = Target(server, tokenizer_path=options.tokenizer_path, trust_remote_code=options.trust_remote_code)
    with listen(options.host, options.port) as listener:
        known = asyncio.run(target.known())
        page = app.build(
            target,
            app.Options(
                host=options.host,
                allowed_hosts=options.allow_host,
                clips=options.clips,
                max_upload_bytes=options.max_upload_mb * 2**20,
                max_tokens=options.max_tokens,
            ),
        )
        algorithm = "LVSPEC" if known.has_lvspec else f"without LVSPEC (speculation: {known.algorithm})"
        address = f"[{options.host}]" if ":" in options.host else options.host
        print(f"server     {known.model} at {server.shown}, {algorithm}")
        print(f"page       http://{address}:{listener.getsockname()[1]}")
        if options.host not in LOOPBACK:
            print("note       whoever reaches this address can ask the server through it, and see the clips")
        print("stop       Ctrl-C", flush=True)
        # Nothing that is asked is logged: neither requests nor their bodies.
        config = uvicorn.Config(
            page, log_level="warning", access_log=False, server_header=False, timeout_graceful_shutdown=STOP_LIMIT_S
        )
        uvicorn.Server(config).run(sockets=[listener])


def listen(host: str, port: int) -> socket.socket:
    """A socket that listens there, taken before anything is loaded.

    Raises:
        ValueError: it is taken, or no address of this machine.
    """
    try:
        return socket.create_server((host, port), family=socket.AF_INET6 if ":" in host else socket.AF_INET)
    except (OSError, OverflowError) as error:
        raise ValueError(
            f"A free TCP port is needed at {host}:{port}; found {error}. Stop what uses it, or choose another with "
            "--port (make play PLAY_PORT=...)."
        ) from error


def _require_positive(name: str, value: int) -> None:
    if value < 1:
        raise ValueError(f"--{name.replace('_', '-')} must be 1 or more; found {value}. Correct it or drop it.")
