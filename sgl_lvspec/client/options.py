"""What every command that talks to a server can be told about it: where it is, its key, its tokenizer."""

from __future__ import annotations

import argparse
import os

DEFAULT_URL = "http://127.0.0.1:30000"
API_KEY_VARIABLE = "LVSPEC_API_KEY"
ALGORITHM = "LVSPEC"  # as flags.ALGORITHM, which imports SGLang


def add_server_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare `--url`, `--tokenizer-path`, `--trust-remote-code` and `--api-key`."""
    parser.add_argument("--url", default=DEFAULT_URL, help="where the SGLang server is (default %(default)s)")
    parser.add_argument(
        "--tokenizer-path", metavar="FOLDER", help="the target's tokenizer, where the server's own path is not valid"
    )
    parser.add_argument(
        "--trust-remote-code", action="store_true", help="as for the server, for a tokenizer that needs it"
    )
    parser.add_argument(
        "--api-key", metavar="KEY", help=f"the server's API key; better in the environment, as {API_KEY_VARIABLE}"
    )


def api_key_of(options: argparse.Namespace) -> str | None:
    """The key that was named, or the one in the environment."""
    return options.api_key or os.environ.get(API_KEY_VARIABLE)
