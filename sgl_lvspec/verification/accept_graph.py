"""The accept step of greedy rounds as CUDA graphs: some forty launches of a few microseconds' work each become one.

    round's small tensors ─► buffers ─┐
    logits, where SGLang's own graph ─┼─► recorded step ─► results in one block ─► a copy of it
    of the verify forward leaves them ┘      (rules, states, relevance: tables that stay where they are)

A step is recorded after a few rounds of its batch size, and it is proved: in its first rounds the eager step runs
beside it and its result is the one that counts. What does not agree bit for bit is never used again.
"""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Callable
from typing import NamedTuple

import torch

from lvspec_kernels.relax import StateRows
from sgl_lvspec.graphs import no_sync
from sgl_lvspec.graphs.recording import Recorder
from sgl_lvspec.verification.greedy_round import Accepted, GreedyRound

logger = logging.getLogger(__name__)

EAGER_ROUNDS = 3  # of a batch size, before it is worth a recording, which takes as long as some rounds
PROOFS = 3  # rounds of a recording that the eager step repeats: one number baked in would show
MOST_RECORDED = 512  # batch sizes are few; whoever reaches it has logits that move, and nothing to win
_ALIGNMENT = 16  # bytes, of each part of a block: what Triton's kernels assume of a tensor of its own

Step = Callable[[GreedyRound, torch.Tensor], Accepted]


class AcceptGraphs:
    """The accept step, recorded once per batch size and place of the logits.

    Args:
        step: what is recorded. It changes `state` and nothing else that outlives it, and asks the device nothing.
        state: what the step changes, by request row.
        recorder: CUDA's graphs.
        was_replayed: whether this round's logits are those of a graph, so that they lie where that graph leaves them.
    """

    def __init__(self, step: Step, state: StateRows, recorder: Recorder, was_replayed: Callable[[], bool]) -> None:
        self._step, self._state, self._recorder, self._was_replayed = step, state, recorder, was_replayed
        self._rounds: Counter[_Key] = Counter()
        self._recorded: dict[_Key, _Recorded] = {}
        self._is_given_up = False

    def __call__(self, round_: GreedyRound, logits: torch.Tensor) -> Accepted:
        """The step's result, in tensors of its own."""
        recorded = self._find(round_, logits)
        if recorded is None:
            return self._step(round_, logits)
        if recorded.num_proofs < PROOFS:
            return self._prove(recorded, round_, logits)
        return recorded.replay(round_)

    def _find(self, round_: GreedyRound, logits: torch.Tensor) -> _Recorded | None:
        """The recording of rounds like this one; made now, if it is time."""
        if not self._was_replayed() or self._is_given_up:
            return None
        key = _Key(tuple(round_.draft_token.shape), logits.data_ptr(), logits.dtype, logits.shape, logits.stride())
        found = self._recorded.get(key)
        if found is None and len(self._recorded) < MOST_RECORDED:
            self._rounds[key] += 1
            if self._rounds[key] > EAGER_ROUNDS:
                found = self._record(key, round_, logits)
        return found

    def _record(self, key: _Key, round_: GreedyRound, logits: torch.Tensor) -> _Recorded | None:
        """A recording of this round's step; None, for good, where that fails."""
        try:
            with no_sync.exempt("recording an accept step"):
                self._recorded[key] = _Recorded(self._step, round_, logits, self._recorder, self._kept_of(round_.rows))
        except Exception:
            self._give_up("it could not be recorded as a CUDA graph", with_traceback=True)
            return None
        logger.info("LVSPEC: accept step of %d requests recorded as a CUDA graph.", len(round_.rows))
        return self._recorded[key]

    def _prove(self, recorded: _Recorded, round_: GreedyRound, logits: torch.Tensor) -> Accepted:
        """The eager step's result, and whether a replay would have given it."""
        kept = self._kept_of(round_.rows)
        expected = self._step(round_, logits)
        expected_state = self._kept_of(round_.rows)
        kept.put_back()
        found = recorded.replay(round_)
        found_state = self._kept_of(round_.rows)
        expected_state.put_back()
        with no_sync.exempt("proving a recorded accept step"):
            agree = all(map(_same_bits, (*found, *found_state.parts), (*expected, *expected_state.parts)))
        recorded.num_proofs += 1
        if not agree:
            self._give_up("its CUDA graph decided otherwise than its operations do")
        return expected

    def _give_up(self, why: str, *, with_traceback: bool = False) -> None:
        self._is_given_up = True
        self._recorded.clear()
        logger.error(
            "LVSPEC: the accept step runs operation by operation from now on, because %s. Answers are right, rounds "
            "take a little longer. Please report it.",
            why,
            exc_info=with_traceback,
        )

    def _kept_of(self, rows: torch.Tensor) -> _KeptState:
        return _KeptState(self._state, rows, [part[rows] for part in self._state])


class _Key(NamedTuple):
    """What a recording holds for: B and D, and which logits."""

    nodes: tuple[int, ...]
    address: int
    dtype: torch.dtype
    shape: torch.Size
    stride: tuple[int, ...]


class _KeptState(NamedTuple):
    """State of some rows as it was, to put back."""

    state: StateRows
    rows: torch.Tensor
    parts: list[torch.Tensor]

    def put_back(self) -> None:
        for table, part in zip(self.state, self.parts, strict=True):
            table[self.rows] = part


class _Recorded:
    """One recorded step and its buffers.

    Attributes:
        num_proofs: rounds in which it was compared with the eager step.
    """

    num_proofs = 0

    def __init__(
        self, step: Step, round_: GreedyRound, logits: torch.Tensor, recorder: Recorder, kept: _KeptState
    ) -> None:
        self._inputs = GreedyRound(*(torch.empty_like(part, memory_format=torch.contiguous_format) for part in round_))
        self._fill(round_)
        results: list[Accepted] = []
        try:
            recorder.warm_up(lambda: results.append(step(self._inputs, logits)))
        finally:
            kept.put_back()
        self._shapes = [(part.dtype, part.shape) for part in results[0]]
        sizes = [-(-part.nbytes // _ALIGNMENT) * _ALIGNMENT for part in results[0]]
        self._starts = [sum(sizes[:index]) for index in range(len(sizes))]
        self._block = torch.zeros(sum(sizes), dtype=torch.uint8, device=logits.device)
        outputs = self._views(self._block)

        def body() -> None:
            for output, part in zip(outputs, step(self._inputs, logits), strict=True):
                output.copy_(part)

        self._replay = recorder.record(body)

    def replay(self, round_: GreedyRound) -> Accepted:
        """The round's result, which the next replay leaves alone: SGLang copies it to the host later."""
        self._fill(round_)
        self._replay()
        return self._views(self._block.clone())

    def _fill(self, round_: GreedyRound) -> None:
        for buffer, part in zip(self._inputs, round_, strict=True):
            buffer.copy_(part)

    def _views(self, block: torch.Tensor) -> Accepted:
        """The parts of a block uint8 [n]."""
        return Accepted(
            *(
                block[start : start + shape.numel() * dtype.itemsize].view(dtype).view(shape)
                for start, (dtype, shape) in zip(self._starts, self._shapes, strict=True)
            )
        )


def _same_bits(found: torch.Tensor, expected: torch.Tensor) -> bool:
    """NaN equals itself here. Waits for the device."""
    return torch.equal(found.contiguous().view(torch.uint8), expected.contiguous().view(torch.uint8))
