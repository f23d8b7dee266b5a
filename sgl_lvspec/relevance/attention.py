"""The `attention` scorer: from the shares of a state's attention that fall on visual slots, over chosen heads.

Forward hooks on the target's `RadixAttention` modules (srt/layers/radix_attention.py) see the queries after the rotary
embedding, with the new keys already in the pool, so any attention backend serves; what the shares are made of is
`masses`'s matter. They write into a buffer that exists before CUDA graphs are captured and decide nothing by values, so
they are captured with the forward.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

import torch
from sglang.srt.layers.radix_attention import AttentionType, RadixAttention
from sglang.srt.runtime_context import get_parallel

from sgl_lvspec.config import DEFAULT_MASS
from sgl_lvspec.relevance.calibration import LOG_OFFSET, HeadWeight
from sgl_lvspec.relevance.masses import mass_source

if TYPE_CHECKING:
    from sglang.srt.mem_cache.memory_pool import KVCache
    from sglang.srt.model_executor.forward_batch_info import ForwardBatch
    from sglang.srt.model_executor.model_runner import ModelRunner

    from sgl_lvspec.relevance.slots import SlotTables

READABLE = (torch.float32, torch.bfloat16, torch.float16)  # key pools that hold keys as they are, without a scale


@dataclass(frozen=True, slots=True, eq=False)
class _HookedLayer:
    """What a rank adds to the score at one layer; n is how many of the chosen heads are its own, perhaps none."""

    index: int  # among the chosen layers
    module: RadixAttention
    heads: torch.Tensor  # int64 [n], counted from the rank's first
    weights: torch.Tensor  # float32 [n]
    log_weights: torch.Tensor | None  # float32 [n], None where all are 0


class AttentionRelevance:
    """bias + the chosen heads' parts (see `HeadWeight`), or the mean visual share, from 0 to 1, of all heads.

    Args:
        heads: query heads and their weights, as calibrated. None: every head of every layer alike.
        bias: added to the sum.
        keeps_masses: also keep the share of every chosen head, for calibration on one rank (`read_masses`).
        mass: what shares are made of, `config.MASSES`.
    """

    needs_states = False
    is_wanted = True

    def __init__(
        self,
        heads: Sequence[HeadWeight] | None = None,
        bias: float = 0.0,
        *,
        keeps_masses: bool = False,
        mass: str = DEFAULT_MASS,
    ) -> None:
        self._chosen = heads
        self._bias = bias
        self._keeps_masses = keeps_masses
        self._mass = mass
        self._masses: torch.Tensor | None = None
        self._handles: list[Any] = []

    def attach(self, model_runner: ModelRunner, slots: SlotTables, num_nodes: int) -> None:
        """Put a hook on every chosen layer of the target, whose attention backend exists.

        Args:
            num_nodes: B * D of the largest verify forward.

        Raises:
            ValueError: a layer or head that the target does not have, attention that is no plain softmax over keys
                that can be read, or a log-sum-exp that is not what it should be.
        """
        layers = {m.layer_id: m for m in model_runner.model.modules() if isinstance(m, RadixAttention)}
        tp_group = get_parallel().tp_group
        weights = self._weights_by_layer(layers, tp_group.world_size)
        for layer_id in weights:
            _refuse_unreadable(layers[layer_id], model_runner.token_to_kv_pool, len(slots.is_visual))
        device = slots.is_visual.device
        self._scores = torch.zeros(num_nodes, dtype=torch.float32, device=device)
        if self._keeps_masses:
            num_heads = max(len(of_layer) for of_layer in weights.values())
            self._masses = torch.zeros(len(weights), num_nodes, num_heads, dtype=torch.float32, device=device)
        hooked = [
            _own_part(index, layers[layer_id], of_layer, tp_group.rank_in_group, device)
            for index, (layer_id, of_layer) in enumerate(sorted(weights.items()))
        ]
        read = [layer.module for layer in hooked if len(layer.heads)]
        self._masses_of = mass_source(model_runner, slots.is_visual, read, self._mass)
        for layer in hooked:
            self._handles.append(layer.module.register_forward_hook(partial(self._after_attention, layer)))

    def read(self, num_requests: int, width: int) -> torch.Tensor:
        """Scores float32 [B, D] of the last verify forward, the ranks' parts added up."""
        scores = self._scores[: num_requests * width].clone()
        tp_group = get_parallel().tp_group
        if tp_group.world_size > 1:
            scores = tp_group.all_reduce(scores)
        return scores.add_(self._bias).view(num_requests, width)

    def read_masses(self, num_requests: int, width: int) -> torch.Tensor:
        """Visual shares float32 [layers, B, D, heads] of the last verify forward, chosen layers and heads in order."""
        assert self._masses is not None, "read_masses needs keeps_masses=True"
        return self._masses[:, : num_requests * width].clone().unflatten(1, (num_requests, width))

    def detach(self) -> None:
        """Take the hooks off; the last scores stay readable."""
        while self._handles:
            self._handles.pop().remove()

    def _after_attention(
        self, layer: _HookedLayer, _module: RadixAttention, args: tuple[Any, ...], _output: torch.Tensor
    ) -> None:
        """Forward hook. The query is [R, Hq * E] of the rank; the new keys are in the pool."""
        query: torch.Tensor = args[0]
        forward_batch: ForwardBatch = args[3]
        if not (self.is_wanted and forward_batch.forward_mode.is_target_verify()):
            return
        num_nodes = query.shape[0]
        scores = self._scores[:num_nodes]
        if layer.index == 0:
            scores.zero_()
        if not len(layer.heads):
            return
        mass = self._masses_of(layer.module, query, forward_batch, layer.heads)
        scores.addmv_(mass, layer.weights)
        if layer.log_weights is not None:
            scores.addmv_((mass + LOG_OFFSET).log(), layer.log_weights)
        if self._masses is not None:
            self._masses[layer.index, :num_nodes, : len(layer.heads)] = mass

    def _weights_by_layer(self, layers: dict[int, RadixAttention], tp_size: int) -> dict[int, dict[int, HeadWeight]]:
        """{layer: {head: weights}} of what was chosen, all of it there."""
        every = {layer_id: range(module.tp_q_head_num * tp_size) for layer_id, module in layers.items()}
        chosen = self._chosen
        if chosen is None:
            share = 1.0 / sum(len(heads) for heads in every.values())
            chosen = [HeadWeight(layer_id, head, share) for layer_id, heads in every.items() for head in heads]
        weights: dict[int, dict[int, HeadWeight]] = {}
        for chosen_head in chosen:
            layer_id, head = chosen_head.layer, chosen_head.head
            if head not in every.get(layer_id, ()):
                counts = sorted({len(heads) for heads in every.values()})
                raise ValueError(
                    f"The attention scorer needs heads that the target has: layers {min(every)} to {max(every)} with "
                    f"{counts[-1]} query heads each; found layer {layer_id}, head {head}. "
                    "Calibrate for this target (`lvspec calibrate`), or set --lvspec-calibration none."
                )
            weights.setdefault(layer_id, {})[head] = chosen_head
        return weights


