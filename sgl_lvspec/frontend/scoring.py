"""How likely each choice is behind a prompt with its media: what `select` and `choices=` decide by.

SGLang 0.5.23's own `select` counts the prompt's last token with every choice, and cannot score choices against
their likelihood without the prompt at all (`upstream/frontend_video`). The decision itself stays SGLang's: a
`ChoicesSamplingMethod` gets each choice's tokens and nothing else.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from sglang.lang.choices import ChoicesDecision, ChoicesSamplingMethod

Post = Callable[[dict[str, Any]], Any]  # body of /generate -> its answer, or a list of them

# Tokens at a prompt's end that a choice may change by joining them: a blank and its word become one. Log-probabilities
# start here; that of the first position is not told.
SEAM_TOKENS = 4
NOTHING_NEW = {"max_new_tokens": 0, "temperature": 0}


def decide(prompt: str, choices: Sequence[str], method: ChoicesSamplingMethod, post: Post) -> ChoicesDecision:
    """Score the choices and let the method decide.

    Args:
        prompt: text before the choice.
        choices: texts, one or more.
        post: sends a request about this prompt, or several that begin with it.
    """
    length = post({"text": prompt, "sampling_params": dict(NOTHING_NEW)})["meta_info"]["prompt_tokens"]
    body = {
        "text": [prompt, *(prompt + choice for choice in choices)],
        "sampling_params": dict(NOTHING_NEW),
        "return_logprob": True,
        "return_text_in_logprobs": True,
        "logprob_start_len": max(0, length - SEAM_TOKENS),
    }
    alone, *scored = (answer["meta_info"] for answer in post(body))
    is_whole = length <= SEAM_TOKENS
    tokens = [_of_choice(alone["input_token_logprobs"], meta["input_token_logprobs"], is_whole) for meta in scored]
    for choice, rows in zip(choices, tokens, strict=True):
        if not rows:
            raise ValueError(f"A choice must add a token to the prompt; found {choice!r}, which adds none. Drop it.")
    return method(
        choices=list(choices),
        normalized_prompt_logprobs=[sum(row[0] for row in rows) / len(rows) for rows in tokens],
        input_token_logprobs=tokens,
        output_token_logprobs=[meta["output_token_logprobs"] for meta in scored],
        unconditional_token_logprobs=_unconditional(tokens, post) if method.requires_unconditional_logprobs else None,
    )


def _of_choice(prompt: list[Any], whole: list[Any], is_prompt_whole: bool) -> list[Any]:
    """Rows (log-probability, id, text) of the choice: from the first token on that the prompt alone has otherwise.

    Raises:
        ValueError: it changes a token before those that were asked for.
    """
    shared = 0
    while shared < min(len(prompt), len(whole)) and prompt[shared][1] == whole[shared][1]:
        shared += 1
    if shared == 0 and not is_prompt_whole:
        raise ValueError(
            f"A choice may change the prompt's last {SEAM_TOKENS - 1} tokens; found one that changes more. End the "
            "prompt at the end of a word, and begin each choice with a blank."
        )
    return whole[max(shared, 1) :]


def _unconditional(tokens: list[list[Any]], post: Post) -> list[list[Any]]:
    """The same tokens without anything before them; the first has no log-probability, as the method expects."""
    body = {
        "input_ids": [[row[1] for row in rows] for rows in tokens],
        "sampling_params": dict(NOTHING_NEW),
        "return_logprob": True,
        "logprob_start_len": 0,
    }
    return [answer["meta_info"]["input_token_logprobs"] for answer in post(body)]
