"""Sends a clip, an image or only text to the running server and prints the answer as it streams: `make ask`.

Talks HTTP through the OpenAI client, as any user's program would; knows nothing of SGLang's or the plugin's code.
"""

from __future__ import annotations

import argparse
import base64
import mimetypes
import os
import sys
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import httpx
import openai

from demo.user_error import UserError

CLIPS = Path("demo/clips")
NO_MEDIA = "none"
API_KEY_VARIABLE = "LVSPEC_API_KEY"
DEFAULT_QUESTIONS = {"video": "What happens in this clip?", "image": "Describe the image.", "text": "Who are you?"}
KINDS = {
    "video": (".mp4", ".mov", ".mkv", ".webm", ".avi"),
    "image": (".png", ".jpg", ".jpeg", ".webp", ".bmp", ".gif"),
}
LEGEND = "T = accepted draft tokens / rounds, both as the server counts them; a round's own extra token is not in it."


@dataclass
class Answer:
    """What one question brought back, and when (seconds after it was sent)."""

    text: str = ""
    first_s: float | None = None  # first piece of text
    last_s: float = 0.0  # last piece of text
    usage: dict[str, Any] = field(default_factory=dict)  # OpenAI's token counts
    speculation: dict[str, Any] = field(default_factory=dict)  # SGLang's spec_tokens_details; empty without rounds

    def lines(self) -> list[str]:
        """The measurements, for a person."""
        tokens, prompt = self.usage.get("completion_tokens", 0), self.usage.get("prompt_tokens", 0)
        cached = (self.usage.get("prompt_tokens_details") or {}).get("cached_tokens") or 0
        writing_s = self.last_s - (self.first_s or 0.0)
        speed = f"{(tokens - 1) / writing_s:.1f} tokens/s" if tokens > 1 and writing_s > 0 else "one piece"
        first = "no text" if self.first_s is None else f"first token after {self.first_s:.2f} s"
        rounds = self.speculation.get("spec_verify_ct", 0)
        if rounds:
            # How many were drafted it cannot tell: SGLang counts K a round, and chains may end before.
            accepted = self.speculation["spec_num_correct_drafts"]
            count = "1 round" if rounds == 1 else f"{rounds} rounds"
            drafting = f"{count}, T = {accepted / rounds:.2f} ({accepted} draft tokens accepted)"
        else:
            drafting = "no speculation"
        return [f"{tokens} tokens, {speed}, {first}, prompt {prompt} tokens of which {cached} cached", drafting]


def media_part(kind: str, name: str) -> dict[str, Any]:
    """A content part that carries the file as a data: URL.

    Args:
        kind: `video` or `image`.
        name: path of the file.
    """
    path = Path(name).expanduser()
    variable = kind.upper()
    if not path.is_file():
        found = "a folder" if path.is_dir() else "no such file"
        raise UserError(f"a {kind} file at {name}", found, f"name one: make ask {variable}=path")
    if path.suffix.lower() not in KINDS[kind]:
        raise UserError(
            f"a {kind} file ({', '.join(KINDS[kind])})",
            f"{path.name}",
            f"convert it, or use {'IMAGE' if kind == 'video' else 'VIDEO'}= for the other kind",
        )
    mime = mimetypes.guess_type(path.name)[0] or f"{kind}/{path.suffix[1:]}"
    url = f"data:{mime};base64,{base64.b64encode(path.read_bytes()).decode()}"
    return {"type": f"{kind}_url", f"{kind}_url": {"url": url}}


def chosen_media(video: str | None, image: str | None) -> list[tuple[str, str]]:
    """Kind and name of each file to send: what the user named, by default the first sample clip."""
    if not video and not image:
        clips = sorted(CLIPS.glob("*.mp4"))
        video = str(clips[0]) if clips else None
    return [(kind, name) for kind, name in (("video", video), ("image", image)) if name and name != NO_MEDIA]


def connect(url: str, api_key: str | None = None) -> openai.OpenAI:
    """Client for the server at `url`; no proxy is asked for what is on this machine."""
    is_loopback = urlsplit(url).hostname in ("127.0.0.1", "localhost", "::1")
    transport = httpx.Client(trust_env=not is_loopback, timeout=httpx.Timeout(600, connect=5))
    base_url, key = url.rstrip("/") + "/v1", api_key or "none"
    return openai.OpenAI(base_url=base_url, api_key=key, max_retries=0, http_client=transport)


