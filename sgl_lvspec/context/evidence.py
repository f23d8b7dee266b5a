"""What the target tells a policy about a video while it reads the prompt: two kinds, taken by hooks on a few layers.

The hooks see the target's own prefill, so nothing is computed twice, and keep what a policy needs until the draft reads
the prompt (`reader`). Only the prompt's last chunk has the question.
"""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, Any, Protocol

import torch
from sglang.srt.layers.layer_boundary.residual import batch as residual_batch
from sglang.srt.layers.radix_attention import RadixAttention
from sglang.srt.runtime_context import get_parallel
from torch.nn.functional import normalize

from lvspec_kernels import context_scores
from sgl_lvspec.context.policy import LAYER_CHANGE, QUESTION_ATTENTION
from sgl_lvspec.context.prompt import Unread, ids_of, is_visual, media_of, unread_of

if TYPE_CHECKING:
    from sglang.srt.managers.schedule_batch import Req, ScheduleBatch
    from sglang.srt.model_executor.model_runner import ModelRunner

QUESTION_ROWS = 64  # last tokens of a prompt that stand for its question; a longer one costs time and says no more
NUM_LAYERS = 4  # whose attention stands for all layers'


class Evidence(Protocol):
    """Attached once to the target; `collect` after each of its prefills."""

    def attach(self, runner: ModelRunner) -> None:
        """Put the hooks on the target's layers."""

    def collect(self, batch: ScheduleBatch) -> None:
        """Keep what the prefill showed with the requests of `batch` (`Unread.evidence`)."""


def make_evidence(kind: str | None) -> Evidence | None:
    """The evidence of a policy."""
    if kind == QUESTION_ATTENTION:
        return QuestionAttention()
    return LayerChange() if kind == LAYER_CHANGE else None


