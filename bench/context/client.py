"""One server over HTTP: streamed answers with their times, flushes, and what /metrics has counted."""

from __future__ import annotations

import http.client
import json
import time
import urllib.error
import urllib.request
from dataclasses import dataclass
from typing import Any

TIMEOUT_S = 600.0
IDLE_LIMIT_S = 30.0
PREFIX = "lvspec:"


@dataclass(frozen=True)
class Answer:
    """One streamed answer; times in seconds after the request was sent.

    Attributes:
        ids: token ids.
        first_s, last_s: when the first and the last piece came.
        first_tokens: tokens of the first piece.
        prompt_tokens, cached_tokens: of the prompt, and of those how many the server had.
        told: `meta_info["lvspec"]`; None without speculation.
    """

    ids: tuple[int, ...]
    first_s: float
    last_s: float
    first_tokens: int
    prompt_tokens: int
    cached_tokens: int
    told: dict[str, Any] | None

    @property
    def decode_rate(self) -> float | None:
        """Tokens a second behind the first piece; None where there is no second one."""
        tokens, seconds = len(self.ids) - self.first_tokens, self.last_s - self.first_s
        return tokens / seconds if tokens > 0 and seconds > 0 else None

    @property
    def rounds(self) -> int:
        """Verified rounds."""
        return int(self.told["rounds"]) if self.told else 0

    @property
    def accepted(self) -> float:
        """Accepted drafts."""
        return float(self.told["T"] or 0.0) * self.rounds if self.told else 0.0


class Endpoint:
    """A running server at `url`."""

    def __init__(self, url: str) -> None:
        self.url = url
        self._opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))  # it is on this machine

    def ask(self, body: dict[str, Any]) -> Answer:
        """Stream the answer to a request of `/generate`.

        Raises:
            RuntimeError: the server refuses, or the stream ends early.
        """
        sent = json.dumps({**body, "stream": True}).encode()
        start = time.perf_counter()
        first_s, first_tokens, last_s = 0.0, 0, 0.0
        chunk: dict[str, Any] = {}
        is_whole = False
        with self._open("/generate", sent) as reply:
            for line in reply:
                if not line.startswith(b"data: "):
                    continue
                if line.strip() == b"data: [DONE]":
                    is_whole = True
                    break
                now = time.perf_counter() - start
                chunk = json.loads(line[len(b"data: ") :])
                if "error" in chunk:
                    raise RuntimeError(f"{self.url} must answer; found the error {chunk['error']}. See its log.")
                tokens = int(chunk["meta_info"]["completion_tokens"])
                if tokens and not first_tokens:
                    first_s, first_tokens = now, tokens
                last_s = now
        ids = tuple(chunk.get("output_ids", ()))
        meta = chunk.get("meta_info", {})
        if not is_whole or not ids or len(ids) != meta["completion_tokens"]:
            raise RuntimeError(
                f"{self.url} must stream an answer to its end, all tokens in the last piece; found {len(ids)} tokens "
                f"and {'an' if is_whole else 'no'} end. See its log."
            )
        return Answer(
            ids, first_s, last_s, first_tokens, meta["prompt_tokens"], meta.get("cached_tokens", 0), meta.get("lvspec")
        )

    def flush(self) -> None:
        """Empty the radix cache (and with it what the draft holds); a server does so when it is idle."""
        deadline = time.monotonic() + IDLE_LIMIT_S
        while True:
            try:
                with self._open("/flush_cache", b""):
                    return
            except RuntimeError as error:
                if time.monotonic() > deadline:
                    raise RuntimeError(f"{self.url} must become idle; found it busy. See its log.") from error
                time.sleep(0.05)

    def counts(self) -> dict[str, float]:
        """LVSPEC's metrics by name (`rounds_total`, `draft_pool_bytes`, ...), summed over labels."""
        with self._open("/metrics") as reply:
            return parse_metrics(reply.read().decode())

    def _open(self, path: str, body: bytes | None = None) -> http.client.HTTPResponse:
        request = urllib.request.Request(self.url + path, body, {"Content-Type": "application/json"})
        try:
            reply: http.client.HTTPResponse = self._opener.open(request, timeout=TIMEOUT_S)
        except urllib.error.HTTPError as error:
            said = error.read().decode(errors="replace")[:300]
            raise RuntimeError(f"{self.url}{path} must answer; found HTTP {error.code}: {said}") from error
        except OSError as error:
            raise RuntimeError(f"{self.url}{path} must answer; found {error}. See the server's log.") from error
        return reply


def parse_metrics(text: str) -> dict[str, float]:
    """Samples of LVSPEC in Prometheus text, by name without the prefix, summed over labels; no histogram buckets."""
    from prometheus_client.parser import text_string_to_metric_families

    found: dict[str, float] = {}
    for family in text_string_to_metric_families(text):
        for sample in family.samples:
            if sample.name.startswith(PREFIX) and "le" not in sample.labels:
                name = sample.name.removeprefix(PREFIX)
                found[name] = found.get(name, 0.0) + float(sample.value)
    return found


def gained(before: dict[str, float], after: dict[str, float]) -> dict[str, float]:
    """What each count of `after` has beyond `before`."""
    return {name: value - before.get(name, 0.0) for name, value in after.items()}
