"""What is made wrong with a request. A mutation changes it in place; False: there is nothing that it could change."""

from __future__ import annotations

import random
from collections.abc import Callable
from typing import Any

from bench.fuzz import media, values
from bench.fuzz.addresses import address
from bench.fuzz.bases import IMAGE, SESSIONS, TOOL, VIDEO, chat
from bench.fuzz.request import CHAT, COMPLETIONS, GENERATE, Request
from bench.fuzz.surroundings import Surroundings

Mutation = Callable[[random.Random, Request, Surroundings], bool]

NUMERIC = (
    "temperature", "top_p", "top_k", "min_p", "frequency_penalty", "presence_penalty", "repetition_penalty",
    "max_new_tokens", "min_new_tokens", "n", "stream_interval", "sampling_seed", "beam_width",
)  # fmt: skip
# /v1 has other names for some of them.
OPENAI_NAMES = {"max_new_tokens": "max_tokens", "min_new_tokens": "min_tokens", "sampling_seed": "seed"}
FLAGS = ("ignore_eos", "skip_special_tokens", "spaces_between_special_tokens", "no_stop_trim")
GRAMMARS: dict[str, tuple[Any, ...]] = {
    "regex": ("a", "[a-z]+", "(a+)+$", "(((", "[",
    "\\", "a{1,100}", "\\d{3}", "(?=a)", "\ud800", "", "(?<n>a)\\1", "x" * 3000),
    "json_schema": ("{}", "true", "x", "[]", '{"type": "object"}', '{"type": "none"}', '{"$ref": "#"}', "\ud800",
                    '{"type": "string", "pattern": "((("}', '{"enum": []}', '{"$ref": "http://127.0.0.1:9/x"}',
                    '{"type": "array", "minItems": 9, "maxItems": 1}', '{"anyOf": []}', "null", "7"),
    "ebnf": ("root ::= [a-z]+", "root ::= x", "x", "root ::= ", 'root ::= "', "root ::= [", "\0", 'x ::= "a"'),
    "structural_tag": ("{}", "x", '{"type": "structural_tag", "format": {"type": "any_text"}}', '{"structures": []}',
    "[]"),
}  # fmt: skip
SETTINGS = (
    "mode", "preset", "relaxation", "floor", "window", "shift", "max_share", "max_run", "protect_digits", "labels",
)  # fmt: skip
WORDS = ("strict", "loose", "conservative", "balanced", "paper", "none", "both", "off", "draft", "target")
# Fields of `/generate` beside the prompt, its media and its sampling parameters.
FIELDS = (
    "rid", "session_id", "return_logprob", "logprob_start_len", "top_logprobs_num", "token_ids_logprob",
    "return_text_in_logprobs", "return_hidden_states", "return_routed_experts", "routed_experts_start_len",
    "return_indexer_topk", "return_sampling_mask", "sampling_logprobs_mode", "return_entropy", "return_bytes",
    "return_prompt_token_ids", "return_flat_raw_top_logprobs", "return_flat_raw_output_top_logprobs",
    "return_flat_raw_top_logprobs_b64", "stream", "log_metrics", "modalities", "session_params", "lora_path", "lora_id",
    "custom_logit_processor", "positional_embed_overrides", "bootstrap_host", "bootstrap_port", "bootstrap_room",
    "decode_tp_size", "routed_dp_rank", "data_parallel_rank", "disagg_prefill_dp_rank", "routing_key",
    "conversation_id",
    "http_worker_ipc", "background", "require_reasoning", "max_thinking_tokens", "priority", "extra_key", "no_logs",
    "custom_labels", "external_trace_header", "received_time", "need_wait_for_mm_inputs", "num_items_assigned",
    "encoder_urls", "max_dynamic_patch", "min_dynamic_patch", "image_max_dynamic_patch", "video_max_dynamic_patch",
    "images_config", "mm_processor_kwargs", "multi_item_delimiter_indices", "token_indices_to_pool", "cache_salt",
    "kv_hints", "watermark", "video_config", "use_audio_in_video", "mm_hashes", "mm_content_hashes", "audio_data",
    "input_embeds", "is_single", "batch_size", "parallel_sample_num", "no_such_field",
)  # fmt: skip
CHAT_FIELDS = (
    "tools", "tool_choice", "response_format", "logprobs", "top_logprobs", "stop", "stream_options", "n", "user",
    "model",
    "chat_template_kwargs", "reasoning_effort", "continue_final_message", "separate_reasoning", "messages", "best_of",
    "echo", "suffix", "logit_bias", "stop_token_ids", "return_meta_info", "return_token_ids", "modalities", "thinking",
    "task", "parallel_tool_calls", "max_completion_tokens", "prompt", "input_ids", "stream",
)  # fmt: skip
MANY_SAMPLES = 3


