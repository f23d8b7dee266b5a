"""Traffic that hurts, for minutes: `make soak MINUTES=10`. Ends with pools that are empty, or says what was left.

Many videos on pools of target and draft that hold a few of them, prompts cut inside videos, requests that hang up,
retractions every so many rounds (SGLang's own switch for tests). A part of the answers is compared with the target
alone. SGLang checks its pools whenever it falls idle, and so does the plugin; either ends the server if a slot is lost.
"""

from __future__ import annotations

import argparse
import base64
import json
import random
import threading
import time
from collections import Counter
from contextlib import AbstractContextManager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import requests
from prometheus_client.parser import text_string_to_metric_families

from bench.context.servers import running
from demo.heldout import held_out
from demo.serve import command_for, environment_for, is_cpu_environment

QUESTIONS = ("Describe the video in detail.", "What happens first?", "How many objects are there?", "What color is it?")
VIDEO = "<|vision_start|><|video_pad|><|vision_end|>"
COMPARED = 0.2  # share of the answers that the target alone is asked for, too
HARD = (
    "--lvspec-preset", "strict", "--lvspec-keep-min", "0", "--chunked-prefill-size", "48",
    "--max-running-requests", "4", "--max-total-tokens", "900", "--enable-metrics",
)  # fmt: skip
ENV = {"SGLANG_TEST_RETRACT": "1", "SGLANG_TEST_RETRACT_INTERVAL": "61"}


class Soak:
    """Clients that keep asking until the time is over; `counts` says what they did."""

    def __init__(self, url: str, plain_url: str, clips: list[str], seconds: float) -> None:
        self.url, self.plain_url, self.clips = url, plain_url, clips
        self.deadline = time.monotonic() + seconds
        self.counts: Counter[str] = Counter()
        self.wrong: list[dict[str, Any]] = []
        self._lock = threading.Lock()

    def run(self, clients: int) -> None:
        """Ask with so many clients at once."""
        threads = [threading.Thread(target=self._client, args=(number,)) for number in range(clients)]
        for thread in threads:
            thread.start()
        while any(thread.is_alive() for thread in threads):
            time.sleep(5)
            left = max(0.0, self.deadline - time.monotonic())
            print(f"\r  {left:5.0f} s left, {dict(self.counts)}", end="", flush=True)
        print()

    def _client(self, number: int) -> None:
        rng = random.Random(number)
        while time.monotonic() < self.deadline:
            request = self._request(rng)
            if rng.random() < 0.25:
                self._hang_up(request, rng.uniform(0.02, 1.0))
                continue
            answer = requests.post(f"{self.url}/generate", json=request, timeout=600).json()
            self._count("answered")
            if rng.random() < COMPARED:
                alone = requests.post(f"{self.plain_url}/generate", json=request, timeout=600).json()
                self._count("compared")
                if answer.get("output_ids") != alone["output_ids"]:
                    self.wrong.append({"request": request["text"], "ours": answer, "alone": alone})

    def _request(self, rng: random.Random) -> dict[str, Any]:
        videos = rng.choices(self.clips, k=rng.choice((0, 1, 1, 1, 2)))
        turns = [VIDEO * len(videos) + rng.choice(QUESTIONS)]
        if rng.random() < 0.3:
            turns += ["The video shows two objects.", rng.choice(QUESTIONS)]
        roles = ("user", "assistant")
        said = "".join(f"<|im_start|>{roles[i % 2]}\n{turn}<|im_end|>\n" for i, turn in enumerate(turns))
        system = "<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n"
        sampling = {"temperature": 0, "max_new_tokens": rng.choice((4, 24, 64))}
        text = f"{system}{said}<|im_start|>assistant\n"
        return {"text": text, "sampling_params": sampling, **({"video_data": videos} if videos else {})}

    def _hang_up(self, request: dict[str, Any], seconds: float) -> None:
        try:
            requests.post(f"{self.url}/generate", json=request, timeout=seconds)
        except requests.exceptions.Timeout:
            self._count("hung up")

    def _count(self, what: str) -> None:
        with self._lock:
            self.counts[what] += 1


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=float, default=10.0)
    parser.add_argument("--clips", type=int, default=24)
    parser.add_argument("--clients", type=int, default=6)
    parser.add_argument("--context", default="specvlm")
    parser.add_argument("--keep", default="0.25")
    parser.add_argument("--draft-tokens", default="400")
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    clips = ["data:video/mp4;base64," + base64.b64encode(clip.mp4).decode() for clip in held_out(options.clips, 1005)]
    hard = [*HARD, "--lvspec-context", options.context, "--lvspec-keep", options.keep]
    hard += ["--lvspec-draft-tokens", options.draft_tokens]
    with TemporaryDirectory() as folder:
        log = Path(folder) / "soak.log"
        with _server("none", [], {}, Path(folder) / "plain.log") as plain, _server("lvspec", hard, ENV, log) as url:
            soak = Soak(url, plain, clips, options.minutes * 60)
            soak.run(options.clients)
            found = _settle(url, soak)
        found["log_says_leak"] = "leak" in log.read_text(errors="replace").lower()
    if options.out is not None:
        options.out.write_text(json.dumps(found, indent=1) + "\n")
    print(json.dumps(found, indent=1))
    if soak.wrong or found["log_says_leak"] or not found["empty"]:
        raise SystemExit("The soak failed: answers differ or pools are not empty.")


def _server(spec: str, more: list[str], env: dict[str, str], log: Path) -> AbstractContextManager[str]:
    """The demo pair's server, as `make serve` starts it."""
    is_cpu = is_cpu_environment()

    def options(port: int) -> argparse.Namespace:
        pair = Path("demo/pair")
        return argparse.Namespace(
            target=str(pair / "target"), draft=str(pair / "draft"), spec=spec, port=port, dtype=None,
            more=[*more, "--skip-server-warmup"],
        )  # fmt: skip

    return running(
        lambda port: command_for(options(port), is_cpu), {**environment_for(options(0), is_cpu), **env}, log, spec
    )


def _metrics(url: str) -> dict[str, float]:
    """What a server with one rank tells, by name."""
    families = text_string_to_metric_families(requests.get(f"{url}/metrics", timeout=30).text)
    return {sample.name: sample.value for family in families for sample in family.samples}


def _settle(url: str, soak: Soak) -> dict[str, Any]:
    """Wait until the server is idle, flush it, and read what is left."""
    deadline = time.monotonic() + 120
    held = _metrics(url)
    while requests.post(f"{url}/flush_cache", timeout=30).status_code != 200:
        if time.monotonic() > deadline:
            raise SystemExit("The server does not become idle.")
        time.sleep(0.5)
    time.sleep(2)  # its idle checks
    requests.get(f"{url}/health", timeout=30).raise_for_status()
    metrics = _metrics(url)
    ours = {name: value for name, value in metrics.items() if name.startswith("lvspec:draft_")}
    counts = {**soak.counts, "wrong": len(soak.wrong)}
    is_empty = not metrics["sglang:num_used_tokens"] and not ours["lvspec:draft_held"]
    before = {name: held[name] for name in ("lvspec:draft_held", "sglang:num_used_tokens")}
    return {"counts": counts, "before_flush": before, "empty": is_empty, **ours}


if __name__ == "__main__":
    main()
