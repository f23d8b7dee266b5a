"""Which rule a request is verified by: what its client asked for, and what makes it strict whatever was asked.

`RequestRule.of` runs on the host, once per prefill of a request; `read_settings` also where requests are checked
(`request_checks`), so that both read a request alike.
"""

from __future__ import annotations

import dataclasses
import zlib
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple

from sgl_lvspec.config import LVSpecConfig, flag_of
from sgl_lvspec.guard.desk import HELD_BY_SERVER
from sgl_lvspec.presets import LOOSE_PRESETS, NAMES, PRESETS, Rule, name_of, read_value
from sgl_lvspec.shown import shown
from sgl_lvspec.verification.protected import MAX_STOP_TOKENS, own_stop_tokens

if TYPE_CHECKING:
    from sglang.srt.managers.schedule_batch import Req
    from sglang.srt.sampling.sampling_params import SamplingParams

KEY = "lvspec"
MODES = ("strict", "loose")
SETTINGS = ("mode", "preset", *NAMES, "labels")

# A client bans a token with a bias of -100, which leaves it a probability above 0: a floor of 0 would accept it.
BIAS_FLOOR = 1e-6

# Why a request is strict, as its client reads it.
UNREADABLE = "unreadable settings"
ASKED = "asked for strict"
SERVER = "server is strict"
TEXT_ONLY = "no image or video"
GRAMMAR = "grammar"
STOP_STRING = "stop string"
PENALTIES = "penalties"
STOP_TOKENS = f"more than {MAX_STOP_TOKENS} stop tokens"
GUARD = HELD_BY_SERVER
STRICT_REASONS = (UNREADABLE, ASKED, SERVER, TEXT_ONLY, GRAMMAR, STOP_STRING, PENALTIES, STOP_TOKENS, GUARD)


class Settings(NamedTuple):
    """What a client asked for, on this server."""

    rule: Rule
    name: str  # of a preset, or "custom" where single values differ from it
    strict_reason: str | None  # ASKED or SERVER where the rule is strict
    wants_labels: bool


@dataclass(frozen=True, slots=True)
class RequestRule:
    """The rule that one request is verified by.

    Attributes:
        rule: numbers for the request's row; the preset `strict` for a strict request without a shadow.
        name: name of the rule: a preset, or "custom" where single values were changed.
        strict_reason: why the request is strict, one of STRICT_REASONS; None for a loose one.
        wants_labels: whether the answer carries lists with an entry for each token.
        is_shadow: whether the rule decides beside the strict result, which is what is committed (`guard.shadow`).
    """

    rule: Rule
    name: str
    strict_reason: str | None
    wants_labels: bool
    is_shadow: bool = False

    @property
    def is_strict(self) -> bool:
        """Whether only the target's own choices are committed."""
        return self.strict_reason is not None

    @classmethod
    def of(cls, req: Req, config: LVSpecConfig) -> RequestRule:
        """The rule of a request; settings that cannot be read make it strict, never an error.

        Log-probabilities are no reason to be strict: those that a client gets are the target's own, of whatever token
        was committed. Neither is `logit_bias`, but then the rule's floor is at least BIAS_FLOOR.
        """
        params = req.sampling_params
        try:
            settings = read_settings(params.custom_params, config)
        except ValueError:
            return cls(PRESETS["strict"], "strict", UNREADABLE, wants_labels=False)
        found = _reason_of(req)
        reason = settings.strict_reason or found
        if reason is not None:
            is_shadow = config.shadow > 0 and found is None and is_sampled(req.rid, config.shadow)
            rule = config.shadow_rule if is_shadow else PRESETS["strict"]
            return cls(rule, "strict", reason, settings.wants_labels, is_shadow)
        rule = settings.rule
        if params.logit_bias:
            rule = dataclasses.replace(rule, floor=max(rule.floor, BIAS_FLOOR))
        return cls(rule, settings.name, None, settings.wants_labels)


def is_sampled(rid: str, share: float) -> bool:
    """Whether a request is one of this share, the same on every rank."""
    return zlib.crc32(rid.encode()) < share * 2**32


