"""What a payload is made for: a server's limits and names, and the address of the bad web server."""

from __future__ import annotations

import json
import urllib.request
from dataclasses import dataclass
from pathlib import Path

LONGEST = 2**14  # no edge beyond this is worth its time


@dataclass(frozen=True)
class Surroundings:
    """Of one server.

    Attributes:
        model: the name that OpenAI clients send.
        context: tokens of the model's context.
        vocabulary: token ids are below this.
        pool: tokens of the target's KV pool.
        chunk: tokens of a prefill chunk.
        web: URL of the bad web server.
    """

    model: str
    context: int
    vocabulary: int
    pool: int
    chunk: int
    web: str

    def edges(self, max_new_tokens: int) -> tuple[int, ...]:
        """Lengths of a prompt at which something changes."""
        middles = (self.context, self.context - max_new_tokens, self.chunk, 2 * self.chunk, self.pool)
        around = {middle + step for middle in middles for step in (-2, -1, 0, 1, 2)} | {0, 1, 2, 3}
        return tuple(sorted(length for length in around if 0 <= length <= LONGEST))


def surroundings_of(url: str, web: str) -> Surroundings:
    """Of the server at `url`, whose model lies on this machine."""
    told = {}
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    for path in ("/server_info", "/model_info", "/v1/models"):
        with opener.open(url + path, timeout=120) as answer:
            told[path] = json.load(answer)
    info, model = told["/server_info"], told["/v1/models"]["data"][0]
    config = json.loads((Path(told["/model_info"]["model_path"]) / "config.json").read_text())
    return Surroundings(
        model["id"],
        int(model["max_model_len"]),
        int(config.get("text_config", config)["vocab_size"]),
        int(info["max_total_num_tokens"]),
        int(info["chunked_prefill_size"]),
        web,
    )