class QuestionAttention:
    """How much the question's tokens look at each token of the context: mean over rows, heads and a few layers.

    The layers lie evenly spaced over the model; SpecVLM (arXiv 2508.16201) takes all.
    """

    def attach(self, runner: ModelRunner) -> None:
        modules = {m.layer_id: m for m in runner.model.modules() if isinstance(m, RadixAttention)}
        ids = sorted(modules)
        count = min(NUM_LAYERS, len(ids))
        chosen = [ids[(2 * number + 1) * len(ids) // (2 * count)] for number in range(count)]
        self._layers = [modules[layer_id] for layer_id in chosen]
        self._pool, self._table = runner.token_to_kv_pool, runner.req_to_token_pool
        self._queries: dict[int, torch.Tensor] = {}
        for module in self._layers:
            module.register_forward_hook(partial(self._after_attention, module.layer_id))

    def _after_attention(
        self, layer_id: int, _module: RadixAttention, args: tuple[Any, ...], _output: torch.Tensor
    ) -> None:
        if args[3].forward_mode.is_extend_without_speculative():
            self._queries[layer_id] = args[0]

    def collect(self, batch: ScheduleBatch) -> None:
        for req, unread, rows in _last_chunks(batch):
            self._score(req, unread, rows)
        self._queries.clear()

    def _score(self, req: Req, unread: Unread, rows: slice) -> None:
        """`rows`: the request's tokens in the batch, the last ones of its context."""
        length = unread.length
        media = media_of(req, length)
        if not self._queries:
            return  # the prefill was replayed from a CUDA graph, which runs no hooks
        if not media or int(media[-1].positions[-1]) < unread.start:
            return  # the draft read all of it for an earlier question
        behind = length - 1 - int(media[-1].positions[-1])
        count = min(behind, QUESTION_ROWS, rows.stop - rows.start)
        if not count:
            return
        slots = self._table.req_to_token[int(req.kv.req_pool_idx), :length].long()
        positions = torch.arange(length - count, length, device=slots.device)
        total = torch.zeros(length, dtype=torch.float32, device=slots.device)
        for module in self._layers:
            query = self._queries[module.layer_id][rows.stop - count : rows.stop]
            query = query.reshape(count, module.tp_q_head_num, module.qk_head_dim)
            keys = self._pool.get_key_buffer(module.layer_id)
            total += context_scores(query, keys, slots, positions, module.scaling)
        unread.evidence = _over_ranks(total)


class LayerChange:
    """How much closer to the text each visual token is behind a layer than before it: the change of their cosine.

    Summed over the text tokens behind the video, as ParallelVLM's UV-Prune does (arXiv 2603.19610); sums of differences
    between neighbouring layers leave the last less the first, so two layers are enough.
    """

    def attach(self, runner: ModelRunner) -> None:
        layers = _decoder_layers(runner.model)
        self._depths = (0, max(1, len(layers) // 4))
        self._states: dict[int, torch.Tensor] = {}
        for depth in self._depths:
            layers[depth].register_forward_pre_hook(partial(self._before_layer, depth), with_kwargs=True)

    def _before_layer(
        self, depth: int, _module: torch.nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> None:
        given = dict(zip(("positions", "hidden_states", "forward_batch"), args, strict=False)) | kwargs
        batch = given["forward_batch"]
        if batch.forward_mode.is_extend_without_speculative():
            # A layer is handed what the one before adds; the sum of all before that lies with the batch.
            self._states[depth] = residual_batch.snapshot(given["hidden_states"], batch)

    def collect(self, batch: ScheduleBatch) -> None:
        last = {id(req) for req, _, _ in _last_chunks(batch)}
        start = 0
        for req, extend_len in zip(batch.reqs, batch.extend_lens, strict=True):
            rows, start = slice(start, start + extend_len), start + extend_len
            unread = unread_of(req)
            if unread is None or req.multimodal_inputs is None or not self._states:
                continue  # (a prefill that was replayed from a CUDA graph runs no hooks)
            # States are kept over the chunks of a prompt: the question comes with the last one.
            units = [normalize(self._states[depth][rows].float(), dim=-1).bfloat16() for depth in self._depths]
            unread.parts.append((unread.length - extend_len, units))
            if id(req) in last:
                self._score(req, unread)
        self._states.clear()

    def _score(self, req: Req, unread: Unread) -> None:
        ids = ids_of(req, unread.length)
        visual = torch.nonzero(is_visual(ids)).flatten()
        visual = visual[visual >= unread.start]
        behind = int(visual[-1]) + 1 if len(visual) else unread.length
        # A request that was retracted before the draft read it comes back with its last tokens only.
        is_whole = bool(unread.parts) and unread.parts[0][0] == unread.start
        if is_whole and behind < unread.length:
            scores = []
            for index in range(len(self._depths)):  # part by part: a long video's states are large
                texts = [units[index][max(0, behind - first) :].float().sum(dim=0) for first, units in unread.parts]
                text = torch.stack(texts).sum(dim=0) / (unread.length - behind)
                scores.append(torch.cat([units[index].float() @ text for _, units in unread.parts]))
            evidence = torch.full((unread.length,), float("nan"), device=scores[0].device)
            evidence[unread.start :] = scores[1] - scores[0]
            unread.evidence = _over_ranks(evidence)
        unread.parts.clear()


def _last_chunks(batch: ScheduleBatch) -> list[tuple[Req, Unread, slice]]:
    """(request, what is unread, its rows in the batch) of those whose prompt ends in this prefill and holds media."""
    found, start = [], 0
    for req, extend_len in zip(batch.reqs, batch.extend_lens, strict=True):
        unread = unread_of(req)
        is_last = req.extend_end == len(req.full_untruncated_fill_ids)
        if unread is not None and is_last and req.multimodal_inputs is not None:
            found.append((req, unread, slice(start, start + extend_len)))
        start += extend_len
    return found


def _over_ranks(scores: torch.Tensor) -> torch.Tensor:
    """The mean over the ranks of tensor parallelism, so that all keep the same tokens; heads are sharded."""
    tp_group = get_parallel().tp_group
    if tp_group.world_size > 1:
        scores = tp_group.all_reduce(scores) / tp_group.world_size
    return scores


def _decoder_layers(model: torch.nn.Module) -> list[torch.nn.Module]:
    """The modules that hold one attention layer each, in order: what every decoder is a list of."""
    lists = [m for m in model.modules() if isinstance(m, torch.nn.ModuleList)]
    for modules in lists:
        if len(modules) and all(any(isinstance(m, RadixAttention) for m in layer.modules()) for layer in modules):
            return list(modules)
    raise ValueError(
        "--lvspec-context uvprune needs a target that is a list of attention layers; found none. Use another policy."
    )