def _own_part(
    index: int, module: RadixAttention, of_layer: dict[int, HeadWeight], rank: int, device: torch.device
) -> _HookedLayer:
    """Of the layer's chosen heads those that this rank computes."""
    first = rank * module.tp_q_head_num
    local = {h - first: w for h, w in sorted(of_layer.items()) if first <= h < first + module.tp_q_head_num}
    return _HookedLayer(
        index,
        module,
        torch.tensor(list(local), dtype=torch.int64, device=device),
        torch.tensor([w.weight for w in local.values()], dtype=torch.float32, device=device),
        torch.tensor([w.log_weight for w in local.values()], dtype=torch.float32, device=device)
        if any(w.log_weight for w in local.values())
        else None,
    )


def _refuse_unreadable(module: RadixAttention, pool: KVCache, num_slots: int) -> None:
    keys = pool.get_key_buffer(module.layer_id)
    expected = (num_slots, module.tp_k_head_num, module.qk_head_dim)
    window = module.sliding_window_size
    kinds = {
        f"keys of shape {tuple(keys.shape)}": tuple(keys.shape) != expected,
        f"keys in {keys.dtype}": keys.dtype not in READABLE,
        f"a sliding window ({window})": window is not None and window > -1,
        f"a logit cap ({module.logit_cap})": module.logit_cap > 0,
        "cross attention": module.is_cross_attention,
        "attention in both directions": module.attn_type != AttentionType.DECODER,
    }
    found = [kind for kind, is_found in kinds.items() if is_found]
    if found:
        raise ValueError(
            f"The attention scorer needs plain attention over keys of shape {expected} in 16 or 32 bits; found "
            f"{', '.join(found)} in layer {module.layer_id}. Use --lvspec-scorer similarity, or serve with "
            "--kv-cache-dtype auto."
        )
