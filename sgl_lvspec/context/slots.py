"""Which slot of the draft's own KV pool holds a token of the target's: a map by target slot, and the free draft slots.

Kept by target slot, so what the draft holds of a prompt is reused with the radix cache's slots at no cost. The map is
a cache: an entry that is lost or was never made costs accepted tokens, never output. Everything here stays on the
device and waits for nothing, except where a function says so: those are for a prompt's reading and an idle server.
"""

from __future__ import annotations

import torch

HOLE = 0  # the draft holds nothing of this token
LEFT_OUT = -1  # nothing, and on purpose: a policy left the token out


class DraftSlots:
    """Map and free list; S target slots, N draft slots to hand out, numbered from 1 (0 is the pool's dummy).

    Attributes:
        draft_slot: int32 [S], per target slot: the draft slot that holds its token, `HOLE` or `LEFT_OUT`.
        size: N.
        at_least: free slots that there are for sure, known without asking the device: counted last, less what was
            asked for since. Equal on all ranks.
    """

    def __init__(self, num_target_slots: int, size: int, device: torch.device | str) -> None:
        self.size = size
        self.draft_slot = torch.zeros(num_target_slots, dtype=torch.int32, device=device)
        # Entry N + 1 of the per-draft-slot tables takes the writes of rows that have nothing to write.
        self._target_slot = torch.zeros(size + 2, dtype=torch.int64, device=device)
        self._last_used = torch.zeros(size + 2, dtype=torch.int64, device=device)
        self._claim = torch.zeros(size + 2, dtype=torch.int64, device=device)
        # A ring of free slots: taken at _head, given back at _tail, both counted without end.
        self._ring = torch.zeros(size + 1, dtype=torch.int64, device=device)
        self._head = torch.zeros((), dtype=torch.int64, device=device)
        self._tail = torch.zeros((), dtype=torch.int64, device=device)
        self._evicted = torch.zeros((), dtype=torch.int64, device=device)
        self._clock = 0
        self.clear()

    def clear(self) -> None:
        """Forget everything, as the target's pool does on a flush."""
        self.draft_slot.zero_()
        self._target_slot.zero_()
        self._ring[: self.size] = torch.arange(1, self.size + 1, device=self._ring.device)
        self._head.zero_()
        self._tail.fill_(self.size)
        self.at_least = self.size

    def available(self) -> int:
        """Free draft slots. Waits for the device."""
        self.at_least = int((self._tail - self._head).item())
        return self.at_least

    def state_of(self, target_slots: torch.Tensor) -> torch.Tensor:
        """Entries int32 [n] of target slots int [n], on the host. Waits for the device."""
        return self.draft_slot[target_slots.long()].cpu()

    def take(self, target_slots: torch.Tensor) -> torch.Tensor:
        """Give every token a draft slot: the one that it has, else a free one.

        Args:
            target_slots: int [n], no slot twice.

        Returns:
            int64 [n], 0 where no slot was free.
        """
        self.at_least -= len(target_slots)
        target_slots = target_slots.long()
        held = self.draft_slot[target_slots].long()
        needs = (held <= 0) & (target_slots > 0)
        index = self._head + needs.cumsum(0) - 1
        gets = needs & (index < self._tail)
        found = torch.where(gets, self._ring[index.clamp_min(0) % self.size], held.clamp_min(0))
        self._head += gets.sum()
        self.draft_slot[target_slots] = found.int()
        at = torch.where(found > 0, found, self.size + 1)
        self._target_slot[at] = target_slots
        self._last_used[at] = self._clock
        return found

    def leave_out(self, target_slots: torch.Tensor) -> None:
        """Note that the tokens at target slots int [n] are not held, on purpose; they must not be held now."""
        self.draft_slot[target_slots.long()] = LEFT_OUT

    def release(self, target_slots: torch.Tensor) -> None:
        """Give back what is held of the tokens at target slots int [n]; a slot may occur twice."""
        target_slots = target_slots.long()
        held = self.draft_slot[target_slots].long()
        at = torch.where(held > 0, held, self.size + 1)
        order = torch.arange(len(target_slots), device=at.device)
        self._claim[at] = order  # of rows that name one slot twice, one wins
        gives = (held > 0) & (self._claim[at] == order)
        index = torch.where(gives, (self._tail + gives.cumsum(0) - 1) % self.size, self.size)
        self._ring[index] = held
        self._tail += gives.sum()
        self._target_slot[at] = 0
        self.draft_slot[target_slots] = HOLE

    def touch(self, target_slots: torch.Tensor) -> None:
        """Note that what is held of these tokens, int [n], is in use: `evict` takes it last."""
        self._clock += 1
        held = self.draft_slot[target_slots.long()].long()
        self._last_used[torch.where(held > 0, held, self.size + 1)] = self._clock

    def evict(self, count: int, in_use: torch.Tensor) -> None:
        """Give back at most `count` slots, those longest unused first.

        Args:
            in_use: int [n], target slots of running requests, which keep what they have.
        """
        may_go = self._may_go(in_use)
        age = torch.where(may_go, self._last_used[1 : self.size + 1], torch.iinfo(torch.int64).max)
        oldest = torch.topk(age, min(count, self.size), largest=False, sorted=False).indices
        self._evicted += may_go[oldest].sum()
        # What may not go is named as target slot 0, which never holds anything.
        self.release(torch.where(may_go[oldest], self._target_slot[1 + oldest], 0))

    def evictable(self, in_use: torch.Tensor) -> int:
        """How many slots `evict` could give back. Waits for the device."""
        return int(self._may_go(in_use).sum())

    def num_evicted(self) -> int:
        """Slots that `evict` gave back so far. Waits for the device."""
        return int(self._evicted)

    def _may_go(self, in_use: torch.Tensor) -> torch.Tensor:
        """Which draft slots are held for tokens that are not `in_use`, bool [N]."""
        used = torch.zeros(self.size + 2, dtype=torch.bool, device=self.draft_slot.device)
        used[self.draft_slot[in_use.long()].long().clamp_min(0)] = True
        return (self._target_slot[1 : self.size + 1] > 0) & ~used[1 : self.size + 1]

    def check(self) -> None:
        """Raise unless map, free list and owners agree. Waits for the device: for tests and an idle server."""
        owned = self._target_slot[1 : self.size + 1].cpu()
        slots = torch.arange(1, self.size + 1)
        held = slots[owned > 0]
        mapped = self.draft_slot.cpu()
        head, tail = int(self._head), int(self._tail)
        free = self._ring.cpu()[torch.arange(head, tail) % self.size]
        if not (
            torch.equal(mapped[owned[held - 1]].long(), held)
            and int((mapped > 0).sum()) == len(held)
            and torch.equal(torch.sort(torch.cat([free, held])).values, slots)
        ):
            raise RuntimeError(
                f"LVSPEC: the draft's slots do not add up: {len(held)} held, {int((mapped > 0).sum())} mapped, "
                f"{tail - head} free of {self.size}. This is an error of the plugin; please report it."
            )
