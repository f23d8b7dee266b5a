"""Which rule a request is verified by, and why one is strict."""

from __future__ import annotations

import dataclasses
import itertools
import math
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from sglang.srt.managers.schedule_batch import Modality, MultimodalDataItem, MultimodalInputs, Req
from sglang.srt.sampling.sampling_params import SamplingParams

from sgl_lvspec.config import INTERNAL, LVSpecConfig, flag_of
from sgl_lvspec.presets import NAMES, PRESETS, Rule
from sgl_lvspec.verification import settings
from sgl_lvspec.verification.settings import RequestRule, read_settings

PAPER = LVSpecConfig("paper")
STRICT = LVSpecConfig("strict")
UNTIL_ASKED = LVSpecConfig("paper", relaxation=0)


def _params(**fields: Any) -> SamplingParams:
    """Sampling parameters as the scheduler gets them."""
    params = SamplingParams(**fields)
    params.normalize(SimpleNamespace(encode=lambda text, **_: list(text)))
    return params


def _req(*modalities: Modality, grammar: object = None, **fields: Any) -> Req:
    """What the scheduler holds of a request, as far as its rule goes."""
    items = [MultimodalDataItem(modality=modality) for modality in modalities]
    inputs = MultimodalInputs(mm_items=items) if items else None
    return SimpleNamespace(  # type: ignore[return-value]
        sampling_params=_params(**fields), multimodal_inputs=inputs, grammar=grammar
    )


def _video(**fields: Any) -> Req:
    return _req(Modality.VIDEO, **fields)


def _asking(**asked: Any) -> dict[str, Any]:
    return {"custom_params": {"lvspec": asked}}


class TestWhatWasAsked:
    def test_nothing_is_the_servers_rule(self) -> None:
        for custom_params in (None, {}, {"mine": 1}, {"lvspec": {}}, {"lvspec": {"mode": "loose"}}):
            rule = RequestRule.of(_video(custom_params=custom_params), PAPER)
            assert rule == RequestRule(PRESETS["paper"], "paper", None, wants_labels=False)
            assert not rule.is_strict

    @pytest.mark.parametrize("server", [PAPER, UNTIL_ASKED, LVSpecConfig("conservative", window=4)])
    @pytest.mark.parametrize("preset", ["conservative", "balanced", "paper"])
    def test_a_preset_replaces_the_servers_rule_whole(self, server: LVSpecConfig, preset: str) -> None:
        rule = RequestRule.of(_video(**_asking(preset=preset)), server)
        assert (rule.rule, rule.name, rule.strict_reason) == (PRESETS[preset], preset, None)

    @pytest.mark.parametrize(
        ("name", "value", "read"),
        [
            ("relaxation", 1, 1.0),
            ("floor", 0.2, 0.2),
            ("window", 16, 16),
            ("shift", "both", "both"),
            ("max_share", 0.1, 0.1),
            ("max_run", 1, 1),
            ("max_run", "none", None),
            ("protect_digits", True, True),
            ("protect_digits", False, False),
        ],
    )
    def test_single_values_change_the_servers_rule_or_the_preset(self, name: str, value: Any, read: Any) -> None:
        server = LVSpecConfig("conservative", window=4)
        alone = RequestRule.of(_video(**_asking(**{name: value})), server)
        assert alone.rule == dataclasses.replace(server.rule, **{name: read})
        assert alone.name == "custom"
        beside = RequestRule.of(_video(**_asking(preset="paper", **{name: value})), server)
        assert beside.rule == dataclasses.replace(PRESETS["paper"], **{name: read})
        assert beside.name == ("paper" if beside.rule == PRESETS["paper"] else "custom")

    @pytest.mark.parametrize("server", [PAPER, STRICT, UNTIL_ASKED])
    @pytest.mark.parametrize(
        "asked",
        [
            {"mode": "strict"},
            {"preset": "strict"},
            {"relaxation": 0},
            {"relaxation": 0.0, "window": 3},
            {"mode": "strict", "relaxation": 0},
            {"preset": "strict", "relaxation": 0},
            {"preset": "paper", "relaxation": 0},
        ],
    )
    def test_strict_can_be_asked_of_every_server(self, server: LVSpecConfig, asked: dict[str, Any]) -> None:
        rule = RequestRule.of(_video(**_asking(**asked)), server)
        assert (rule.rule, rule.name, rule.strict_reason) == (PRESETS["strict"], "strict", "asked for strict")
        assert rule.is_strict

    @pytest.mark.parametrize("server", [STRICT, UNTIL_ASKED])
    def test_a_strict_server_says_so(self, server: LVSpecConfig) -> None:
        rule = RequestRule.of(_video(), server)
        assert (rule.rule, rule.name, rule.strict_reason) == (PRESETS["strict"], "strict", "server is strict")

    @pytest.mark.parametrize("asked", [{"preset": "paper"}, {"relaxation": 0.5}, {"mode": "loose", "relaxation": 0.5}])
    def test_a_server_that_is_strict_until_asked_can_be_asked(self, asked: dict[str, Any]) -> None:
        assert not RequestRule.of(_video(**_asking(**asked)), UNTIL_ASKED).is_strict

    @pytest.mark.parametrize("server", [PAPER, STRICT])
    def test_labels_do_not_depend_on_the_rule(self, server: LVSpecConfig) -> None:
        assert RequestRule.of(_video(**_asking(labels=True)), server).wants_labels
        assert RequestRule.of(_video(**_asking(labels=True, mode="strict")), server).wants_labels
        assert RequestRule.of(_req(**_asking(labels=True)), server).wants_labels
        assert not RequestRule.of(_video(**_asking(labels=False)), server).wants_labels


