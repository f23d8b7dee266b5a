"""Nothing is committed behind the end of an answer that stop strings may end, too.

SGLang looks for stop strings in all tokens of a round before it looks for stop tokens (`Req.update_finish_state`,
srt/managers/schedule_batch.py:2026), so a string behind the end would win over the end. Without speculation no token
is there.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from sgl_lvspec.verification.result import Commit

if TYPE_CHECKING:
    from sglang.srt.managers.schedule_batch import Req, ScheduleBatch

_NO_TOKEN = -1


def end_tokens(batch: ScheduleBatch) -> torch.Tensor | None:
    """What ends each request's answer, int64 [B, n] padded with -1: nothing where there is no stop string.

    Returns:
        None where no request of the batch has one. Never waits for the device.
    """
    ends = [_ends_of(req) if _has_stop_strings(req) else [] for req in batch.reqs]
    width = max(map(len, ends))
    if not width:
        return None
    host = torch.tensor([each + [_NO_TOKEN] * (width - len(each)) for each in ends])
    return host.pin_memory().to(batch.device, non_blocking=True) if batch.device != "cpu" else host


def cut_behind_end(commit: Commit, ends: torch.Tensor) -> Commit:
    """The same up to and with each row's first token that ends it; `ends` as `end_tokens` gives them."""
    width = commit.accept_index.shape[1]
    node = torch.arange(width, device=ends.device)
    is_end = (commit.predict.view(-1, width, 1) == ends[:, None, :]).any(dim=2)
    first = torch.where(is_end, node, width).amin(dim=1)
    accept_lens = torch.minimum(commit.accept_lens, (first + 1).to(commit.accept_lens.dtype))
    return Commit(commit.predict, accept_lens, torch.where(node < accept_lens[:, None], commit.accept_index, _NO_TOKEN))


def _has_stop_strings(req: Req) -> bool:
    params = req.sampling_params
    return bool(params.stop_strs or params.stop_regex_strs) and not params.ignore_eos


def _ends_of(req: Req) -> list[int]:
    """Token ids as `Req._check_token_based_finish` looks for them."""
    ends = {*(req.sampling_params.stop_token_ids or ()), *(req.eos_token_ids or ())}
    if req.tokenizer is not None:
        ends |= {req.tokenizer.eos_token_id, *(getattr(req.tokenizer, "additional_stop_token_ids", None) or ())}
    return sorted(token for token in ends if token is not None and 0 <= token < 2**31)
