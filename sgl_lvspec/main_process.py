"""What the plugin hooks in a server's main process works only if SGLang prepares and checks requests there."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from sglang.srt.server_args import ServerArgs

# Field of the server arguments, the value that keeps the work in the main process, flag as the user types it.
_TOKENIZING = (
    ("tokenizer_worker_num", 1, "--tokenizer-worker-num"),  # extra workers load no plugins
    ("smg_grpc_mode", False, "--smg-grpc-mode"),
    ("grpc_mode", False, "--grpc-mode"),
)
_PREPARING_MEDIA = (
    ("encoder_only", False, "--encoder-only"),
    ("language_only", False, "--language-only"),
)


def require(server_args: ServerArgs, feature: str, remedy: str, *, with_media: bool = False) -> None:
    """Refuse a server whose requests go past the main process.

    Args:
        server_args: SGLang arguments, resolved or not.
        feature: what needs the main process, as the message names it.
        remedy: what the user may do instead, besides dropping the flag found.
        with_media: whether images and videos must be prepared there too.

    Raises:
        ValueError: in the form *required / found / do this*.
    """
    from sglang.srt.environ import envs

    for field, needed, flag in (*_TOKENIZING, *(_PREPARING_MEDIA if with_media else ())):
        found = getattr(server_args, field)
        if found != needed:
            raise ValueError(
                f"{feature} needs {flag} at {needed}, so that requests are prepared in the main process, which the "
                f"plugin reaches; found {found}. Drop {flag}, or {remedy}."
            )
    if envs.SGLANG_RUST_SERVER.get():
        raise ValueError(
            f"{feature} needs SGLang's Python server, whose main process the plugin reaches; found SGLANG_RUST_SERVER "
            f"set. Unset it, or {remedy}."
        )
