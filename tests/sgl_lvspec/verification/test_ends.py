"""A stop string is not looked for behind the end of an answer."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch

from sgl_lvspec.verification.ends import cut_behind_end, end_tokens
from sgl_lvspec.verification.result import Commit

END, STOP, ADDED = 90, 91, 92
D = 5


def request(*, stop: list[str] | None = None, regex: list[str] | None = None, **params: Any) -> SimpleNamespace:
    fields = {
        "stop_strs": stop or [],
        "stop_regex_strs": regex or [],
        "stop_token_ids": None,
        "ignore_eos": False,
        **params,
    }
    tokenizer = SimpleNamespace(eos_token_id=END, additional_stop_token_ids={ADDED})
    return SimpleNamespace(sampling_params=SimpleNamespace(**fields), eos_token_ids={END}, tokenizer=tokenizer)


def batch(*reqs: SimpleNamespace) -> Any:
    return SimpleNamespace(reqs=list(reqs), device="cpu")


def commit(predict: list[list[int]], lens: list[int]) -> Commit:
    index = torch.arange(len(predict) * D, dtype=torch.int32).view(-1, D)
    accept_lens = torch.tensor(lens, dtype=torch.int32)
    padded = torch.where(torch.arange(D) < accept_lens[:, None], index, -1)
    return Commit(torch.tensor(predict, dtype=torch.int32).flatten(), accept_lens, padded)


def test_batches_without_stop_strings_are_left_alone() -> None:
    assert end_tokens(batch(request(), request(stop_token_ids={STOP}))) is None
    assert end_tokens(batch(request(stop=["x"], ignore_eos=True))) is None, "such an answer has no end"


@pytest.mark.parametrize("fields", [{"stop": ["x"]}, {"regex": ["x+"]}])
@pytest.mark.parametrize("end", [END, STOP, ADDED])
@pytest.mark.parametrize("position", range(D))
def test_nothing_is_committed_behind_an_end(fields: dict[str, Any], end: int, position: int) -> None:
    ends = end_tokens(batch(request(), request(**fields, stop_token_ids={STOP})))
    assert ends is not None
    tokens = [end if i == position else 7 for i in range(D)]
    cut = cut_behind_end(commit([tokens, tokens], [D, D]), ends)
    assert cut.accept_lens.tolist() == [D, position + 1], "a row without a stop string keeps what it has"
    assert cut.accept_lens.dtype == torch.int32 and cut.accept_index.dtype == torch.int32
    assert cut.accept_index[1].tolist() == [D + i if i <= position else -1 for i in range(D)]


def test_an_end_that_is_not_committed_cuts_nothing() -> None:
    ends = end_tokens(batch(request(stop=["x"])))
    assert ends is not None
    before = commit([[7, 7, 7, END, END]], [2])
    after = cut_behind_end(before, ends)
    assert after.accept_lens.tolist() == [2] and after.accept_index.tolist() == before.accept_index.tolist()
