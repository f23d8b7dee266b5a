"""`lvspec explain` as a user runs it, on a loose server."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

from tests.server.oracle import LOOSENED
from tests.server.prompts import DESCRIBE, VIDEO, chat, payload
from tests.server.serving import Server


def explain(server: Server, *arguments: str) -> str:
    """What the command prints."""
    command = [sys.executable, "-m", "sgl_lvspec.cli", "explain", *arguments, "--url", server.url]
    environment = {**os.environ, "COLUMNS": "100"}
    done = subprocess.run(command, capture_output=True, text=True, timeout=240, env=environment, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_json_is_what_the_server_says_and_strict_is_the_target_alone(
    loose_server: Server, plain_server: Server, clips: Path, videos: list[str]
) -> None:
    clip = sorted(clips.glob("*.mp4"))[0]
    found = json.loads(explain(loose_server, str(clip), DESCRIBE, "--max-tokens", "96", "--json"))
    request = payload(chat(VIDEO + DESCRIBE), video_data=videos[0])
    plain, loose = plain_server.generate(request), loose_server.generate(request)
    assert [token["id"] for token in found["strict"]["tokens"]] == plain["output_ids"]
    assert found["strict"]["text"] == plain["text"]
    assert [token["id"] for token in found["asked"]["tokens"]] == loose["output_ids"]
    assert found["asked"]["text"] == loose["text"]
    assert found["asked"]["lvspec"] == loose["meta_info"]["lvspec"]
    assert any(token["label"] in LOOSENED for token in found["asked"]["tokens"])
    assert not any(token["label"] in LOOSENED for token in found["strict"]["tokens"])


def test_the_screen_has_a_row_for_each_loosened_token(loose_server: Server, clips: Path) -> None:
    clip = sorted(clips.glob("*.mp4"))[0]
    told = json.loads(explain(loose_server, str(clip), "--json", "--no-strict"))["asked"]["lvspec"]["accepted"]
    shown = explain(loose_server, str(clip))
    rows = [line for line in shown.splitlines() if line.split()[2:3] and line.split()[2] in LOOSENED]
    assert len(rows) == told["filler"] + told["shift"] > 0
    assert "[-" in shown and "{+" in shown, "the strict answer says it in other words"
    assert "times as fast" in shown
