"""What the target alone thinks of an answer, token by token: the answer is read as a prompt by the server without
speculation, so every token is judged after the same ones that it followed."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

from tests.server.serving import Server

NEAR_TIE = 1e-4  # float32 over other batch shapes: log-probabilities differ by less, so closer ones may change places
TOP = 5
LOOSENED = ("filler", "shift")


class Judged(NamedTuple):
    """The target's view of a token after what stands before it."""

    token: int
    logprob: float
    top: list[int]  # likeliest first
    top_logprob: float

    @property
    def is_choice(self) -> bool:
        """Whether the target, greedy, would have said it."""
        return self.logprob >= self.top_logprob - NEAR_TIE


def judge(plain_server: Server, tokenizer: Any, request: dict[str, Any], answer: dict[str, Any]) -> list[Judged]:
    """Every token of an answer of `/generate`, up to the first that its own text does not lead back to.

    Tokens that the request bans by a bias are left out of the likeliest; of other biases nothing is known here.
    """
    banned = {int(token) for token in request["sampling_params"].get("logit_bias", {})}
    ids, first = answer["output_ids"], answer["meta_info"]["prompt_tokens"]
    read = {key: value for key, value in request.items() if key.endswith("_data")}
    read |= {
        "text": request["text"] + tokenizer.decode(ids, skip_special_tokens=False),
        "sampling_params": {"temperature": 0, "max_new_tokens": 1},
        "return_logprob": True, "logprob_start_len": first - 1, "top_logprobs_num": TOP,
    }  # fmt: skip
    meta = plain_server.generate(read)["meta_info"]
    judged = []
    rows = zip(ids, meta["input_token_logprobs"][1:], meta["input_top_logprobs"][1:], strict=False)
    for token, (logprob, found, _), top in rows:
        if token != found:
            break
        allowed = [entry for entry in top if entry[1] not in banned]
        judged.append(Judged(token, logprob, [entry[1] for entry in allowed], allowed[0][0]))
    return judged


def assert_labels_true(judged: Sequence[Judged], labels: Sequence[str]) -> None:
    """Loosened tokens are not what the target would have said, all others are: for greedy answers."""
    for position, (token, label) in enumerate(zip(judged, labels, strict=False)):
        assert token.is_choice == (label not in LOOSENED), f"{position}: {label}, {token}"
