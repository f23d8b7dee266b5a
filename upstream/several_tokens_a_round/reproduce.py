"""What `Req.update_finish_state` makes of a step that appended several tokens; needs SGLang alone."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

from sglang.srt.managers.schedule_batch import FINISH_ABORT, Req
from sglang.srt.sampling.sampling_params import SamplingParams

END = 0
WORDS = {END: "<end>", 1: "There", 2: " are", 3: " two", 4: ".", 5: " is"}


def decode(ids: list[int], **_: Any) -> str:
    return "".join(WORDS[token] for token in ids)


def ending(
    tokens: list[int], of_the_last_step: int, abort: bool = False, **sampling: Any
) -> tuple[dict[str, Any], str]:
    """Finish reason and text of an answer whose last step appended so many of its tokens."""
    tokenizer = SimpleNamespace(
        eos_token_id=END, additional_stop_token_ids=None, decode=decode, encode=lambda text, **_: list(text)
    )
    params = SamplingParams(**sampling)
    params.normalize(tokenizer)
    req = Req("id", "", [1], params, eos_token_ids={END}, vocab_size=len(WORDS))
    req.tokenizer = tokenizer
    req.output_ids.extend(tokens)
    req.to_finish = FINISH_ABORT() if abort else None
    req.update_finish_state(of_the_last_step)
    return req.finished_reason.to_json(), decode(req.output_ids[: req.finished_len])


if __name__ == "__main__":
    answer = [1, 2, 3, 4, END]
    print("one token a step            ", *ending(answer, 1, stop=[" is"]))
    print("a step goes on behind <end> ", *ending([*answer, 5], 3, stop=[" is"]))
    print("aborted, max_new_tokens = 4 ", *ending([*answer, 5], 3, abort=True, max_new_tokens=4))
