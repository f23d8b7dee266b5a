"""The same questions to a running LVSPEC server: one arm a preset, beside the offline ones (`--url`).

Accepted tokens and labels come from `meta_info` of a chat completion, so these are the server's own counts.
"""

from __future__ import annotations

import base64
import json
import urllib.error
import urllib.request
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np

from bench.fidelity.engine import LIMIT
from bench.fidelity.marks import COLUMN, COLUMNS, mark_text
from demo.heldout import HeldOutClip
from sgl_lvspec.presets import PRESETS

AT_ONCE = 4  # requests under way: a CPU server gains nothing from more


def served_rows(
    url: str, clips: Sequence[HeldOutClip], own: Sequence[str], tick: Callable[[], Any]
) -> dict[str, np.ndarray]:
    """Marks [clips, columns] of each preset's answers to the describing question.

    Args:
        url: of the server, such as http://127.0.0.1:30000.
        own: what the target answers alone, a text a clip.
        tick: called after each answer.

    Raises:
        RuntimeError: the server is none of ours, or strict and refuses loose requests.
    """
    rows: dict[str, np.ndarray] = {}
    for preset in PRESETS:

        def row(pair: tuple[HeldOutClip, str], preset: str = preset) -> list[float]:
            clip, alone = pair
            text, told, tokens = ask(url, clip, preset)
            found = mark_text(text, clip, 0, alone)
            found |= counts(told, tokens)
            tick()
            return [found[name] for name in COLUMNS]

        with ThreadPoolExecutor(AT_ONCE) as pool:
            rows[preset] = np.array(list(pool.map(row, zip(clips, own, strict=True))), dtype=np.float64)
    assert all(part.shape[1] == len(COLUMN) for part in rows.values())
    return rows


def counts(told: dict[str, Any], tokens: int) -> dict[str, float]:
    """What the rule did, from `meta_info["lvspec"]`. The server does not tell how rounds ended."""
    by_label = told["accepted"]
    changed = by_label["filler"] + by_label["shift"]
    return {
        "tokens": tokens,
        "matches": by_label["match"],
        "fillers": by_label["filler"],
        "shifts": by_label["shift"],
        "own_tokens": told["bonus"],
        "others": round(told["divergence"] * tokens),
        "rounds": told["rounds"],
        "accepted": (told["T"] or 0.0) * told["rounds"],
        "rejected": 0,  # not told
        "given_up": told["logprob_given_up"] or 0.0 if changed else 0.0,
    }


def ask(url: str, clip: HeldOutClip, preset: str) -> tuple[str, dict[str, Any], int]:
    """Text, `meta_info["lvspec"]` and number of tokens of one greedy answer."""
    video = "data:video/mp4;base64," + base64.b64encode(clip.mp4).decode()
    content = [
        {"type": "video_url", "video_url": {"url": video}},
        {"type": "text", "text": clip.questions[0].text},
    ]
    body = {
        "model": "default",
        "messages": [{"role": "user", "content": content}],
        "max_tokens": LIMIT,
        "temperature": 0,
        "return_meta_info": True,
        "custom_params": {"lvspec": {"preset": preset}},
    }
    request = urllib.request.Request(
        url.rstrip("/") + "/v1/chat/completions", json.dumps(body).encode(), {"Content-Type": "application/json"}
    )
    try:
        with urllib.request.urlopen(request, timeout=300) as reply:
            answer = json.load(reply)
    except urllib.error.HTTPError as error:
        raise RuntimeError(
            f"--url must name a server that allows every preset; found {url} refusing {preset}: "
            f"{error.read().decode(errors='replace')[:300]} Start it with --lvspec-preset balanced."
        ) from error
    choice = answer["choices"][0]
    told = choice["meta_info"].get("lvspec")
    if told is None:
        raise RuntimeError(
            f"--url must name an LVSPEC server; found no counts of it in the answers of {url}. Start it with "
            "`make serve SPEC=lvspec`."
        )
    return str(choice["message"]["content"]), told, int(answer["usage"]["completion_tokens"])
