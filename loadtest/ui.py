"""Opens Locust's page against a running server: `python -m loadtest.ui --url URL`, `make loadtest-ui`."""

from __future__ import annotations

import argparse
import os
import sys
from pathlib import Path

from loadtest.arms import HOST, Server, ServerError, require_loopback

PAGE_PORT = 8089


def command(url: str, *, port: int, allow_remote: bool, more: list[str]) -> list[str]:
    """Locust's command line; the page listens on loopback alone."""
    file = str(Path(__file__).parent / "locustfile.py")
    remote = ["--allow-remote"] if allow_remote else []
    return [
        sys.executable, "-m", "locust", "-f", file, "--host", url, "--web-host", HOST, "--web-port", str(port),
        *remote, *more,
    ]  # fmt: skip


def main(argv: list[str] | None = None) -> int:  # noqa: RET503 (execv does not return)
    """Checks the server, says where the page is, becomes Locust. 2: there is nothing to load."""
    parser = argparse.ArgumentParser(prog="python -m loadtest.ui", description=__doc__)
    parser.add_argument("--url", default="http://127.0.0.1:30000", help="server to put under load")
    parser.add_argument("--port", type=int, default=PAGE_PORT, help="of the page")
    parser.add_argument("--allow-remote", action="store_true", help="the server is my own, though not here")
    parser.add_argument("more", nargs="*", metavar="-- FLAGS", help="more flags of locust: --arrivals, --lvspec, ...")
    options = parser.parse_args(argv)
    try:
        url = require_loopback(options.url, allow_remote=options.allow_remote)
        Server(url).call("/model_info")
    except ValueError as error:
        print(f"the page was not opened\n{error}", file=sys.stderr)
        return 2
    except ServerError as error:
        print(
            f"the page was not opened\nrequired  a running server\nfound     {error}\n"
            "do this   start one: make serve (or name it: make loadtest-ui URL=...)",
            file=sys.stderr,
        )
        return 2
    print(f"Locust's page: http://{HOST}:{options.port}   server: {url}   Stop: Ctrl-C", flush=True)
    line = command(url, port=options.port, allow_remote=options.allow_remote, more=options.more)
    os.environ["PYTHONPATH"] = os.pathsep.join(filter(None, (str(Path.cwd()), os.environ.get("PYTHONPATH"))))
    os.execv(line[0], line)


if __name__ == "__main__":
    sys.exit(main())
