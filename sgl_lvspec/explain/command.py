"""`lvspec explain`: ask a running server about a clip, loosely and strictly, and show what loosening did.

clip, question ─► client (HTTP) ─► loose answer, strict answer ─► screen
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import sys
from collections.abc import Callable
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from sgl_lvspec.client.options import ALGORITHM, add_server_arguments, api_key_of
from sgl_lvspec.presets import PRESETS

if TYPE_CHECKING:
    from sgl_lvspec.client.answer import Answer, Token

DEFAULT_QUESTIONS = {"video": "Describe the video in detail.", "image": "Describe the image."}
OWN_FLAGS = {
    "preset": "Use --preset.",
    "relaxation": "Use --relaxation.",
    "labels": "Explaining needs them; leave it out.",
}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the command's arguments."""
    parser.add_argument("media", metavar="CLIP", help="a video or image: file, http(s) URL or data: URL")
    parser.add_argument("question", nargs="?", help=f'default: "{DEFAULT_QUESTIONS["video"]}"')
    parser.add_argument("--kind", choices=("video", "image"), help="what a URL holds whose ending does not tell")
    parser.add_argument(
        "--preset", choices=tuple(PRESETS), help="preset of the request; without it, what the server does by itself"
    )
    parser.add_argument("--relaxation", type=float, metavar="λ", help="in place of the preset's value, 0 to 1")
    parser.add_argument(
        "--set", action="append", default=[], metavar="NAME=VALUE", dest="settings",
        help="any other setting of a request, for example --set floor=0.01 (repeat it for several)",
    )  # fmt: skip
    parser.add_argument("--max-tokens", type=int, default=256, metavar="N", help="longest answer (default %(default)s)")
    parser.add_argument("--no-strict", action="store_true", help="leave out the strict answer to compare with")
    parser.add_argument("--json", action="store_true", help="print one JSON object instead")
    parser.add_argument("--color", choices=("auto", "always", "never"), default="auto")
    add_server_arguments(parser)


def run(options: argparse.Namespace) -> int:
    """Ask, show, and return the exit code; what a user can mend is told in one line."""
    from sgl_lvspec.client.server import ServerError

    try:
        asyncio.run(_explain(options))
    except (ServerError, ValueError) as error:
        print(f"lvspec explain: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print(file=sys.stderr)
        return 130
    return 0


async def _explain(options: argparse.Namespace) -> None:
    from sgl_lvspec.client.answer import Answer
    from sgl_lvspec.client.chat import ChatFormat, Medium, Turn
    from sgl_lvspec.client.media import kind_of, media_url
    from sgl_lvspec.client.server import Server
    from sgl_lvspec.explain.screen import Screen

    settings = read_settings(options)
    kind, url = options.kind or kind_of(options.media), media_url(options.media)
    server = Server(options.url, api_key_of(options))
    about = await server.about()
    runs = about.get("speculative_algorithm")
    if runs != ALGORITHM:
        raise ValueError(
            f"explain needs a server that runs {ALGORITHM}; found speculation {runs} at {server.shown}. "
            f"Start it with --speculative-algorithm {ALGORITHM} (make serve does)."
        )
    chat = ChatFormat.load(
        options.tokenizer_path or about["tokenizer_path"], trust_remote_code=options.trust_remote_code
    )
    question = options.question or DEFAULT_QUESTIONS[kind]
    turn = Turn(question, (Medium(kind, url),))
    sampling = {"temperature": 0, "max_new_tokens": options.max_tokens}

    async def ask(lvspec: dict[str, Any], show: Callable[[Token], None]) -> Answer:
        answer = Answer(chat)
        payload = chat.payload([turn], sampling=sampling, lvspec={**lvspec, "labels": True})
        async with contextlib.aclosing(server.generate(payload)) as chunks:
            async for chunk in chunks:
                for token in answer.add(chunk):
                    show(token)
        return answer

    def nothing(_token: Token) -> None:
        pass

    if options.json:
        asked = await ask(settings, nothing)
        strict = None if options.no_strict or asked.is_strict else await ask({"mode": "strict"}, nothing)
        print(json.dumps({"question": question, "asked": as_json(asked), "strict": strict and as_json(strict)}))
        return
    screen = Screen(options.color)
    screen.heading(options.media, question, about["served_model_name"], server.shown)
    asked = await ask(settings, screen.token)
    screen.explained(asked)
    if not options.no_strict and not asked.is_strict:
        screen.compared(asked, await ask({"mode": "strict"}, nothing))


def read_settings(options: argparse.Namespace) -> dict[str, Any]:
    """The request's settings from the command line; the server judges their values.

    Raises:
        ValueError: a `--set` that is no NAME=VALUE.
    """
    settings: dict[str, Any] = {}
    for given in options.settings:
        name, equals, value = given.partition("=")
        if not (name and equals):
            raise ValueError(f"--set must read NAME=VALUE; found {given!r}. Write for example --set floor=0.01.")
        if name.strip() in OWN_FLAGS:
            raise ValueError(f"--set must not name {name.strip()}; found {given!r}. {OWN_FLAGS[name.strip()]}")
        try:
            settings[name.strip()] = json.loads(value)
        except ValueError:
            settings[name.strip()] = value  # a word: shift=off
    named = {name: getattr(options, name) for name in ("preset", "relaxation")}
    return settings | {name: value for name, value in named.items() if value is not None}


def as_json(answer: Answer) -> dict[str, Any]:
    """Everything that the screen shows, for a program."""
    return {
        "text": answer.text,
        "tokens": [asdict(token) for token in answer.tokens],
        "lvspec": answer.summary,
        "finish_reason": answer.finish_reason,
        "prompt_tokens": answer.prompt_tokens,
        "cached_tokens": answer.cached_tokens,
        "first_token_s": answer.first_s,
        "tokens_per_s": answer.tokens_per_s,
    }
