"""A server whose draft gets every fact wrong, with the loosest preset: the guard notices, and makes it strict.

Strict requests of the same server have a shadow.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import requests

from bench.fidelity.hostile import write_hostile
from demo.heldout import held_out
from tests.server.conftest import data_url
from tests.server.prompts import DESCRIBE, VIDEO, chat, payload
from tests.server.serving import Pair, Server, lvspec_args, start

CLIPS = 40  # half of them at most are needed
AFTER = 2  # answers about further clips, once the server is strict


@pytest.fixture(scope="module")
def hostile(pair: Pair, tmp_path_factory: pytest.TempPathFactory) -> Pair:
    folder = tmp_path_factory.mktemp("hostile")
    write_hostile(pair.target.parent, folder)
    return Pair(folder / "target", folder / "draft")


@pytest.fixture(scope="module")
def server(hostile: Pair, log_dir: Path) -> Iterator[Server]:
    """`paper` loosens without a floor and without a budget of its own."""
    server = start(
        hostile.target, *lvspec_args(hostile), "--lvspec-preset", "paper", "--lvspec-shadow", "1", "--enable-metrics",
        "--max-running-requests", "2", log=log_dir / "guard.log",
    )  # fmt: skip
    yield server
    server.stop()


@pytest.fixture(scope="module")
def described(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    """Requests to describe clips that neither model was trained on."""
    folder = tmp_path_factory.mktemp("clips")
    made = []
    for number, clip in enumerate(held_out(CLIPS, seed=77)):
        path = folder / f"{number}.mp4"
        path.write_bytes(clip.mp4)
        made.append(payload(chat(VIDEO + DESCRIBE), video_data=data_url(path, "video/mp4"), max_new_tokens=160))
    return made


def metric(server: Server, name: str) -> float:
    lines = requests.get(server.url + "/metrics", timeout=60).text.splitlines()
    return sum(float(line.rpartition(" ")[2]) for line in lines if line.startswith(name))


def asking(request: dict[str, Any], **settings: Any) -> dict[str, Any]:
    sampling = {**request["sampling_params"], "custom_params": {"lvspec": settings}}
    return {**request, "sampling_params": sampling}


def test_a_shadow_is_told_and_not_followed(
    server: Server, plain_server: Server, described: list[dict[str, Any]]
) -> None:
    answer = server.generate(asking(described[0], mode="strict"))
    assert answer["output_ids"] == plain_server.generate(described[0])["output_ids"]
    told = answer["meta_info"]["lvspec"]
    assert (told["mode"], told["strict_reason"], told["guard"]) == ("strict", "asked for strict", None)
    assert told["shadow"]["rounds"] == told["rounds"] and told["shadow"]["T_strict"] == pytest.approx(told["T"])
    assert told["shadow"]["T_loose"] > told["shadow"]["T_strict"]
    assert 0.5 < told["estimated_retention"] < 1
    assert metric(server, "lvspec:shadow_rounds_total") == told["rounds"]


def test_answers_become_the_targets_own_and_the_answers_before_say_since_when(
    server: Server, plain_server: Server, described: list[dict[str, Any]]
) -> None:
    """Drift is seen in many an answer; once in four of the last, new ones begin stricter."""
    held: list[dict[str, Any]] = []
    strict = 0
    for request in described:
        answer = server.generate(asking(request, labels=True))
        told, labels = answer["meta_info"]["lvspec"], answer["meta_info"]["lvspec_labels"]
        if told["guard"] is not None:
            held.append(told["guard"])
        if told["strict_reason"] == "guard":
            assert told["mode"] == "strict" and told["guard"]["reason"] == "other requests"
            assert not {"filler", "shift"} & set(labels)
            assert answer["output_ids"] == plain_server.generate(request)["output_ids"]
            strict += 1
            if strict == AFTER:
                break
        elif told["guard"] is not None and told["guard"]["level"] == "strict":
            # The bound acts on the round after the one that passed it.
            assert not {"filler", "shift"} & set(labels[told["guard"]["at"] + 1 :])
        else:
            assert told["divergence"] > 0, "a draft that lies is believed now and then"
    assert strict == AFTER, "the server is not strict after all clips"
    assert {each["level"] for each in held} == {"tightened", "strict"} and all(each["acted"] for each in held)
    assert metric(server, "lvspec:guard_level") == 2
    assert metric(server, "lvspec:guard_held_total") >= AFTER
