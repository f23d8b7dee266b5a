"""Every op of lvspec_kernels as a round runs it: arguments, bytes that must move, sizes to try. One entry an op."""

from __future__ import annotations

import importlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import torch

from bench.gpu.models import BINS, KEPT, WIDTH, Model, Shape, calibrated_heads, kv_heads_read
from lvspec_kernels import RuleRows, StateRows

Arguments = dict[str, Any]
QUESTION = 32  # rows of a question, whose attention scores a prompt
LOGITS = (torch.float32, torch.bfloat16)  # SGLang hands over float32


@dataclass(frozen=True)
class Op:
    """An op by its name in lvspec_kernels, where it has a kernel and a definition."""

    name: str
    arguments: Callable[[Shape, torch.device], Arguments]
    moves: Callable[[Shape], int]  # bytes, of what is read once and written once
    definition_needs: Callable[[Shape], int]  # bytes of memory beyond the arguments, roughly
    depends_on: frozenset[str]  # of model, slots, dtype; always on requests
    one_request: bool = False  # a prompt's, not a round's
    grid: dict[str, tuple[int, ...]] = field(default_factory=dict)  # sizes to try

    def __post_init__(self) -> None:
        assert self.depends_on <= {"model", "slots", "dtype"}, self.depends_on

    @property
    def kernel(self) -> Callable[..., Any]:
        return self._function("triton")

    @property
    def definition(self) -> Callable[..., Any]:
        return self._function("torch")

    def _function(self, kind: str) -> Callable[..., Any]:
        module = importlib.import_module(f"lvspec_kernels.{self.name}")
        function: Callable[..., Any] = getattr(module, f"{self.name}_{kind}")
        return function

    def shapes(self, models: tuple[Model, ...], requests: tuple[int, ...], slots: tuple[int, ...]) -> Iterator[Shape]:
        """Those of all combinations that differ in what the op's cost depends on."""
        for model in models if "model" in self.depends_on else models[:1]:
            for visual in slots if "slots" in self.depends_on else (0,):
                for dtype in LOGITS if "dtype" in self.depends_on else (torch.bfloat16,):
                    for number in requests[:1] if self.one_request else requests:
                        yield Shape(model, number, visual, dtype)


def logits_rows(shape: Shape, device: torch.device) -> Arguments:
    vocabulary = shape.model.vocabulary
    logits = torch.randn(shape.rows, vocabulary, device=device).mul_(3).to(shape.dtype)
    return {"logits": logits, "drafted": torch.randint(vocabulary, (shape.rows,), device=device), "temperature": None}


def chains(shape: Shape, device: torch.device) -> Arguments:
    draft_token = torch.randint(9, (shape.requests, WIDTH), device=device)
    is_other = torch.rand(draft_token.shape, device=device) < 0.2
    return {"draft_token": draft_token, "choice": torch.where(is_other, 9, draft_token.roll(-1, dims=1))}


def round_to_decide(shape: Shape, device: torch.device) -> Arguments:
    size, ones = (shape.requests, WIDTH), torch.ones(shape.requests, device=device)
    whole = ones.to(torch.int32)
    return {
        **chains(shape, device),
        "care": torch.rand(size, device=device),
        "logprob": -torch.rand(size, device=device),
        "is_allowed": torch.rand(size, device=device) < 0.9,
        "rows": torch.randperm(shape.requests, device=device),
        "rules": RuleRows(ones * 0.5, ones * -9, whole * 2, whole, ones * 0.3, whole * 4, ones * 9),
        "state": StateRows(torch.ones(shape.requests, BINS, device=device), whole * 90, whole.clone()),
        "edges": torch.linspace(0, 1, BINS + 1, device=device),
    }