BAD: list[tuple[Any, str]] = [
    (7, r"^custom_params must be an object; found 7\. Send"),
    ([{"lvspec": {}}], r"^custom_params must be an object"),
    (
        {"lvspec": "strict"},
        r"^custom_params\.lvspec must be an object with the settings mode, preset, .* found 'strict'",
    ),
    ({"lvspec": None}, r"^custom_params\.lvspec must be an object .* found None"),
    ({"lvspec": ["mode"]}, r"^custom_params\.lvspec must be an object"),
    (_asking(mood="strict")["custom_params"], r"knows the settings mode, preset, .*; found 'mood'\. Correct the name"),
    (_asking(scorer="attention")["custom_params"], r"knows the settings .*; found 'scorer'\."),
    ({"lvspec": {1: 2}}, r"knows the settings .*; found 1\."),
    (_asking(mode="Strict")["custom_params"], r"\.mode must be one of strict, loose; found 'Strict'\. Choose"),
    (_asking(mode=None)["custom_params"], r"\.mode must be one of strict, loose; found None"),
    (_asking(mode=True)["custom_params"], r"\.mode must be one of strict, loose; found True"),
    (_asking(mode=["strict"])["custom_params"], r"\.mode must be one of strict, loose; found \['strict'\]"),
    (_asking(preset="wild")["custom_params"], r"\.preset must be one of strict, conservative, balanced, paper; found"),
    (_asking(preset=None)["custom_params"], r"\.preset must be one of .* found None"),
    (_asking(relaxation=1.5)["custom_params"], r"\.relaxation must be a number from 0 to 1; found 1\.5\. Correct it"),
    (_asking(relaxation=math.nan)["custom_params"], r"\.relaxation must be .* found nan"),
    (_asking(relaxation=-math.inf)["custom_params"], r"\.relaxation must be .* found -inf"),
    (_asking(relaxation=True)["custom_params"], r"\.relaxation must be .* found True"),
    (_asking(relaxation=None)["custom_params"], r"\.relaxation must be .* found None"),
    (_asking(relaxation="0.5")["custom_params"], r"\.relaxation must be .* found '0\.5'"),
    (_asking(floor=-1)["custom_params"], r"\.floor must be a number from 0 to 1; found -1"),
    (_asking(window=17)["custom_params"], r"\.window must be a whole number from 0 to 16; found 17"),
    (_asking(window=2.0)["custom_params"], r"\.window must be a whole number from 0 to 16; found 2\.0"),
    (_asking(shift="left")["custom_params"], r"\.shift must be one of off, draft, target, both; found 'left'"),
    (_asking(max_share=0)["custom_params"], r"\.max_share must be a number above 0 and at most 1; found 0"),
    (_asking(max_run=0)["custom_params"], r"\.max_run must be a whole number of 1 or more, or none; found 0"),
    (_asking(max_run=None)["custom_params"], r"\.max_run must be .*; found None"),
    (_asking(protect_digits="on")["custom_params"], r"\.protect_digits must be true or false; found 'on'"),
    (_asking(protect_digits=1)["custom_params"], r"\.protect_digits must be true or false; found 1"),
    (_asking(labels="yes")["custom_params"], r"\.labels must be true or false; found 'yes'"),
    (_asking(labels=None)["custom_params"], r"\.labels must be true or false; found None"),
    (_asking(labels=1)["custom_params"], r"\.labels must be true or false; found 1"),
    (_asking(mode="strict", preset="paper")["custom_params"], "found mode strict and preset paper"),
    (_asking(mode="strict", relaxation=0.5)["custom_params"], "found mode strict and relaxation"),
    (_asking(mode="strict", window=2)["custom_params"], "found mode strict and window"),
    (_asking(mode="strict", preset="strict", floor=0)["custom_params"], "found mode strict and floor"),
    (_asking(preset="strict", relaxation=0.5)["custom_params"], "found preset strict and relaxation"),
    (_asking(preset="strict", relaxation=0, max_run=2)["custom_params"], "found preset strict and max_run"),
    (_asking(mode="loose", preset="strict")["custom_params"], "found mode loose and preset strict"),
    (_asking(mode="loose", relaxation=0)["custom_params"], "found mode loose and relaxation 0"),
]