def stream(client: openai.OpenAI, model: str, messages: list[Any], max_tokens: int) -> Answer:
    """Ask once, greedily, and print the text as it arrives."""
    answer = Answer()
    start = time.perf_counter()
    chunks = client.chat.completions.create(
        model=model,
        messages=messages,
        max_tokens=max_tokens,
        temperature=0,
        stream=True,
        stream_options={"include_usage": True},
        extra_body={"return_spec_tokens_details": True},
    )
    for chunk in chunks:
        text = chunk.choices[0].delta.content if chunk.choices else None
        if text:
            answer.last_s = time.perf_counter() - start
            answer.first_s = answer.first_s or answer.last_s
            answer.text += text
            print(text, end="", flush=True)
        if chunk.usage:
            answer.usage = chunk.usage.model_dump()
        details = ((chunk.model_extra or {}).get("sglext") or {}).get("spec_tokens_details")
        if details:
            answer.speculation = details
    print()
    return answer


def converse(client: openai.OpenAI, options: argparse.Namespace) -> None:
    """Put the questions one after the other, as one conversation.

    The media come first, so that every later request starts with the same tokens and finds them in the server's cache.
    """
    chosen = chosen_media(options.video, options.image)
    media = [media_part(kind, name) for kind, name in chosen]
    given = options.question or [DEFAULT_QUESTIONS[chosen[0][0] if chosen else "text"]]
    questions = [part.strip() for question in given for part in question.split("|") if part.strip()]
    model = options.model or client.models.list().data[0].id
    print(f"{', '.join(name for _, name in chosen) or 'text only'} -> {model} at {options.url}")
    messages: list[Any] = []
    has_rounds = False
    for question in questions:
        print(f"\n> {question}")
        messages.append(
            {"role": "user", "content": [*media, {"type": "text", "text": question}] if media else question}
        )
        answer = stream(client, model, messages, options.max_tokens)
        print("\n".join("  " + line for line in answer.lines()))
        messages.append({"role": "assistant", "content": answer.text})
        media = []
        has_rounds = has_rounds or bool(answer.speculation)
    if has_rounds:
        print(f"\n{LEGEND}")


def said_by_server(error: openai.APIError) -> str:
    """The server's own message in an error answer."""
    body = error.body
    if isinstance(body, dict) and body.get("message"):
        return str(body["message"])
    response = getattr(error, "response", None)
    return (response.text if response is not None else "") or error.message


def ask(options: argparse.Namespace) -> None:
    """Hold the conversation; whatever the network or the server refuses becomes a UserError."""
    try:
        converse(connect(options.url, options.api_key), options)
    except openai.APIConnectionError as error:
        raise UserError(
            f"a server at {options.url}", str(error.__cause__ or error), "start one: make serve (or name it: URL=...)"
        ) from error
    except openai.APIStatusError as error:
        raise UserError(
            "a request that the server accepts",
            f"HTTP {error.status_code}: {said_by_server(error)}",
            f"name the server's API key: {API_KEY_VARIABLE}=... make ask"
            if error.status_code in (401, 403)
            else "change the request as the server says",
        ) from error
    except (openai.APIError, httpx.HTTPError) as error:
        said = said_by_server(error) if isinstance(error, openai.APIError) else str(error)
        raise UserError("an answer to its end", said, "look at the server's log") from error


def main() -> int:
    """Command line; 0 = answered, 1 = an error that was explained, 130 = interrupted."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--url", default="http://127.0.0.1:30000", help="where the server is")
    parser.add_argument(
        "--api-key", default=os.environ.get(API_KEY_VARIABLE), help=f"the server's; better in {API_KEY_VARIABLE}"
    )
    parser.add_argument("--model", help="name of the model (default: the first that the server lists)")
    parser.add_argument("--video", help=f"video file; {NO_MEDIA}: text only (default: the first of {CLIPS}/)")
    parser.add_argument("--image", help="image file")
    parser.add_argument("--question", action="append", help="what to ask; several: repeat it, or separate them by |")
    parser.add_argument("--max-tokens", type=int, default=256, help="longest answer")
    try:
        ask(parser.parse_args())
    except UserError as error:
        print(f"\nno answer\n{error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print()
        return 130
    return 0


if __name__ == "__main__":
    sys.exit(main())
