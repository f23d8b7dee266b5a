"""Odd requests at the shared servers, from several clients at once; `make fuzz` sends thousands of other ones."""

from __future__ import annotations

from typing import Any

import pytest

from bench.fuzz.addresses import bad_web_server
from bench.fuzz.campaign import Campaign
from bench.fuzz.ownership import OURS, owned, with_causes
from bench.fuzz.surroundings import surroundings_of
from bench.fuzz.target import Target
from tests.server.serving import Server

PAYLOADS = 120
# Among the first payloads of these are a placeholder that a user typed, ids outside the vocabulary, features as lists,
# an index of a video that lies, negative numbers of log-probabilities and deep custom parameters: without our checks
# some of them hang and some end the server.
SEEDS = [("lvspec_server", 2), ("loose_server", 31)]
# What of SGLang ends a server or hangs is refused by LVSPEC, so these many seconds are for a slow machine alone.
LIMIT_S = 120.0


def campaign_at(server: Server, web: str, seed: int) -> Campaign:
    target = Target(server.url, server.log)
    return Campaign(target, surroundings_of(server.url, web), seed, clients=4, limit_s=LIMIT_S, max_deaths=1)


@pytest.mark.parametrize(("name", "seed"), SEEDS)
def test_every_request_is_answered_or_refused_in_words(name: str, seed: int, request: pytest.FixtureRequest) -> None:
    """What SGLang alone answers with a 500, too, is its own; right requests in between keep their token ids."""
    server: Server = request.getfixturevalue(name)
    with bad_web_server() as web:
        campaign = campaign_at(server, web, seed)
        campaign.learn()
        campaign.run(range(PAYLOADS), batch=60)
        faults: list[Any] = with_causes(campaign, campaign.faults)
        if faults:
            plain = campaign_at(request.getfixturevalue("plain_server"), web, seed)
            plain.known = campaign.known
            faults = owned(plain, faults)
    assert [fault for fault in faults if fault.owner == OURS] == [], (
        "python -m bench.fuzz --seed S --only N replays one"
    )
    counts = campaign.counts()
    assert counts["4xx"] > PAYLOADS // 3 and counts["200"] > PAYLOADS // 10, "else this tests nothing"
    is_empty, held = campaign.target.is_empty()
    assert is_empty, held
