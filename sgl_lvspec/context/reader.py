"""The draft reads a prompt: the text and what its policy keeps of the media, into the draft's own KV pool.

Runs at the first round of a request, when its first token has left (under SGLang's overlap scheduler: has been made).
What the draft already holds of the prompt (a video that was asked about before) is not read again.

    state of the row's slots -> first hole -> what is kept from there on -> draft slots -> forward of the draft
"""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch

from sgl_lvspec.context.policies import POLICIES
from sgl_lvspec.context.policy import Video, budget_of, select
from sgl_lvspec.context.prompt import (
    Media,
    ids_of,
    is_visual,
    media_of,
    note_read,
    rotary_positions,
    unread_of,
)
from sgl_lvspec.context.slots import HOLE
from sgl_lvspec.context.tally import ContextTally

if TYPE_CHECKING:
    from collections.abc import Callable

    from sglang.srt.managers.schedule_batch import MultimodalDataItem, Req

    from sgl_lvspec.config import LVSpecConfig
    from sgl_lvspec.context.features import VisionFeatures
    from sgl_lvspec.context.slots import DraftSlots


@dataclass(frozen=True, slots=True)
class Reading:
    """What the draft reads of one request; e tokens.

    Attributes:
        row: the request's row in both row tables.
        kept: int64 [e], their positions in the context.
        num_held: tokens before them that the draft holds already.
        ids: int64 [e].
        rotary: int64 [3, e].
        features: per medium (pixels, rows int64 among the e tokens, features [n, width]).
    """

    req: Req
    row: int
    length: int
    kept: torch.Tensor
    num_held: int
    ids: torch.Tensor
    rotary: torch.Tensor
    features: list[tuple[MultimodalDataItem, torch.Tensor, torch.Tensor]]


@dataclass(frozen=True, slots=True)
class Piece:
    """Tokens `first` to `last` (exclusive) of a reading, for one forward."""

    reading: Reading
    first: int
    last: int


