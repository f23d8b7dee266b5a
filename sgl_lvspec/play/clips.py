"""The clips that the page can ask about: those of one folder, and what users have uploaded (in memory only)."""

from __future__ import annotations

import base64
import contextlib
import mimetypes
import re
import secrets
from collections import OrderedDict
from dataclasses import dataclass
from pathlib import Path

from sgl_lvspec.client.chat import Medium
from sgl_lvspec.client.media import SUFFIXES, Kind, kind_of, media_url

MAX_UPLOADS = 16
_MIME = re.compile(r"(video|image)/[a-z0-9][a-z0-9.+-]{0,60}")


class UnknownClipError(LookupError):
    """No clip has this id: it was never there, or an upload that had to make room."""


@dataclass(frozen=True)
class Upload:
    """What a user has sent; `mime` is what the browser takes it for."""

    kind: Kind
    mime: str
    content: bytes


class Clips:
    """Finds media by id: a file's name in the folder, or the random id of an upload.

    A name is looked up among those that the folder has, never joined to a path, so nothing outside of it is found.

    Args:
        folder: of sample clips; None for none.
        max_bytes: all uploads together; the least recently used make room.
    """

    def __init__(self, folder: Path | None, max_bytes: int) -> None:
        self._folder = folder
        self._max_bytes = max_bytes
        self._uploads: OrderedDict[str, Upload] = OrderedDict()

    def files(self) -> dict[str, Path]:
        """Videos and images in the folder by name, videos first."""
        if self._folder is None or not self._folder.is_dir():
            return {}
        kinds = [(kind, path) for path in self._folder.iterdir() for kind in SUFFIXES if _is_of(path, kind)]
        return {path.name: path for _, path in sorted(kinds, key=lambda found: (found[0] != "video", found[1].name))}

    def file(self, name: str) -> Path:
        """A sample clip.

        Raises:
            UnknownClipError: the folder has none of this name.
        """
        try:
            return self.files()[name]
        except KeyError:
            raise UnknownClipError(name) from None

    def keep(self, content: bytes, mime: str) -> str:
        """Keep an upload and return its id, which nobody can guess.

        Raises:
            ValueError: it is empty, or neither a video nor an image.
        """
        declared = mime.partition(";")[0].strip().lower()
        if not _MIME.fullmatch(declared) or declared == "image/svg+xml":
            known = ", ".join(end for ends in SUFFIXES.values() for end in ends)
            raise ValueError(f"A video or an image is needed ({known}); found {declared or 'no type'}. Convert it.")
        if not content:
            raise ValueError("A video or an image is needed; found an empty file. Choose another one.")
        name = secrets.token_urlsafe(16)
        self._uploads[name] = Upload("video" if declared.startswith("video/") else "image", declared, content)
        while len(self._uploads) > MAX_UPLOADS or (self.num_bytes > self._max_bytes and len(self._uploads) > 1):
            self._uploads.popitem(last=False)
        return name

    @property
    def num_bytes(self) -> int:
        """What all uploads hold."""
        return sum(len(upload.content) for upload in self._uploads.values())

    def medium(self, name: str) -> Medium:
        """A clip as SGLang takes it; reads a sample clip from the disk.

        Raises:
            UnknownClipError: there is none of this id.
        """
        upload = self._uploads.get(name)  # at once: another thread may make room
        if upload is not None:
            with contextlib.suppress(KeyError):
                self._uploads.move_to_end(name)
            return Medium(upload.kind, f"data:{upload.mime};base64,{base64.b64encode(upload.content).decode()}")
        path = str(self.file(name))
        return Medium(kind_of(path), media_url(path))


def mime_of(path: Path) -> str:
    """What a browser is told that a sample clip is."""
    return mimetypes.guess_type(path.name)[0] or f"{kind_of(path.name)}/{path.suffix[1:].lower()}"


def _is_of(path: Path, kind: Kind) -> bool:
    return path.suffix.lower() in SUFFIXES[kind] and path.is_file()