def video_bytes(rng: random.Random, request: Request, _: Surroundings) -> bool:
    """A video whose bytes are spoilt."""
    return _set_media(rng, request, "video", media.data_url(media.odd_video(rng), _type(rng, media.VIDEO_TYPES)))


def image_bytes(rng: random.Random, request: Request, _: Surroundings) -> bool:
    """An image whose bytes are spoilt."""
    return _set_media(rng, request, "image", media.data_url(media.odd_image(rng), _type(rng, media.IMAGE_TYPES)))


def media_address(rng: random.Random, request: Request, surroundings: Surroundings) -> bool:
    """A video or image by an address."""
    kind = rng.choice(("video", "image"))
    return _set_media(rng, request, kind, address(rng, surroundings.web, ".mp4" if kind == "video" else ".png"))


def media_shape(rng: random.Random, request: Request, _: Surroundings) -> bool:
    """Something else where a video or image belongs."""
    right = media.data_url(media.video())
    odd = rng.choice(
        (
            values.anything(rng), [], [[]], [[right]], [right, None], [None], {}, {"url": right}, {"format": "x"},
            [[[right]]],
            {"format": "processor_output", "pixel_values": [1]}, {"format": "precomputed_embedding",
            "feature": [[1.0]]},
            [right] * 3, [values.anything(rng)], {"type": "video", "video": right}, [{"url": right, "max_frames": -1}],
        )
    )  # fmt: skip
    return _set_media(rng, request, rng.choice(("video", "image")), odd, whole=True)


