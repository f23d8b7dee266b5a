"""Requests that SGLang 0.5.23 answers with a 500, answers without the video, or does not survive.

    python reproduce.py http://127.0.0.1:30000 VIDEO_FILE [--deadly]

Needs requests and Pillow, and a server with a Qwen-VL model. The deadly ones end the server, each at its first try.
"""

from __future__ import annotations

import base64
import io
import sys
from pathlib import Path
from typing import Any

import requests
from PIL import Image

VIDEO, IMAGE = (f"<|vision_start|><|{kind}_pad|><|vision_end|>" for kind in ("video", "image"))


def data_url(content: bytes) -> str:
    return "data:application/octet-stream;base64," + base64.b64encode(content).decode()


def huge_image() -> bytes:
    """20000 x 20000 pixels in 50 kB, which is more than Pillow opens."""
    sink = io.BytesIO()
    Image.new("1", (20_000, 20_000)).save(sink, "PNG")
    return sink.getvalue()


def bodies(video: bytes, *, with_deadly: bool) -> dict[str, dict[str, Any]]:
    """Bodies for `/generate` by what is wrong with them."""
    third = len(video) // 3
    damaged = video[:60] + bytes(third) + video[60 + third :]
    frames = [data_url(b"frame")] * 4
    found = {
        "500: frames that do not decode": {"text": VIDEO + "What?", "video_data": [data_url(damaged)]},
        "500: image beyond Pillow's limit": {"text": IMAGE + "What?", "image_data": [data_url(huge_image())]},
        "500: empty prompt": {"text": "", "video_data": [data_url(video)]},
        # transformers opens the strings itself: paths and URLs that --allowed-media-domains does not let through.
        "500: list of addresses as a video": {"text": VIDEO + "What?", "video_data": [frames]},
        "200: video without a placeholder, dropped": {"text": "What happens?", "video_data": [data_url(video)]},
    }
    if with_deadly:
        found |= {
            "dead: token id outside the vocabulary": {"input_ids": [1, 10**9]},
            # Only with --enable-custom-logit-processor.
            "dead: logit processor that does not unpickle": {"text": "What?", "custom_logit_processor": "x"},
        }
    return found


def main() -> None:
    url, file, *flags = sys.argv[1:]
    for name, body in bodies(Path(file).read_bytes(), with_deadly="--deadly" in flags).items():
        try:
            response = requests.post(f"{url}/generate", json=body | {"sampling_params": {"max_new_tokens": 4}})
            print(f"{name}: {response.status_code} {response.text[:100]}")
        except requests.ConnectionError:
            print(f"{name}: no answer")


if __name__ == "__main__":
    main()
