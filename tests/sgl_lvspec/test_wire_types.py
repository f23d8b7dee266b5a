"""What the scheduler's decoder would end of is refused; what it takes passes."""

from __future__ import annotations

from typing import Any

import pytest

pytest.importorskip("sglang")

from sglang.srt.managers.io_struct import GenerateReqInput, msgpack_decode, msgpack_encode
from sglang.srt.sampling.sampling_params import SamplingParams

from sgl_lvspec.wire_types import require_request_types, require_sampling_types

GOOD = (
    {}, {"temperature": 0}, {"stop": "a"}, {"stop": ["a", "b"], "stop_token_ids": [1, 2]}, {"logit_bias": {"5": 1}},
    {"custom_params": {"lvspec": {"mode": "strict"}}}, {"ignore_eos": None, "n": None}, {"sampling_seed": -5},
)  # fmt: skip
BAD: tuple[tuple[dict[str, Any], str], ...] = (
    ({"ignore_eos": "yes"}, r"^ignore_eos must be of the type .*Expected `bool`.*; found 'yes'\. Send"),
    ({"max_new_tokens": 4.0}, r"^max_new_tokens must be .*Expected `int.*; found 4\.0\. "),
    ({"temperature": True}, r"^temperature must be "),
    ({"logit_bias": {"5": None}}, r"^logit_bias must be "),
    ({"regex": 7}, r"^regex must be "),
    ({"sampling_seed": 2**64}, r"^sampling_seed must be a whole number of 64 bits; found 18446744073709551616\. "),
    ({"custom_params": {"a": {"b": {"c": 1}}}}, r"^custom_params must be "),
)


@pytest.mark.parametrize("fields", GOOD)
def test_what_travels_passes(fields: dict[str, Any]) -> None:
    params = SamplingParams(**fields)
    require_sampling_types(params)
    assert isinstance(params, SamplingParams)


@pytest.mark.parametrize(("fields", "message"), BAD)
def test_what_does_not_travel_is_refused(fields: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        require_sampling_types(SamplingParams(**fields))


@pytest.mark.parametrize("number", range(len(BAD)))
def test_the_decoder_would_have_raised(number: int) -> None:
    """Else the check is stricter than SGLang."""
    from sglang.srt.managers.io_struct import TokenizedGenerateReqInput

    request = TokenizedGenerateReqInput(
        input_text=None, input_ids=None, input_embeds=None, mm_inputs=None, token_type_ids=None,
        sampling_params=SamplingParams(**BAD[number][0]), return_logprob=False, logprob_start_len=-1,
        top_logprobs_num=0, token_ids_logprob=None, stream=False,
    )  # fmt: skip
    with pytest.raises((ValueError, OverflowError)):
        msgpack_decode(msgpack_encode(request))


@pytest.mark.parametrize(
    ("fields", "name"),
    [
        ({"return_logprob": "yes"}, "return_logprob"), ({"top_logprobs_num": 1.5}, "top_logprobs_num"),
        ({"priority": "high"}, "priority"), ({"extra_key": 5}, "extra_key"), ({"priority": 2**70}, "priority"),
        ({"session_id": ["a"]}, "session_id"), ({"return_hidden_states": "all"}, "return_hidden_states"),
    ],
)  # fmt: skip
def test_requests(fields: dict[str, Any], name: str) -> None:
    """As `/vertex_generate` makes them, whose parameters nobody checks."""
    require_request_types(GenerateReqInput(text="a", return_logprob=False, logprob_start_len=-1, top_logprobs_num=0))
    with pytest.raises(ValueError, match=rf"^{name} must be .*; found .*\. Send"):
        require_request_types(GenerateReqInput(text="a", **fields))