def placeholders(rng: random.Random, request: Request, _: Surroundings) -> bool:
    """Missing, too many, in another order, typed by a user, beside other special tokens."""
    odd = rng.choice(
        (VIDEO, IMAGE, VIDEO * 2, IMAGE + VIDEO, "<|video_pad|>", "<|image_pad|>" * 3, "<|vision_start|>",
        "<|vision_end|>",
         "<|vision_end|><|video_pad|><|vision_start|>", "<|im_start|>", "<|im_end|>" * 5, "<|endoftext|>", "")
    )  # fmt: skip

    def changed(text: str) -> str:
        if rng.random() < 0.4:
            return text.replace(VIDEO, odd).replace(IMAGE, odd)
        return rng.choice((odd + text, text + odd, text[: len(text) // 2] + odd + text[len(text) // 2 :]))

    return _change_text(request, changed)


def unicode_text(rng: random.Random, request: Request, _: Surroundings) -> bool:
    """Halves of characters, NUL, directions, long runs of marks."""
    odd = values.string(rng)
    return _change_text(request, lambda text: rng.choice((odd, text + odd, text.replace("a", odd), chat(odd))))


def sampling(rng: random.Random, request: Request, _: Surroundings) -> bool:
    """A sampling parameter that is no number, too large, of another type, or contradicts another."""
    params = request.sampling
    if params is None:
        return False
    name = rng.choice(
        (*NUMERIC, *NUMERIC, *FLAGS, "stop", "stop_token_ids", "stop_regex", "logit_bias", "no_such", *GRAMMARS)
    )
    if name in GRAMMARS:
        value: Any = rng.choice(GRAMMARS[name])
    elif name == "logit_bias":
        value = {
            rng.choice(("5", "-1", "x", "99999", "1151", "")): values.number(rng) for _ in range(rng.randint(0, 3))
        }
    elif name == "stop_token_ids":
        value = [values.number(rng) for _ in range(rng.choice((0, 1, 2, 40)))]
    elif name in ("stop", "stop_regex"):
        value = rng.choice((values.string(rng), [values.string(rng) for _ in range(rng.choice((0, 1, 2, 40)))]))
    else:
        value = values.number(rng) if rng.random() < 0.8 else values.anything(rng)
    if rng.random() < 0.08:
        value = values.anything(rng)
    if name == "n" and isinstance(value, int) and 3 < value < 2**30 and rng.random() < 0.9:
        value = MANY_SAMPLES  # each is a request of its own
    params[name if request.path == GENERATE else OPENAI_NAMES.get(name, name)] = value
    return True


def custom_params(rng: random.Random, request: Request, _: Surroundings) -> bool:
    """`custom_params` of any shape."""
    params = request.sampling
    if params is None:
        return False
    params["custom_params"] = rng.choice(
        (values.anything(rng), {values.string(rng): values.structure(rng)}, {"lvspec": values.anything(rng)},
         {"__sglang_reasoning_end_token_ids": values.anything(rng)}, {"__sglang_reasoning_in_grammar": True},
         {"thinking_budget": values.number(rng)}, {"a" * 5000: "b" * 5000})
    )  # fmt: skip
    return True


def settings(rng: random.Random, request: Request, _: Surroundings) -> bool:
    """`custom_params.lvspec` with settings that are none, of another type, out of bounds, or contradict each other."""
    params = request.sampling
    if params is None:
        return False
    given: dict[str, Any] = {}
    for _number in range(rng.randint(1, 3)):
        name = rng.choice(SETTINGS) if rng.random() < 0.92 else values.string(rng)
        given[name] = rng.choice(
            (lambda: rng.choice(WORDS), lambda: values.number(rng), lambda: values.anything(rng))
        )()
    params["custom_params"] = {"lvspec": given}
    return True


def field(rng: random.Random, request: Request, _: Surroundings) -> bool:
    """A field that is rarely sent, of any type."""
    if not isinstance(request.body, dict):
        return False
    names = FIELDS if request.path == GENERATE else (*CHAT_FIELDS, *FIELDS)
    if request.path not in (GENERATE, CHAT, COMPLETIONS):
        names = (*names, *list(request.body) * 12)
    name = rng.choice(names)
    likely: dict[str, tuple[Any, ...]] = {
        "session_params": ({"id": rng.choice(SESSIONS)}, {"id": "none"}, {"offset": 3, "id": SESSIONS[0]}, {"x": 1}),
        "tools": ([TOOL], [], [{}], [TOOL] * 20, [{"type": "function", "function": {"name": ""}}]),
        "tool_choice": ("required", "auto", {"type": "function", "function": {"name": "none"}}),
        "response_format": (
            {"type": "json_object"},
            {"type": "json_schema"},
            {"type": "json_schema", "json_schema": {}},
        ),
        "chat_template_kwargs": ({"add_generation_prompt": False}, {"messages": 3}, {"tools": "x"}),
        "stream_options": ({"include_usage": True}, {"include_usage": 7}, []),
        "video_config": ({"fps": 0}, {"fps": -1}, {"max_frames": 1}, {"min_pixels": 10**9}, {"nframes": 10**9}),
        "messages": (
            [],
            [{}],
            [{"role": "user"}],
            [{"role": "x", "content": "y"}],
            [{"role": "tool", "content": None}],
        ),
        "modalities": (["image"], ["video"], ["x"], []),
    }
    flag = (True, False, 1, 0)
    request.body[name] = rng.choice(
        (values.anything(rng), values.number(rng), rng.choice(flag), rng.choice(flag), *likely.get(name, ()))
    )
    return True


def logprobs(rng: random.Random, request: Request, _: Surroundings) -> bool:
    """Log-probabilities of places and numbers that may not exist."""
    if request.path != GENERATE or not isinstance(request.body, dict):
        return False
    request.body["return_logprob"] = True
    for name in ("logprob_start_len", "top_logprobs_num", "token_ids_logprob"):
        if rng.random() < 0.6:
            odd = rng.choice((0, -1, -2, 1, 5, 100, 1151, 1152, values.number(rng)))
            request.body[name] = odd if name != "token_ids_logprob" else rng.choice(([odd], [5, odd], [], odd))
    return True


def dropped(rng: random.Random, request: Request, _: Surroundings) -> bool:
    """A field is not there, or null."""
    if not isinstance(request.body, dict) or not request.body:
        return False
    name = rng.choice(list(request.body))
    if name in ("sampling_params", "max_tokens") and request.path in (GENERATE, CHAT) and rng.random() < 0.9:
        return False  # the answer would be long, and right
    if rng.random() < 0.5:
        del request.body[name]
    else:
        request.body[name] = None
    return True


def prompt_length(rng: random.Random, request: Request, surroundings: Surroundings) -> bool:
    """A prompt of ids as long as something is."""
    if request.path != GENERATE or not isinstance(request.body, dict):
        return False
    sampling_params = request.body.get("sampling_params")
    tokens = sampling_params.get("max_new_tokens") if isinstance(sampling_params, dict) else 4
    edges = surroundings.edges(tokens if isinstance(tokens, int) and 0 <= tokens < 100 else 4)
    length = rng.choice(edges if rng.random() < 0.5 else edges[:5])
    for name in ("text", "image_data", "video_data"):
        request.body.pop(name, None)
    request.body["input_ids"] = [rng.randint(5, 60)] * length
    return True


def input_ids(rng: random.Random, request: Request, surroundings: Surroundings) -> bool:
    """Ids that are negative, outside the vocabulary, no integers, or special."""
    if not isinstance(request.body, dict):
        return False
    vocabulary = surroundings.vocabulary
    edges = (-1, 0, vocabulary - 1, vocabulary, vocabulary + 1, 1_000_000, 1099, 1100, 1095)
    odd = rng.choice(
        ([rng.choice(edges)], [5, rng.choice(edges), 6], [values.number(rng)], [5, values.anything(rng)], [[5], 6],
        [[5], []],
         [[[5]]], [], [[]], values.anything(rng), list(range(20)), [1.0, 2.0], ["5"], [True, False], [1100, 1100])
    )  # fmt: skip
    request.body[{GENERATE: "input_ids", COMPLETIONS: "prompt", CHAT: "input_ids"}.get(request.path, "tokens")] = odd
    if request.path == GENERATE and rng.random() < 0.8:
        request.body.pop("text", None)
    return True


def _type(rng: random.Random, types: tuple[str, ...]) -> str:
    return types[0] if rng.random() < 0.8 else rng.choice(types)


def _set_media(rng: random.Random, request: Request, kind: str, value: Any, *, whole: bool = False) -> bool:
    """Put a medium into the request, beside those that it has or in place of one; with a placeholder, mostly."""
    body = request.body
    if not isinstance(body, dict):
        return False
    if request.path == GENERATE:
        name = f"{kind}_data"
        had = body.get(name)
        text = body.get("text")
        if whole or not had or not isinstance(had, list) or rng.random() < 0.7:
            body[name] = value if whole else rng.choice((value, [value]))
            lost = len(had) - 1 if isinstance(had, list) else 0
            place = VIDEO if kind == "video" else IMAGE
            if isinstance(text, str) and not had:
                body["text"] = text.replace("user\n", f"user\n{place}")
            elif isinstance(text, str) and lost > 0:
                body["text"] = text.replace(place, "", lost)
        else:
            had[rng.randrange(len(had))] = value
        return True
    if request.path != CHAT or not isinstance(body.get("messages"), list) or not body["messages"]:
        return False
    message = body["messages"][0]
    if not isinstance(message, dict):
        return False
    content = message.get("content")
    said = content if isinstance(content, list) else [{"type": "text", "text": content}]
    others = [one for one in said if not (isinstance(one, dict) and one.get("type") == f"{kind}_url")]
    url = value if whole else {"url": value}
    message["content"] = [{"type": f"{kind}_url", f"{kind}_url": url}, *others]
    return True


def _change_text(request: Request, changed: Callable[[str], str]) -> bool:
    """Change the first text of the request."""
    body = request.body
    if not isinstance(body, dict):
        return False
    for name in ("text", "prompt", "input", "query"):
        if isinstance(body.get(name), str):
            body[name] = changed(body[name])
            return True
    messages = body.get("messages")
    if not isinstance(messages, list) or not messages or not isinstance(messages[0], dict):
        return False
    content = messages[0].get("content")
    if isinstance(content, str):
        messages[0]["content"] = changed(content)
        return True
    for one in content if isinstance(content, list) else ():
        if isinstance(one, dict) and isinstance(one.get("text"), str):
            one["text"] = changed(one["text"])
            return True
    return False
