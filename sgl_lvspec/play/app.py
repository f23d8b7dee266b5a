"""The companion's addresses: the page's files, the clips, and the answers, which it fetches from the server."""

from __future__ import annotations

import asyncio
from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import FileResponse, JSONResponse, StreamingResponse
from fastapi.staticfiles import StaticFiles
from starlette.types import ASGIApp

from sgl_lvspec.client.server import ServerError
from sgl_lvspec.client.word_diff import word_diff
from sgl_lvspec.play.clips import Clips, UnknownClipError, mime_of
from sgl_lvspec.play.events import MEDIA_TYPE, events
from sgl_lvspec.play.gate import Gate, gate_options
from sgl_lvspec.play.question import Comparison, Question
from sgl_lvspec.play.target import Target
from sgl_lvspec.presets import LOOSE_PRESETS, PRESETS

STATIC = Path(__file__).parent / "static"
UPLOADS = "/api/uploads"
MAX_JSON_BYTES = 2**20  # a conversation
UPLOADS_KEPT = 4  # times the largest upload


@dataclass(frozen=True)
class Options:
    """What a companion is started with.

    Attributes:
        host: address that it listens on; `allowed_hosts` are further names that it is reached by.
        clips: folder of sample clips.
        max_upload_bytes: of one upload.
        max_tokens: longest answer.
    """

    host: str = "127.0.0.1"
    allowed_hosts: Collection[str] = ()
    clips: Path | None = None
    max_upload_bytes: int = 64 * 2**20
    max_tokens: int = 256


def build(target: Target, options: Options) -> ASGIApp:
    """The companion as an ASGI application."""
    app = FastAPI(docs_url=None, redoc_url=None, openapi_url=None)
    clips = Clips(options.clips, UPLOADS_KEPT * options.max_upload_bytes)
    _refusals(app)

    @app.get("/api/server")
    async def server(fresh: bool = False) -> dict[str, Any]:
        known = await target.known(fresh=fresh)
        return {
            "url": target.server.shown,
            "model": known.model,
            "algorithm": known.algorithm,
            "has_lvspec": known.has_lvspec,
            "loose_refusal": known.loose_refusal,
            "presets": {name: PRESETS[name].relaxation for name in LOOSE_PRESETS},
            "max_upload_bytes": options.max_upload_bytes,
            "max_tokens": options.max_tokens,
        }

    @app.get("/api/clips")
    async def listed() -> list[dict[str, str]]:
        return [{"id": name, "mime": mime_of(path)} for name, path in clips.files().items()]

    @app.get("/api/clips/{name}")
    async def sample(name: str) -> FileResponse:
        path = clips.file(name)
        return FileResponse(path, media_type=mime_of(path))

    @app.post(UPLOADS)
    async def upload(request: Request) -> dict[str, str]:
        # The body as it is: a multipart form would be written to a temporary file.
        return {"id": clips.keep(await request.body(), request.headers.get("content-type", ""))}

    @app.post("/api/ask")
    async def ask(question: Question) -> StreamingResponse:
        known = await target.known()
        lvspec = question.settings(has_lvspec=known.has_lvspec)
        turns = await asyncio.to_thread(question.conversation, clips)
        sampling = {"temperature": 0, "max_new_tokens": min(question.max_tokens, options.max_tokens)}
        payload = known.chat.payload(turns, sampling=sampling, lvspec=lvspec)
        return StreamingResponse(events(target, known.chat, payload), media_type=MEDIA_TYPE)

    @app.post("/api/diff")
    def diff(answers: Comparison) -> list[dict[str, str]]:
        where = {"same": "same", "first": "strict", "second": "loose"}
        parts = word_diff(answers.strict, answers.loose)
        return [{"where": where[part.where], "text": part.text} for part in parts]

    @app.get("/", include_in_schema=False)
    async def page() -> FileResponse:
        return FileResponse(STATIC / "index.html", media_type="text/html")

    app.mount("/static", StaticFiles(directory=STATIC))

    def limit_of(path: str) -> int:
        return options.max_upload_bytes if path == UPLOADS else MAX_JSON_BYTES

    def remedy_of(path: str) -> str:
        if path == UPLOADS:
            return "Send something smaller, or raise --max-upload-mb of lvspec play."
        return "Begin a new conversation."

    return Gate(app, limit_of=limit_of, remedy_of=remedy_of, **gate_options(options.host, options.allowed_hosts))


def _refusals(app: FastAPI) -> None:
    """Each error as `{"error": what a person is told}`."""

    @app.exception_handler(ServerError)
    async def of_server(_request: Request, error: ServerError) -> JSONResponse:
        return JSONResponse({"error": str(error)}, 502)

    @app.exception_handler(UnknownClipError)
    async def unknown(_request: Request, _error: UnknownClipError) -> JSONResponse:
        told = "A clip of the list or a recent upload is needed; found none of this id. Choose it again."
        return JSONResponse({"error": told, "is_clip_unknown": True}, 404)

    @app.exception_handler(ValueError)
    async def wrong(_request: Request, error: ValueError) -> JSONResponse:
        return JSONResponse({"error": str(error)}, 400)

    @app.exception_handler(RequestValidationError)
    async def malformed(_request: Request, error: RequestValidationError) -> JSONResponse:
        first = error.errors()[0]  # without its input: that may be a prompt
        where = ".".join(str(part) for part in first["loc"])
        told = f"A question as the page asks it is needed; found at {where}: {first['msg']}. Reload the page."
        return JSONResponse({"error": told}, 422)
