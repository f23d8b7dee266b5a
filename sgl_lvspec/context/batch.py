"""The draft's prefill batch: pieces of prompts as SGLang's runner takes them, in the draft's own coordinates."""

from __future__ import annotations

import copy
from typing import TYPE_CHECKING, Any

import torch
from sglang.srt.model_executor.forward_batch_info import CaptureHiddenMode, ForwardBatch, ForwardMode
from sglang.srt.speculative.eagle_info import EagleDraftExtendInput

if TYPE_CHECKING:
    from sglang.srt.managers.schedule_batch import ScheduleBatch
    from sglang.srt.model_executor.model_runner import ModelRunner

    from sgl_lvspec.context.reader import Piece


def prompt_batch(pieces: list[Piece], round_batch: ScheduleBatch, draft: ModelRunner) -> ForwardBatch:
    """Forward batch that reads the pieces' tokens at the target's positions.

    Args:
        pieces: of different requests; the draft's rows of all of them have been rebuilt.
        round_batch: the decode batch that they stand in; left as it is.
    """
    device, rows_table = draft.device, draft.req_to_token_pool.req_to_token
    readings = [piece.reading for piece in pieces]
    prefix_lens = [piece.reading.num_held + piece.first for piece in pieces]
    extend_lens = [piece.last - piece.first for piece in pieces]
    ends = torch.tensor([held + new for held, new in zip(prefix_lens, extend_lens, strict=True)])

    batch = copy.copy(round_batch)
    batch.reqs = [reading.req for reading in readings]
    batch.forward_mode = ForwardMode.EXTEND
    batch.input_ids = torch.cat([p.reading.ids[p.first : p.last] for p in pieces]).to(device)
    batch.req_pool_indices_cpu = torch.tensor([reading.row for reading in readings])
    batch.req_pool_indices = batch.req_pool_indices_cpu.to(device)
    batch.seq_lens, batch.seq_lens_cpu, batch.seq_lens_sum = ends.to(device), ends, int(ends.sum())
    batch.orig_seq_lens = batch.seq_lens
    batch.prefix_lens, batch.extend_lens, batch.extend_num_tokens = prefix_lens, extend_lens, sum(extend_lens)
    batch.extend_logprob_start_lens = extend_lens
    slots = [rows_table[p.reading.row, n : n + p.last - p.first] for p, n in zip(pieces, prefix_lens, strict=True)]
    batch.out_cache_loc = torch.cat(slots).long()
    batch.multimodal_inputs = [compact_media(piece) for piece in pieces]
    batch.return_logprob, batch.top_logprobs_nums, batch.token_ids_logprobs = False, None, None
    batch.sampling_info = copy.copy(batch.sampling_info)  # SGLang writes the batch's grammars into it
    batch.spec_info = EagleDraftExtendInput(hidden_states=None, num_tokens_per_req=1, num_tokens_for_logprob_per_req=1)
    batch.spec_info.positions = torch.cat([p.reading.kept[p.first : p.last] for p in pieces]).to(device)
    forward_batch = ForwardBatch.init_new(
        batch,
        draft,
        capture_hidden_mode=CaptureHiddenMode.NULL,
        return_hidden_states_before_norm=False,
        spec_mrope_positions=torch.cat([p.reading.rotary[:, p.first : p.last] for p in pieces], dim=1).to(device),
    )
    forward_batch.return_logprob = False
    return forward_batch


def compact_media(piece: Piece) -> Any:
    """SGLang's multimodal inputs for a piece, in the draft's own coordinates; None where it shows nothing.

    The items carry the kept rows of the draft's features as embeddings that are ready (srt/managers/mm_schedule.py:
    `_get_precomputed_embedding`). Each is said to begin where the piece begins, so that SGLang takes all of its rows;
    it finds the tokens that they belong to by their ids.
    """
    inputs = piece.reading.req.multimodal_inputs
    begin = piece.reading.num_held + piece.first
    items = []
    for item, at, features in piece.reading.features:
        inside = torch.nonzero((at >= piece.first) & (at < piece.last)).flatten()
        if len(inside):
            shown = copy.copy(item)
            shown.feature = None
            shown.precomputed_embeddings = features[inside.to(features.device)]
            shown.offsets = [(begin, begin + len(inside) - 1)]
            items.append(shown)
    if not items:
        return None
    view = copy.copy(inputs)
    view.mm_items = items
    return view