def paged(shape: Shape, device: torch.device) -> Arguments:
    """Contexts as SGLang's pool has them after a prefill: text, then the video, one request behind the other."""
    slots = torch.arange(shape.requests * shape.context, dtype=torch.int32, device=device) + 1
    position = torch.arange(shape.context, device=device)
    is_visual = (position >= shape.text // 2) & (position < shape.text // 2 + shape.slots)
    return {
        "req_to_token": slots.view(shape.requests, shape.context),
        "rows": torch.randperm(shape.requests, device=device),
        "kv_lens": torch.full((shape.requests,), shape.context, device=device),
        "is_visual": torch.cat([is_visual.new_zeros(1), is_visual.repeat(shape.requests)]),
    }


def keys_and_queries(shape: Shape, device: torch.device) -> Arguments:
    model, num_slots = shape.model, shape.requests * shape.context + 1
    return {
        **paged(shape, device),
        "query": torch.randn(shape.rows, model.heads, model.head_dim, device=device).to(shape.dtype),
        "keys": torch.randn(num_slots, model.kv_heads, model.head_dim, dtype=shape.dtype, device=device),
        "heads": torch.tensor(calibrated_heads(model), device=device),
        "scale": model.head_dim**-0.5,
    }


def keys_and_sums(shape: Shape, device: torch.device) -> Arguments:
    """With a log-sum-exp as random scores of this scale have it: the mean of exp is e ** 0.5."""
    given = keys_and_queries(shape, device)
    sums = torch.full(given["query"].shape[:2], shape.context * 1.65, device=device)
    return {**given, "lse": sums.log2()}


def states(shape: Shape, device: torch.device) -> Arguments:
    hidden = shape.model.hidden
    visual = torch.randn(shape.requests * shape.context + 1, hidden, dtype=shape.dtype, device=device)
    return {
        **paged(shape, device),
        "visual_state": visual.mul_(hidden**-0.5),
        "states": torch.randn(shape.rows, hidden, dtype=shape.dtype, device=device),
    }


def question(shape: Shape, device: torch.device) -> Arguments:
    model, rows = shape.model, min(QUESTION, shape.context)
    return {
        "query": torch.randn(rows, model.heads, model.head_dim, dtype=shape.dtype, device=device),
        "keys": torch.randn(shape.context + 1, model.kv_heads, model.head_dim, dtype=shape.dtype, device=device),
        "slots": torch.arange(1, shape.context + 1, device=device),
        "positions": torch.arange(shape.context - rows, shape.context, device=device),
        "scale": model.head_dim**-0.5,
    }


def scores(shape: Shape, device: torch.device) -> Arguments:
    return {"score": torch.rand(shape.slots, device=device), "budget": shape.slots // KEPT, "mass_share": 0.4}


def tables(shape: Shape, device: torch.device) -> Arguments:
    given = paged(shape, device)
    num_slots = shape.requests * shape.context + 1
    is_kept = torch.rand(num_slots, device=device) < 1 / KEPT
    slot = torch.where(is_kept, torch.arange(num_slots, device=device), -1)
    return {
        "req_to_token": given["req_to_token"],
        "rows": given["rows"],
        "lens": given["kv_lens"],
        "draft_slot": slot.to(torch.int32),
        "out": torch.zeros(shape.requests, shape.context, dtype=torch.int32, device=device),
        "out_lens": torch.zeros(shape.requests, dtype=torch.int64, device=device),
    }


def positions_of(shape: Shape) -> int:
    return shape.requests * shape.context


def keys_of(shape: Shape, positions: int, heads: int) -> int:
    """Bytes of the keys of so many positions and KV heads."""
    return positions * heads * shape.model.head_dim * shape.itemsize


MASS_GRID = {"block_context": (32, 64, 128), "programs": (256, 512, 1024), "num_warps": (4,), "num_stages": (3, 4)}
ATTENTION, LOGIT = frozenset({"model", "slots"}), frozenset({"dtype"})
LOGIT_ROWS = Op(
    "row_choice", logits_rows, lambda s: s.rows * s.model.vocabulary * s.itemsize,
    lambda s: s.rows * s.model.vocabulary * 28, LOGIT,
    grid={"block": (2048, 4096, 8192, 16_384), "num_warps": (4, 8)},
)  # fmt: skip

OPS = (
    LOGIT_ROWS,
    Op("accept_chain", chains, lambda s: 24 * s.rows + 4 * s.requests, lambda s: 64 * s.rows, frozenset(),
       grid={"num_warps": (1, 2, 4)}),
    Op("relax", round_to_decide, lambda s: 34 * s.rows + (8 * BINS + 48) * s.requests,
       lambda s: 256 * WIDTH * s.rows, frozenset(), grid={"num_warps": (1, 2, 4)}),
    Op("visual_mass", keys_and_queries,
       lambda s: keys_of(s, positions_of(s), kv_heads_read(s.model)) + 5 * positions_of(s),
       lambda s: positions_of(s) * (4 + 2 * kv_heads_read(s.model)) * s.model.head_dim * 2 + 12 * s.rows * s.context,
       ATTENTION, grid=MASS_GRID),
    Op("mass_from_lse", keys_and_sums,
       lambda s: keys_of(s, s.requests * (s.text + WIDTH), kv_heads_read(s.model)) + 5 * positions_of(s),
       lambda s: 20 * positions_of(s) * s.model.head_dim + 16 * s.rows * s.context + 5 * keys_of(s, positions_of(s), 1),
       ATTENTION, grid=MASS_GRID),
    Op("visual_similarity", states,
       lambda s: s.requests * s.slots * s.model.hidden * s.itemsize + 5 * positions_of(s),
       lambda s: 6 * positions_of(s) * s.model.hidden + 12 * s.rows * s.context, ATTENTION,
       grid={"block_context": (32, 64, 128), "block_hidden": (64, 128), "programs": (256, 512), "num_warps": (4,),
             "num_stages": (3, 4)}),
    Op("context_scores", question,
       lambda s: keys_of(s, s.context, s.model.kv_heads) + 12 * s.context,
       lambda s: s.context * (16 * QUESTION * (s.model.heads // s.model.kv_heads) + 8 * s.model.head_dim),
       ATTENTION, one_request=True,
       grid={"block_context": (64, 128), "block_pairs": (16, 32, 64), "programs": (256, 512), "num_warps": (4,),
             "num_stages": (2, 3)}),
    Op("select_context", scores, lambda s: 5 * s.slots, lambda s: 64 * s.slots, frozenset({"slots"}), one_request=True,
       grid={"block": (4096, 8192, 16_384), "num_warps": (8, 16, 32)}),
    Op("draft_rows", tables, lambda s: positions_of(s) * 8 + positions_of(s) // KEPT * 4,
       lambda s: 32 * positions_of(s), frozenset({"slots"}),
       grid={"block": (2048, 4096, 8192, 16_384), "num_warps": (4, 8, 16)}),
)  # fmt: skip


def op_of(name: str) -> Op:
    """The entry of a name."""
    return next(op for op in OPS if op.name == name)
