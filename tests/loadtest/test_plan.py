from __future__ import annotations

import dataclasses

import pytest

from loadtest.media import Library, Medium, samples
from loadtest.plan import ALONE, CHAT, RAMP, SHORT, SIZES, TRAFFIC, Phase, Plan, pace_of
from tests.loadtest.hand_made import record

CLIP = Medium("c.mp4", "video", "data:video/mp4;base64,AAAA", ("What?", "How many?"))
FRESH = tuple(dataclasses.replace(CLIP, name=f"{i}.mp4", number=i) for i in range(200))
LIBRARY = Library((CLIP,), (dataclasses.replace(CLIP, name="s.png", kind="image"),), FRESH)


def drawn(seed: int = 1, pace: float = 0.5) -> list[Phase]:
    plan = Plan(SIZES, LIBRARY, seed)
    return [*plan.opening(), *plan.loaded(pace)]


def test_the_same_seed_and_pace_give_every_arm_the_same() -> None:
    assert drawn() == drawn()
    assert drawn(seed=1) != drawn(seed=2)


def test_every_kind_of_user_comes() -> None:
    kinds = {arrival.talk.scenario for phase in drawn() for arrival in phase.arrivals}
    assert kinds == {"single", "chat", "popular", "mixed", "slow", "hang-up"}


def test_rates_follow_the_pace_and_rise() -> None:
    slow, quick = (next(phase for phase in drawn(pace=pace) if phase.name == RAMP) for pace in (0.5, 5.0))
    rates = [step.rate for step in slow.steps]
    assert rates == sorted(rates) and [step.rate for step in quick.steps] == pytest.approx(
        [10 * r for r in rates], rel=0.05
    )
    named = Plan(dataclasses.replace(SIZES, rates=(1.0, 2.0)), LIBRARY, 1).loaded(0.5)
    assert [step.rate for step in named[-1].steps] == [1.0, 2.0]


def test_a_chat_asks_about_a_clip_that_nobody_has_seen() -> None:
    phases = {phase.name: phase for phase in drawn()}
    seen = {arrival.talk.media[0].name for arrival in phases[ALONE].arrivals if arrival.talk.media}
    clips = [arrival.talk.media[0].name for arrival in phases[CHAT].arrivals]
    assert len(set(clips)) == len(clips) and not seen & set(clips)
    assert all(len(arrival.talk.questions) >= 3 for arrival in phases[CHAT].arrivals)


def test_keys_name_requests_uniquely() -> None:
    keys = [arrival.talk.key for phase in drawn() for arrival in phase.arrivals]
    assert len(set(keys)) == len(keys)


def test_mixed_traffic_has_text_images_and_videos() -> None:
    plan = Plan(dataclasses.replace(SHORT, traffic=40.0, traffic_s=10), LIBRARY, 3)
    plan.opening()
    mixed = [a.talk for phase in plan.loaded(1.0) if phase.name == TRAFFIC for a in phase.arrivals]
    kinds = {talk.media[0].kind if talk.media else "text" for talk in mixed if talk.scenario == "mixed"}
    assert kinds == {"text", "image", "video"}


def test_pace_is_answers_a_second_of_what_was_asked_alone() -> None:
    records = [record(total_ms=1000.0), record(total_ms=3000.0), record(phase="ramp", total_ms=1.0), record(error="x")]
    assert pace_of(records) == 0.5
    with pytest.raises(ValueError, match="at least one question"):
        pace_of([record(error="HTTP 500")])


def test_samples_carry_their_own_questions_and_whole_files() -> None:
    videos, images = samples()
    assert len(videos) == 3 and len(images) == 1
    assert all(clip.url.startswith("data:video/mp4;base64,") and len(clip.questions) > 1 for clip in videos)