def read_settings(custom_params: object, config: LVSpecConfig) -> Settings:
    """A request's own settings (`custom_params["lvspec"]`) in place of the server's.

    A preset replaces the server's rule, single values change that preset or the server's rule, and `mode` says which
    of the two was meant: "strict", or "loose" for the server's own rule unless other settings stand beside it.

    Raises:
        ValueError: a setting that is none, an impossible value, settings that contradict each other, or a loose rule
            on a server that scores no relevance; in the form *required / found / do this*.
    """
    given = _given(custom_params)
    mode, preset = _chosen(given, "mode", MODES), _chosen(given, "preset", tuple(PRESETS))
    values = {name: read_value(name, given[name], _shown(name)) for name in NAMES if name in given}
    wants_labels = given.get("labels", False)
    if not isinstance(wants_labels, bool):
        raise ValueError(
            f"{_shown('labels')} must be true or false; found {shown(wants_labels)}. Correct it or drop it."
        )

    _refuse_contradictions(mode, preset, values)
    if mode == "strict" or preset == "strict":
        return Settings(PRESETS["strict"], "strict", ASKED, wants_labels)
    is_zero = values.get("relaxation") == 0
    asks_loose = (mode == "loose" or preset is not None or bool(values)) and not is_zero
    if asks_loose and not config.allows_loose:
        raise ValueError(
            f"custom_params.{KEY} asks for a loose rule, which needs a server with a preset that loosens; found the "
            f"preset {config.preset}. Start the server with {flag_of('preset')} {'|'.join(LOOSE_PRESETS)} "
            f"(and {flag_of('relaxation')} 0, if only requests that ask should be loose), or ask for mode strict."
        )
    base = config.rule if preset is None else PRESETS[preset]
    rule = base.with_values(values)
    if rule.is_strict:
        if mode == "loose":
            raise ValueError(
                f"{_shown('mode')} loose needs a rule that loosens; found the server's own rule, whose relaxation is "
                f"0. Name a preset ({', '.join(LOOSE_PRESETS)}) or a relaxation beside it."
            )
        return Settings(PRESETS["strict"], "strict", ASKED if is_zero else SERVER, wants_labels)
    return Settings(rule, name_of(rule, preset or config.preset), None, wants_labels)


def _given(custom_params: object) -> dict[Any, object]:
    """The object that holds our settings; empty when the request names none."""
    if custom_params is None:
        return {}
    if not isinstance(custom_params, dict):
        raise ValueError(
            f"custom_params must be an object; found {shown(custom_params)}. Send for example "
            f'{{"{KEY}": {{"mode": "strict"}}}} or leave it out.'
        )
    if KEY not in custom_params:
        return {}
    given = custom_params[KEY]
    if not isinstance(given, dict):
        raise ValueError(
            f"custom_params.{KEY} must be an object with the settings {', '.join(SETTINGS)}; found {shown(given)}. "
            'Send for example {"mode": "strict"} or leave it out.'
        )
    for name in given:
        if name not in SETTINGS:
            raise ValueError(
                f"custom_params.{KEY} knows the settings {', '.join(SETTINGS)}; found {shown(name)}. "
                "Correct the name or drop it."
            )
    return given


def _refuse_contradictions(mode: str | None, preset: str | None, values: dict[str, Any]) -> None:
    """Strict beside loose. A relaxation of 0 contradicts only the mode that excludes it."""
    loosening = [name for name, value in values.items() if name != "relaxation" or value > 0]
    if mode == "strict" and preset not in (None, "strict"):
        first, second = "mode strict", f"preset {preset}"
    elif mode == "strict" and loosening:
        first, second = "mode strict", loosening[0]
    elif preset == "strict" and loosening:
        first, second = "preset strict", loosening[0]
    elif mode == "loose" and preset == "strict":
        first, second = "mode loose", "preset strict"
    elif mode == "loose" and values.get("relaxation") == 0:
        first, second = "mode loose", "relaxation 0"
    else:
        return
    raise ValueError(f"custom_params.{KEY} must be strict or loose; found {first} and {second}. Drop one of them.")


def _chosen(given: dict[Any, object], name: str, allowed: tuple[str, ...]) -> str | None:
    """One of the allowed words; None where the request does not name the setting."""
    if name not in given:
        return None
    value = given[name]
    if not isinstance(value, str) or value not in allowed:
        raise ValueError(
            f"{_shown(name)} must be one of {', '.join(allowed)}; found {shown(value)}. Choose one of them or drop it."
        )
    return value


def _shown(name: str) -> str:
    """A setting as the client sends it."""
    return f"custom_params.{KEY}.{name}"


def _reason_of(req: Req) -> str | None:
    """Why a request cannot be loosened, whatever it asked for.

    A tool call needs no reason of its own: its tokens are protected by id, and forced calls have a grammar.
    """
    params = req.sampling_params
    if not _has_vision(req):
        return TEXT_ONLY
    if req.grammar is not None or any((params.json_schema, params.regex, params.ebnf, params.structural_tag)):
        return GRAMMAR
    if params.stop_strs or params.stop_regex_strs:
        return STOP_STRING  # a loosened word could make one, or miss the one that the target would have written
    if _is_penalized(params):
        return PENALTIES
    if len(own_stop_tokens(params.stop_token_ids)) > MAX_STOP_TOKENS:
        return STOP_TOKENS
    return None


def _has_vision(req: Req) -> bool:
    """Whether the prompt holds an image or a video; sound alone gives no visual slots."""
    inputs = req.multimodal_inputs
    return inputs is not None and any(item.is_image() or item.is_video() for item in inputs.mm_items)


def _is_penalized(params: SamplingParams) -> bool:
    """Whether such a row commits one token a round, so there is nothing to loosen (`commit.one_token_rows`).

    With `min_new_tokens` that holds for the beginning only; a request stays strict to its end, so that its answer does
    not depend on when it is prefilled again.
    """
    return (
        params.frequency_penalty != 0.0
        or params.presence_penalty != 0.0
        or params.repetition_penalty != 1.0
        or params.min_new_tokens > 0
    )
