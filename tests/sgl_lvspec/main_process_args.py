"""Server arguments of a server whose requests are prepared in its main process."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any


def server_args(**fields: Any) -> Any:
    """The fields that decide where, and SGLang's limit on downloads; `fields` moves the work elsewhere."""
    here = {
        "tokenizer_worker_num": 1,
        "smg_grpc_mode": False,
        "grpc_mode": False,
        "encoder_only": False,
        "language_only": False,
        "media_url_max_file_size_mb": 64,
    }
    return SimpleNamespace(**here | fields)
