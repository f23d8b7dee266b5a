"""What a client of the server may name as an image, a video or a sound: no file of this machine, unless its folder is
allowed.

SGLang 0.5.23 opens `file:` URLs and paths for whoever asks (srt/utils/common.py:2143 `load_image`, :2203
`_normalize_video_input`, :1907 `load_audio`). Here each source of an HTTP request is put into a form that leaves those
loaders no choice: a data: URL, an http: or https: URL (which SGLang's own --allowed-media-domains and
--media-url-max-file-size-mb judge), or the resolved path of a regular file in an allowed folder. `sglang.Engine`
belongs to a program of the machine's owner, brings no HTTP request, and reads what that program names.
"""

from __future__ import annotations

import os
import re
import stat
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import quote, unquote, urlsplit

from sgl_lvspec import late_hooks
from sgl_lvspec.config import flag_of

if TYPE_CHECKING:
    from sgl_lvspec.config import LVSpecConfig

MIB = 2**20
_FIELDS = {"image_data": "Image", "video_data": "Video", "audio_data": "Audio"}
_MAX_DEPTH = 8  # of lists in lists; SGLang knows three
_LONGEST_SCHEME = len("https:")
_BASE64_HEAD = re.compile(r"[A-Za-z0-9+/]*={0,2}\Z")
# The base64 of a JPEG begins with a slash, too, and no medium is as short as what this takes for a path.
_SHORTEST_BASE64_WITH_SLASH = 256


