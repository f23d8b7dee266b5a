"""Videos and images of a request as data: URLs, so that the server need not share our disk."""

from __future__ import annotations

import base64
import mimetypes
from pathlib import Path
from typing import Literal
from urllib.parse import urlsplit

from sgl_lvspec.shown import shown

Kind = Literal["video", "image"]
SUFFIXES: dict[Kind, tuple[str, ...]] = {
    "video": (".mp4", ".mov", ".mkv", ".webm", ".avi", ".m4v"),
    "image": (".png", ".jpg", ".jpeg", ".webp", ".bmp", ".gif"),
}
URLS = ("http://", "https://", "data:")


def kind_of(source: str) -> Kind:
    """Whether a path or URL is a video or an image, by its ending or, in a data: URL, its type.

    Raises:
        ValueError: it is neither.
    """
    if source.startswith("data:"):
        declared = source[len("data:") :].partition("/")[0]
        if declared in ("video", "image"):
            return declared  # type: ignore[return-value]
        raise ValueError(f"A data: URL must hold a video or an image; found {shown(source[:40])}. Name its type.")
    try:
        path = urlsplit(source).path if source.startswith(URLS) else source
    except ValueError as error:
        raise ValueError(f"A URL must be one; found {shown(source)} ({error}). Correct it.") from error
    suffix = Path(path).suffix.lower()
    for kind, suffixes in SUFFIXES.items():
        if suffix in suffixes:
            return kind
    known = ", ".join(end for suffixes in SUFFIXES.values() for end in suffixes)
    raise ValueError(
        f"A video or image must end in one of {known}; found {shown(source)}. Convert or rename a file; say of a "
        "URL what it holds."
    )


def media_url(source: str) -> str:
    """A file as a data: URL; a URL as it is.

    Raises:
        ValueError: there is no such file.
    """
    if source.startswith(URLS):
        return source
    path = Path(source).expanduser()
    if not path.is_file():
        found = "a folder" if path.is_dir() else "no such file"
        raise ValueError(f"A video or image file is needed at {source}; found {found}. Name one that is there.")
    return as_data_url(path.read_bytes(), path.name, kind_of(source))


def as_data_url(content: bytes, name: str, kind: Kind) -> str:
    """A file's content as a data: URL; `name` tells the format."""
    mime = mimetypes.guess_type(name)[0] or f"{kind}/{Path(name).suffix[1:].lower() or 'mp4'}"
    return f"data:{mime};base64,{base64.b64encode(content).decode()}"
