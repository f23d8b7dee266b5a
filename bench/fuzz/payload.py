"""Payload `number` of a seed: a right request, then one to three mutations; the same request whenever it is made."""

from __future__ import annotations

import random
from dataclasses import dataclass

from bench.fuzz import mutations, wire
from bench.fuzz.bases import base, known
from bench.fuzz.request import Request
from bench.fuzz.surroundings import Surroundings

KNOWN = "as it should be"
KNOWN_SHARE = 0.015
UNMUTATED = "unmutated"
# Kind, mutation, weight.
BODIES: tuple[tuple[str, mutations.Mutation, float], ...] = (
    ("video bytes", mutations.video_bytes, 12),
    ("image bytes", mutations.image_bytes, 8),
    ("media address", mutations.media_address, 9),
    ("media shape", mutations.media_shape, 5),
    ("placeholders", mutations.placeholders, 6),
    ("sampling", mutations.sampling, 18),
    ("custom_params", mutations.custom_params, 4),
    ("custom_params.lvspec", mutations.settings, 10),
    ("field", mutations.field, 18),
    ("log-probabilities", mutations.logprobs, 4),
    ("missing field", mutations.dropped, 4),
    ("prompt length", mutations.prompt_length, 3),
    ("input_ids", mutations.input_ids, 6),
    ("unicode", mutations.unicode_text, 6),
)
# These take the bytes as they are, so they come last and alone.
WIRES: tuple[tuple[str, mutations.Mutation, float], ...] = (
    ("malformed JSON", wire.malformed_json, 4),
    ("deep or odd JSON", wire.odd_json, 4),
    ("large body", wire.large_body, 0.6),
    ("content type", wire.content_type, 1.5),
    ("method", wire.method, 1.5),
    ("headers", wire.headers, 2),
    ("path", wire.path, 1),
    ("other body", wire.no_json_type, 0.5),
)
WIRE_SHARE = 0.13
KINDS = (KNOWN, *(kind for kind, _, _ in (*BODIES, *WIRES)), UNMUTATED)


@dataclass(frozen=True)
class Payload:
    """What is sent.

    Attributes:
        kinds: of its mutations, in order.
        known: name of the right request that it is; None where it was mutated.
    """

    number: int
    kinds: tuple[str, ...]
    request: Request
    known: str | None = None


def payload(seed: int, number: int, surroundings: Surroundings) -> Payload:
    """The payload of a seed and a number."""
    rng = random.Random(f"{seed}/{number}")
    if rng.random() < KNOWN_SHARE:
        requests = known(surroundings.model)
        name = rng.choice(list(requests))
        return Payload(number, (KNOWN,), requests[name], name)
    request = base(rng, surroundings)
    kinds: list[str] = []
    for _ in range(rng.choices((1, 2, 3), (6, 3, 1))[0]):
        kinds += _mutate(rng, request, surroundings, BODIES)
    if rng.random() < WIRE_SHARE or not kinds:
        kinds += _mutate(rng, request, surroundings, WIRES)
    return Payload(number, tuple(kinds) or (UNMUTATED,), request)


def _mutate(
    rng: random.Random,
    request: Request,
    surroundings: Surroundings,
    choices: tuple[tuple[str, mutations.Mutation, float], ...],
) -> list[str]:
    """The kind of a mutation that was made; none where the one that was drawn does not fit the request."""
    ((kind, mutation, _),) = rng.choices(choices, [weight for _, _, weight in choices])
    return [kind] if mutation(rng, request, surroundings) else []
