"""Requests that SGLang 0.5.23 never answers, or does not survive.

    python reproduce.py http://127.0.0.1:30000 IMAGE_FILE [--deadly]

Needs requests, and a server with a Qwen-VL model. Behind --deadly: those that may end the server (0 does), take all of
its memory, or are answered with nonsense; name one by its number to send it alone.
"""

from __future__ import annotations

import base64
import sys
import threading
import time
from pathlib import Path
from typing import Any

import requests

WAIT_S = 20


def unanswered(url: str, image: str) -> None:
    """Each is asked for WAIT_S; all of them should be a 200 or a 400 at once."""
    parts = [{"type": "image_url", "image_url": {"url": image}}, {"type": "text", "text": "What is <|image_pad|>?"}]
    typed = {"model": "default", "max_tokens": 4, "messages": [{"role": "user", "content": parts}]}
    show("a placeholder that a user typed", url, "/v1/chat/completions", typed)

    busy = {"text": "Count.", "sampling_params": {"max_new_tokens": 2000, "ignore_eos": True}}
    threading.Thread(target=requests.post, args=(f"{url}/generate",), kwargs={"json": busy}, daemon=True).start()
    time.sleep(1)
    short = {"text": "Hello", "sampling_params": {"max_new_tokens": 4}}
    show(
        "a request id that begins with HEALTH_CHECK, while another runs",
        url,
        "/generate",
        short | {"rid": "HEALTH_CHECK_1"},
    )


def deadly() -> dict[str, tuple[str, dict[str, Any]]]:
    """Endpoint and body by what is wrong with them."""

    def sampling(**params: Any) -> tuple[str, dict[str, Any]]:
        return "/generate", {"text": "Hello", "sampling_params": {"max_new_tokens": 4, **params}}

    untyped = {"return_logprob": True, "top_logprobs_num": 1.5, "sampling_params": {"max_new_tokens": 4}}
    return {
        "a field of another type, past every check": (
            "/vertex_generate",
            {"instances": [{"text": "Hello"}], "parameters": untyped},
        ),
        "a bias that is infinite in float32": sampling(logit_bias={"5": 1e39}),
        "a repetition penalty that is 0 in float32": sampling(repetition_penalty=1e-46),
        "a temperature that is infinite in float32": sampling(temperature=1e39, min_new_tokens=2),
        # A list of this length is made before anything is checked: 16 GB.
        "so many samples": sampling(n=2**31),
    }


def show(name: str, url: str, path: str, body: dict[str, Any]) -> None:
    try:
        response = requests.post(url + path, json=body, timeout=WAIT_S)
        print(f"{name}: {response.status_code} {response.text[:150]}")
    except requests.Timeout:
        print(f"{name}: no answer after {WAIT_S} s")
    except requests.ConnectionError:
        print(f"{name}: the server has ended")


def main() -> None:
    url, file, *flags = sys.argv[1:]
    if not flags:
        unanswered(url, "data:image/png;base64," + base64.b64encode(Path(file).read_bytes()).decode())
        return
    for number, (name, (path, body)) in enumerate(deadly().items()):
        if flags[1:] in ([], [str(number)]):
            show(f"{number} {name}", url, path, body)


if __name__ == "__main__":
    main()
