"""Videos and images as expressions of a front-end program.

The interpreter knows images: it keeps (path, base64) of each in the order of the text, through roles and forks
(sglang/lang/interpreter.py, `StreamExecutor._execute_image`). A medium of ours is one whose path knows more.
"""

from __future__ import annotations

from typing import Any

from sglang.lang.ir import SglArgument, SglImage

from sgl_lvspec.client.media import Kind, kind_of, media_url


class Source(bytes):
    """Stands where SGLang keeps an image's path. Empty bytes, so that its own encoding of the file costs nothing.

    Attributes:
        kind: `video` or `image`.
        url: what the server loads: data:, http: or https:.
    """

    kind: Kind
    url: str

    @classmethod
    def of(cls, kind: Kind, source: str) -> Source:
        """The source of a medium.

        Raises:
            ValueError: there is no such file, or it is of the other kind.
        """
        if not source.startswith(("http://", "https://")) and kind_of(source) != kind:
            other = "image" if kind == "video" else "video"
            raise ValueError(f"{kind}() needs a file that holds one; found {source[:80]}. Use {other}() for it.")
        found = cls()
        found.kind, found.url = kind, media_url(source)
        return found


def video(source: Any) -> SglImage:
    """A video at this place of the prompt.

    Args:
        source: path of a file on this machine, or a data:, http: or https: URL, which the server loads.

    Raises:
        ValueError: there is no such file, or it is no video.
    """
    return _medium("video", source)


def image(source: Any) -> SglImage:
    """An image at this place of the prompt; see `video`."""
    return _medium("image", source)


def _medium(kind: Kind, source: Any) -> SglImage:
    if isinstance(source, SglArgument):  # SGLang runs a program without values to find its constant prefix
        return SglImage(source)
    return SglImage(Source.of(kind, str(source)))