@dataclass(frozen=True, slots=True)
class SourceRules:
    """What a server admits.

    Attributes:
        folders: real paths of the folders whose files any client may read.
        max_bytes: largest encoded medium; 0: any. Downloads are SGLang's to limit.
    """

    folders: tuple[Path, ...] = ()
    max_bytes: int = 0

    @classmethod
    def of(cls, config: LVSpecConfig, download_limit_mb: int) -> SourceRules:
        """The rules of a server; what is sent may be as large as what SGLang downloads, unless the user says otherwise.

        Raises:
            ValueError: an allowed folder that is none.
        """
        limit = download_limit_mb if config.max_media_mb is None else config.max_media_mb
        return cls(tuple(map(_real_folder, config.allowed_local_media_path)), limit * MIB)

    def admitted(self, source: str, name: str) -> str:
        """The source as SGLang's loaders may see it.

        Args:
            source: as the client sent it.
            name: the medium in messages, "Video 2"; the source itself is never told, as SGLang logs messages.

        Raises:
            ValueError: becomes a 400 for this request. It does not tell whether there is such a file.
        """
        scheme, colon, _ = source[:_LONGEST_SCHEME].partition(":")
        scheme = scheme.lower()  # SGLang takes HTTP: and DATA: for paths
        if colon and (scheme == "data" or (scheme in ("http", "https") and source.startswith("://", len(scheme)))):
            source = source if source.startswith(scheme) else scheme + source[len(scheme) :]
            if scheme == "data":
                self._require_size((len(source) - source.find(",") - 1) * 3 // 4, name)
            return source
        found = self._local_file(source) if self.folders else None
        if found is not None:
            path, size = found
            self._require_size(size, name)
            return "file://" + quote(os.fsencode(path))
        if _is_base64(source):
            self._require_size(len(source) * 3 // 4, name)
            return "data:;base64," + source  # bare, SGLang would first look for a file of that name
        allowed = ", or a file in a folder that this server allows" if self.folders else ""
        raise ValueError(
            f"{name} must be a data: URL, base64, or an http: or https: URL{allowed}; found none of these. Send the "
            "file itself as a data: URL. (Files of the server's machine are read only where whoever runs it allows "
            f"their folder: {flag_of('allowed_local_media_path')}.)"
        )

    def _local_file(self, source: str) -> tuple[str, int] | None:
        """Real path and bytes of a regular file in an allowed folder, or None, whatever the reason."""
        try:
            path = _path_of(source)
            if path is None:
                return None
            real = Path(path).resolve()
            if not any(real.is_relative_to(folder) for folder in self.folders):
                return None
            status = real.lstat()  # opens nothing: a FIFO would block
        except (OSError, ValueError, RuntimeError):  # RuntimeError: a circle of links
            return None
        return (str(real), status.st_size) if stat.S_ISREG(status.st_mode) else None

    def _require_size(self, size: int, name: str) -> None:
        if self.max_bytes and size > self.max_bytes:
            raise ValueError(
                f"{name} must have at most {self.max_bytes / MIB:g} MiB as a file; found {size / MIB:.1f} MiB. Send it "
                f"smaller or shorter. (Whoever runs the server sets the limit: {flag_of('max_media_mb')}.)"
            )

    def admit(self, request: Any) -> None:
        """Judge every source of a request (GenerateReqInput or EmbeddingReqInput) and put it into its safe form.

        Raises:
            ValueError: see `admitted`.
        """
        for field, kind in _FIELDS.items():
            given = getattr(request, field, None)
            if given is not None:
                setattr(request, field, _Walk(self, kind).walked(given))


class _Walk:
    """One pass over the sources of one kind, however they are nested."""

    def __init__(self, rules: SourceRules, kind: str) -> None:
        self._rules, self._kind = rules, kind
        self._number = 0
        self._known: dict[int, str] = {}  # with n > 1 SGLang repeats a source, and must not get n copies

    def walked(self, value: Any, depth: int = 0) -> Any:
        """The value with every source in it admitted; what is no source is SGLang's to judge."""
        if depth > _MAX_DEPTH:
            raise ValueError(
                f"{self._kind} data must be nested at most {_MAX_DEPTH} lists deep; found deeper lists. Flatten them."
            )
        if isinstance(value, str):
            self._number += 1
            if id(value) not in self._known:
                self._known[id(value)] = self._rules.admitted(value, f"{self._kind} {self._number}")
            return self._known[id(value)]
        if isinstance(value, list | tuple):
            return [self.walked(item, depth + 1) for item in value]
        if isinstance(value, dict):
            return {**value, "url": self.walked(value["url"], depth + 1)} if "url" in value else value
        if isinstance(getattr(value, "url", None), str):  # ImageData, VideoData: what chats are turned into
            value.url = self.walked(value.url, depth)
        return value


_rules = SourceRules()


def install(config: LVSpecConfig, download_limit_mb: int) -> None:
    """Guard the HTTP requests of this process's server; idempotent.

    Args:
        config: of the server that is starting.
        download_limit_mb: SGLang's --media-url-max-file-size-mb.
    """
    global _rules  # noqa: PLW0603  SGLang hands its hooks no server arguments
    _rules = SourceRules.of(config, download_limit_mb)
    late_hooks.apply("sglang.srt.managers.tokenizer_manager.TokenizerManager._init_req_state", admit_sources, "before")
    late_hooks.apply("sglang.srt.entrypoints.systemone.serving._read_image", admit_image, "before")


def admit_sources(_manager: Any, /, obj: Any, request: Any = None) -> None:
    """BEFORE hook on `TokenizerManager._init_req_state` (srt/managers/tokenizer_manager.py:3798): every request passes
    it, normalized and before anything is loaded, with the HTTP request where there is one."""
    if request is not None:
        _rules.admit(obj)


def admit_image(_index: int, image: Any, /) -> None:
    """BEFORE hook on `_read_image` (srt/entrypoints/systemone/serving.py:586): /v1/systemone alone reads images before
    it makes a request of them."""
    image.url = _rules.admitted(image.url, "Image")


def _path_of(source: str) -> str | None:
    """The absolute path that a source names."""
    if source[: len("file:")].lower() != "file:":
        return source if source.startswith("/") else None
    parts = urlsplit(source)
    return unquote(parts.path, errors="surrogateescape") if parts.netloc in ("", "localhost") else None


def _is_base64(source: str) -> bool:
    """Whether a string looks like base64 alone; what comes of it is decoded, never opened."""
    if source.startswith("/") and len(source) < _SHORTEST_BASE64_WITH_SLASH:
        return False
    return _BASE64_HEAD.match(source[:_SHORTEST_BASE64_WITH_SLASH]) is not None


def _real_folder(folder: str) -> Path:
    path = Path(folder).expanduser()
    if not path.is_dir():
        found = "a file" if path.exists() else "none"
        raise ValueError(
            f"{flag_of('allowed_local_media_path')} must name folders; found {found} at {folder}. Correct the path, or "
            "drop it: without it no client can have files of this machine read."
        )
    return path.resolve()