@pytest.mark.parametrize("server", [PAPER, STRICT, UNTIL_ASKED])
class TestUnreadable:
    @pytest.mark.parametrize(("custom_params", "message"), BAD)
    def test_refused_where_requests_are_checked(self, server: LVSpecConfig, custom_params: Any, message: str) -> None:
        with pytest.raises(ValueError, match=message) as refusal:
            read_settings(custom_params, server)
        assert "; found " in str(refusal.value)
        assert str(refusal.value).endswith(".")

    @pytest.mark.parametrize("custom_params", [bad for bad, _ in BAD])
    def test_strict_where_they_arrive_unchecked(self, server: LVSpecConfig, custom_params: Any) -> None:
        """Extra tokenizer workers load no plugins."""
        req = _video()
        req.sampling_params.custom_params = custom_params
        rule = RequestRule.of(req, server)
        assert rule == RequestRule(PRESETS["strict"], "strict", "unreadable settings", wants_labels=False)
        assert rule.is_strict


LOOSE_ASKED = [
    {"mode": "loose"},
    {"preset": "conservative"},
    {"relaxation": 0.1},
    {"window": 1},
    {"max_run": "none"},
    {"preset": "paper", "window": 1},
]


class TestStrictServer:
    @pytest.mark.parametrize("asked", LOOSE_ASKED)
    def test_a_loose_rule_is_refused_with_how_to_start_the_server(self, asked: dict[str, Any]) -> None:
        with pytest.raises(
            ValueError,
            match=r"needs a server with a preset that loosens; found the preset strict\. Start the server with "
            r"--lvspec-preset conservative\|balanced\|paper \(and --lvspec-relaxation 0, ",
        ):
            read_settings({"lvspec": asked}, STRICT)

    @pytest.mark.parametrize("asked", LOOSE_ASKED)
    def test_what_arrives_unchecked_is_strict(self, asked: dict[str, Any]) -> None:
        assert RequestRule.of(_video(**_asking(**asked)), STRICT).is_strict

    def test_the_servers_own_rule_cannot_be_loose_where_it_is_not(self) -> None:
        with pytest.raises(
            ValueError, match=r"mode loose needs a rule that loosens; .* relaxation is 0\. Name a preset"
        ):
            read_settings({"lvspec": {"mode": "loose"}}, UNTIL_ASKED)
        with pytest.raises(ValueError, match=r"mode loose needs a rule that loosens"):
            read_settings({"lvspec": {"mode": "loose", "window": 3}}, UNTIL_ASKED)


REASONS: list[tuple[Req, str | None]] = [
    (_req(), "no image or video"),
    (_req(Modality.AUDIO), "no image or video"),
    (_req(Modality.AUDIO, Modality.AUDIO), "no image or video"),
    (_req(Modality.IMAGE), None),
    (_req(Modality.AUDIO, Modality.VIDEO), None),
    (_req(Modality.IMAGE, Modality.VIDEO), None),
    (_video(json_schema="{}"), "grammar"),
    (_video(regex="a+"), "grammar"),
    (_video(ebnf="root ::= 'a'"), "grammar"),
    (_video(structural_tag="{}"), "grammar"),
    (_video(grammar=object()), "grammar"),
    (_video(json_schema="", regex="", ebnf="", structural_tag=""), None),
    (_video(stop="."), "stop string"),
    (_video(stop=["."]), "stop string"),
    (_video(stop_regex="a+"), "stop string"),
    (_video(stop=[], stop_regex=[]), None),
    (_video(frequency_penalty=0.1), "penalties"),
    (_video(presence_penalty=-0.1), "penalties"),
    (_video(repetition_penalty=1.1), "penalties"),
    (_video(repetition_penalty=0.9), "penalties"),
    (_video(min_new_tokens=1), "penalties"),
    (_video(stop_token_ids=list(range(8))), None),
    (_video(stop_token_ids=list(range(9))), "more than 8 stop tokens"),
    (_video(stop_token_ids=[*range(8), 10**12, -1]), None),  # the last two are tokens of no model
    (_video(temperature=0.7, top_p=0.5, top_k=5, min_p=0.1), None),
    (_video(ignore_eos=True, skip_special_tokens=False, no_stop_trim=True, n=2), None),
    (_video(logit_bias={"3": -100}), None),
]