class PromptReader:
    """Keeps the draft's view of every context up to date.

    Args:
        features: the draft's own eyes; None for a draft that reads text only.
        stand_in_id: an ordinary token in place of a visual one that the draft cannot see.
        max_tokens: of one forward.
    """

    def __init__(
        self,
        config: LVSpecConfig,
        slots: DraftSlots,
        req_to_token: torch.Tensor,
        features: VisionFeatures | None,
        stand_in_id: int,
        max_tokens: int,
    ) -> None:
        self._policy = POLICIES[config.context]
        self._keep, self._keep_min = config.keep, config.keep_min
        self._slots, self._req_to_token = slots, req_to_token
        self._features, self._stand_in_id = features, stand_in_id
        self._max_tokens = max_tokens
        self.tally = ContextTally()

    def read(self, reqs: list[Req], in_use: Callable[[], torch.Tensor], forward: Callable[[list[Piece]], None]) -> None:
        """Read what is unread of the requests.

        Args:
            reqs: of the round that is about to be drafted.
            in_use: target slots int [n] of all their contexts; what the draft holds of them is not evicted.
            forward: runs the draft over pieces of different requests.
        """
        waiting = [req for req in reqs if unread_of(req) is not None]
        if not waiting:
            return
        began = time.perf_counter()
        while waiting:
            readings, waiting = self._begin(waiting, in_use)
            pieces = [piece for reading in readings for piece in self._pieces(reading)]
            for group in _groups(pieces, self._max_tokens):
                forward(group)
        self.tally.evicted = self._slots.num_evicted()
        self.tally.add_reading(time.perf_counter() - began)

    def keep_room(self, count: int, in_use: Callable[[], torch.Tensor]) -> None:
        """Make room for a round's tokens. Waits for the device only where the pool may be full; then a part of it is
        given up at once, so that the next rounds need not ask."""
        if self._slots.at_least >= count or self._slots.available() >= count:
            return
        self._slots.evict(max(count, self._slots.size // 16), in_use())
        self._slots.available()

    def _begin(self, reqs: list[Req], in_use: Callable[[], torch.Tensor]) -> tuple[list[Reading], list[Req]]:
        """Readings that may run together, and the requests that must wait for them: they share what is being read."""
        readings: list[Reading] = []
        waiting: list[Req] = []
        begun = torch.empty(0, dtype=torch.int64)  # the first target slot of each reading
        for req in reqs:
            unread = unread_of(req)
            assert unread is not None
            row = int(req.kv.req_pool_idx)
            target_slots = self._req_to_token[row, : unread.length].long()
            if torch.isin(begun, target_slots.cpu()).any():
                waiting.append(req)
                continue
            self._slots.touch(target_slots)
            reading, first = self._reading(req, row, target_slots, in_use)
            note_read(req)
            if reading is not None:
                readings.append(reading)
                begun = torch.cat([begun, target_slots[first : first + 1].cpu()])
        return readings, waiting

    def _reading(
        self, req: Req, row: int, target_slots: torch.Tensor, in_use: Callable[[], torch.Tensor]
    ) -> tuple[Reading | None, int]:
        """Decide what is kept of the context from its first hole on, and take slots for it.

        Returns:
            The reading (None: there is nothing to read, or no room) and the position of the hole.
        """
        length = len(target_slots)
        state = self._slots.state_of(target_slots)
        holes = torch.nonzero(state == HOLE)
        if not len(holes):
            return None, length
        first = int(holes[0])
        is_kept = torch.ones(length, dtype=torch.bool)
        is_kept[:first] = False
        ids = ids_of(req, length)
        media = media_of(req, length)
        seen: list[tuple[Media, torch.Tensor]] = []
        for one in media:
            mine = one.positions[one.positions >= first]
            if not len(mine):
                continue
            is_kept[mine] = self._choose(req, one, mine)
            features = self._features_of(one)
            if features is not None:
                seen.append((one, features))
            elif self._features is not None and one.item.precomputed_embeddings is None:
                is_kept[mine] = False  # the pixels are gone: nothing to see
                self.tally.unseen_media += 1
        kept = torch.nonzero(is_kept).flatten()
        held_behind = int((state[first:] > 0).sum())
        if not self._make_room(len(kept) - held_behind, in_use):
            self.tally.unread_prompts += 1
            return None, first
        self._slots.release(target_slots[first:])
        self._slots.take(target_slots[kept.to(target_slots.device)])
        dropped = torch.nonzero(~is_kept[first:]).flatten() + first
        self._slots.leave_out(target_slots[dropped.to(target_slots.device)])
        visual = is_visual(ids)
        self.tally.read_text += int((is_kept & ~visual).sum())
        self.tally.read_visual += int((is_kept & visual).sum())
        self.tally.left_out += len(dropped)
        place = is_kept.cumsum(0) - 1  # of a kept position among the kept
        features_of = []
        sees = torch.zeros(length, dtype=torch.bool)
        for one, features in seen:
            sees[one.positions] = True
            at = torch.nonzero(is_kept[one.positions]).flatten()
            if len(at):
                features_of.append((one.item, place[one.positions[at]], features[at.to(features.device)]))
        readable = torch.where(sees | ~visual, ids, self._stand_in_id)[kept]
        num_held = int((state[:first] > 0).sum())
        reading = Reading(req, row, length, kept, num_held, readable, rotary_positions(req, kept), features_of)
        return reading, first

    def _choose(self, req: Req, media: Media, positions: torch.Tensor) -> torch.Tensor:
        """Which of a medium's tokens at `positions` int64 [n] are kept, bool [n]."""
        num_tokens = len(positions)
        budget = budget_of(num_tokens, self._keep)
        if self._policy.keeps_all or budget == num_tokens or len(media.positions) < self._keep_min:
            return torch.ones(num_tokens, dtype=torch.bool)
        evidence = self._evidence_of(req, positions) if self._policy.evidence is not None else None
        video = Video(num_tokens, int(media.item.hash), evidence, self._req_to_token.device)
        return select(self._policy, video, budget).cpu()

    def _evidence_of(self, req: Req, positions: torch.Tensor) -> torch.Tensor | None:
        """What the target told about the tokens at `positions`, float32 [n]; None (and counted) unless all of it."""
        unread = unread_of(req)
        if unread is not None and unread.evidence is not None:
            evidence = unread.evidence[positions.to(unread.evidence.device)]
            if not evidence.isnan().any():
                return evidence
        self.tally.fallbacks += 1
        return None

    def _features_of(self, media: Media) -> torch.Tensor | None:
        """The draft's features of the medium; None where it is blind to it. Embeddings that the client computed are of
        the target's width and mean nothing to the draft."""
        if self._features is None or media.item.precomputed_embeddings is not None:
            return None
        began = time.perf_counter()
        features = self._features.of(media.item, sum(last - first + 1 for first, last in media.item.offsets))
        self.tally.seeing_seconds += time.perf_counter() - began
        return features

    def _make_room(self, needed: int, in_use: Callable[[], torch.Tensor]) -> bool:
        """Whether `needed` slots can be had, if need be from contexts that no request of the round uses."""
        missing = needed - self._slots.available()
        if missing <= 0:
            return True
        used = in_use()
        if missing > self._slots.evictable(used):
            return False  # nobody else loses what would not suffice
        self._slots.evict(missing, used)
        return True

    def _pieces(self, reading: Reading) -> list[Piece]:
        starts = range(0, len(reading.kept), self._max_tokens)
        return [Piece(reading, first, min(first + self._max_tokens, len(reading.kept))) for first in starts]


def _groups(pieces: list[Piece], max_tokens: int) -> list[list[Piece]]:
    """Pieces that run together, in order, at most `max_tokens` tokens; a reading's next piece follows a full one, so a
    group never holds two of one request."""
    groups: list[list[Piece]] = []
    room = 0
    for piece in pieces:
        size = piece.last - piece.first
        if not groups or size > room:
            groups.append([])
            room = max_tokens
        groups[-1].append(piece)
        room -= size
    return groups