@pytest.mark.parametrize(("req", "reason"), REASONS)
def test_what_makes_a_request_strict(req: Req, reason: str | None) -> None:
    rule = RequestRule.of(req, PAPER)
    assert rule.strict_reason == reason
    assert rule.is_strict is (reason is not None)
    assert rule.rule.is_strict is rule.is_strict
    assert rule.name == ("paper" if reason is None else "strict")


def test_every_reason_is_listed_once() -> None:
    met = {reason for _, reason in REASONS if reason} | {"asked for strict", "server is strict", "unreadable settings"}
    met.add("guard")  # guard.desk
    assert sorted(settings.STRICT_REASONS) == sorted(met)


def test_what_was_asked_comes_before_what_the_request_is() -> None:
    for reason, server, asked in (("asked for strict", PAPER, {"mode": "strict"}), ("server is strict", STRICT, {})):
        assert RequestRule.of(_req(stop=".", **_asking(**asked)), server).strict_reason == reason


@pytest.mark.parametrize(("floor", "found"), [(0.0, settings.BIAS_FLOOR), (0.2, 0.2)])
def test_a_banned_word_is_not_loosened(floor: float, found: float) -> None:
    """exp(-100) is a probability above a floor of 0."""
    server = LVSpecConfig("paper", floor=floor)
    assert RequestRule.of(_video(), server).rule.floor == floor
    banned = RequestRule.of(_video(logit_bias={"3": -100.0}), server)
    assert banned.rule == dataclasses.replace(server.rule, floor=found)
    assert banned.name == server.rule_name  # the floor is ours, not the client's
    assert math.exp(-100) < settings.BIAS_FLOOR
    assert RequestRule.of(_video(logit_bias={}), server).rule.floor == floor


def test_nothing_that_can_be_asked_escapes_the_two_readers() -> None:
    """Every pair of settings is either refused or gives a rule that is strict exactly when it says so."""
    values: dict[str, tuple[Any, ...]] = {
        "mode": ("strict", "loose"),
        "preset": tuple(PRESETS),
        "relaxation": (0, 0.5),
        "floor": (0, 0.5),
        "window": (0, 2),
        "shift": ("off", "both"),
        "max_share": (0.5,),
        "max_run": (2, "none"),
        "protect_digits": (True, False),
        "labels": (True,),
    }
    assert set(values) == set(settings.SETTINGS)
    assert set(NAMES) <= set(values)
    options = [(name, value) for name, all_of in values.items() for value in all_of]
    accepted = 0
    for pair, server in itertools.product(itertools.combinations(options, 2), (PAPER, STRICT, UNTIL_ASKED)):
        asked = dict(pair)
        rule = RequestRule.of(_video(**_asking(**asked)), server)
        assert rule.is_strict == rule.rule.is_strict
        assert isinstance(rule.rule, Rule)
        if "strict" in (asked.get("mode"), asked.get("preset")) or asked.get("relaxation") == 0 or server is STRICT:
            assert rule.is_strict
        accepted += rule.strict_reason != "unreadable settings"
    assert accepted > 100


def test_the_pages_list_every_setting() -> None:
    docs = Path(__file__).parents[3] / "docs"

    def cells(heading: str, column: int = 1, page: str = "settings.md") -> set[str]:
        table = (docs / page).read_text().split(f"\n## {heading}\n")[1].split("\n## ")[0]
        rows = [line.split("|") for line in table.splitlines() if line.startswith("|")][2:]
        return {row[column].strip(" `").split("`")[0].split(" ")[0] for row in rows} - {""}

    verification = "Loose verification: settings"
    assert cells(verification, 2) == set(settings.SETTINGS)
    found = cells(verification) | cells("The guard, and the shadow") | cells("Flags", page="security.md")
    found |= cells("Long videos: what the draft sees and keeps") | cells("Rounds: when a chain ends, what is captured")
    assert found == {flag_of(field.name) for field in dataclasses.fields(LVSpecConfig) if field.name not in INTERNAL}
