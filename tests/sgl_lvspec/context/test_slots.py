"""The draft's slots under everything that is done with them, against a dictionary that knows the truth."""

from __future__ import annotations

from collections.abc import Callable

import hypothesis.strategies as st
import pytest
import torch
from hypothesis import settings
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from sgl_lvspec.context.slots import HOLE, LEFT_OUT, DraftSlots

TARGETS, SIZE = 30, 12  # target slots (0 is the dummy) and draft slots

target_slots = st.integers(1, TARGETS - 1)
unique_slots = st.lists(target_slots, unique=True, max_size=SIZE + 4)


def slots_of(*numbers: int) -> torch.Tensor:
    return torch.tensor(numbers, dtype=torch.int64)


class Slots(RuleBasedStateMachine):
    """`held`: draft slot by target slot; `used`: when it was last in use; the rest is left out or a hole."""

    @initialize()
    def start(self) -> None:
        self.slots = DraftSlots(TARGETS, SIZE, "cpu")
        self.held: dict[int, int] = {}
        self.used: dict[int, int] = {}
        self.left_out: set[int] = set()
        self.clock = 0

    @rule(wanted=unique_slots)
    def take(self, wanted: list[int]) -> None:
        """In the order of the tokens, until none is free; what is held stays where it is."""
        free = SIZE - len(self.held)
        before = dict(self.held)
        found = self.slots.take(slots_of(*wanted)).tolist()
        for target, draft in zip(wanted, found, strict=True):
            self.left_out.discard(target)
            if target in before:
                assert draft == before[target]
            elif free:
                free -= 1
                assert 1 <= draft <= SIZE
                assert draft not in self.held.values()
                self.held[target] = draft
            else:
                assert draft == 0
            if draft:
                self.used[target] = self.clock

    @rule(freed=st.lists(target_slots, max_size=20))
    def release(self, freed: list[int]) -> None:
        """A slot may be named twice, and when nothing is held for it."""
        self.slots.release(slots_of(*freed))
        self._forget(set(freed))

    @rule(dropped=unique_slots)
    def leave_out(self, dropped: list[int]) -> None:
        dropped = [target for target in dropped if target not in self.held]
        self.slots.leave_out(slots_of(*dropped))
        self.left_out |= set(dropped)

    @rule(seen=unique_slots)
    def touch(self, seen: list[int]) -> None:
        self.clock += 1
        self.slots.touch(slots_of(*seen))
        self.used |= {target: self.clock for target in seen if target in self.held}

    @precondition(lambda self: self.held)
    @rule(count=st.integers(0, SIZE + 3), in_use=st.lists(target_slots, max_size=6))
    def evict(self, count: int, in_use: list[int]) -> None:
        """Any of those equally long unused, but never one in use, nor one used later than another that stays."""
        may_go = set(self.held) - set(in_use)
        self.slots.evict(count, slots_of(*in_use))
        left = {target for target in self.held if int(self.slots.draft_slot[target]) == HOLE}
        assert left <= may_go
        assert len(left) == min(count, len(may_go))
        if left and may_go - left:
            assert max(self.used[target] for target in left) <= min(self.used[target] for target in may_go - left)
        self._forget(left)

    @rule()
    def clear(self) -> None:
        self.slots.clear()
        self._forget(set(range(TARGETS)))

    def _forget(self, targets: set[int]) -> None:
        self.held = {target: draft for target, draft in self.held.items() if target not in targets}
        self.left_out -= targets

    @invariant()
    def map_and_count_are_the_models(self) -> None:
        expected = [self.held.get(target, LEFT_OUT if target in self.left_out else HOLE) for target in range(TARGETS)]
        assert self.slots.draft_slot.tolist() == expected
        assert self.slots.state_of(torch.arange(TARGETS, dtype=torch.int32)).tolist() == expected
        free = SIZE - len(self.held)
        assert self.slots.at_least <= free
        assert self.slots.available() == self.slots.at_least == free
        self.slots.check()


TestSlots = Slots.TestCase
TestSlots.settings = settings(max_examples=80, stateful_step_count=25, deadline=None)


def test_the_dummy_slot_of_the_target_never_gets_one() -> None:
    """Padded rows point there."""
    slots = DraftSlots(TARGETS, SIZE, "cpu")
    assert slots.take(slots_of(0, 5)).tolist()[0] == 0
    assert slots.available() == SIZE - 1
    slots.release(slots_of(0, 0))
    slots.check()


def test_slots_are_those_of_their_table_whatever_int_names_them() -> None:
    """Rows of SGLang's table are int32, its allocator's slots int64."""
    slots = DraftSlots(TARGETS, SIZE, "cpu")
    rows = torch.tensor([3, 4], dtype=torch.int32)
    held = slots.take(rows)
    assert held.dtype == torch.int64
    slots.touch(rows)
    assert torch.equal(slots.take(rows.long()), held)
    slots.release(rows)
    slots.leave_out(rows)
    assert slots.state_of(rows).tolist() == [LEFT_OUT, LEFT_OUT]
    assert slots.draft_slot.dtype == torch.int32, "what the kernel of rows reads"


def test_eviction_without_anything_to_evict_is_none() -> None:
    slots = DraftSlots(TARGETS, SIZE, "cpu")
    slots.evict(3, slots_of())
    slots.take(slots_of(1, 2))
    slots.evict(3, slots_of(1, 2))
    assert slots.available() == SIZE - 2
    slots.check()


def _lose_a_free_slot(slots: DraftSlots) -> None:
    slots._head += 1


def _free_a_held_slot(slots: DraftSlots) -> None:
    slots._ring[int(slots._tail) % SIZE] = slots.draft_slot[4].long()
    slots._tail += 1


def _list_a_free_slot_twice(slots: DraftSlots) -> None:
    slots._ring[int(slots._head)] = slots._ring[int(slots._head) + 1]


def _forget_a_token(slots: DraftSlots) -> None:
    slots.draft_slot[4] = HOLE


def _exchange_two_tokens(slots: DraftSlots) -> None:
    slots.draft_slot[[4, 7]] = slots.draft_slot[[7, 4]]


def _map_two_tokens_to_one(slots: DraftSlots) -> None:
    slots.draft_slot[9] = slots.draft_slot[4]


def _forget_an_owner(slots: DraftSlots) -> None:
    slots._target_slot[int(slots.draft_slot[7])] = 0


@pytest.mark.parametrize(
    "corrupt",
    [
        _lose_a_free_slot,
        _free_a_held_slot,
        _list_a_free_slot_twice,
        _forget_a_token,
        _exchange_two_tokens,
        _map_two_tokens_to_one,
        _forget_an_owner,
    ],
)
def test_tables_that_do_not_add_up_are_noticed(corrupt: Callable[[DraftSlots], None]) -> None:
    slots = DraftSlots(TARGETS, SIZE, "cpu")
    slots.take(slots_of(4, 7, 11))
    slots.check()
    corrupt(slots)
    with pytest.raises(RuntimeError, match=r"^LVSPEC: the draft's slots do not add up: .* free of 12\. .*report it\.$"):
        slots.check()


def test_a_slot_that_is_named_twice_is_given_back_once() -> None:
    slots = DraftSlots(TARGETS, SIZE, "cpu")
    slots.take(slots_of(3, 4))
    slots.release(slots_of(3, 9, 3, 3))
    assert slots.available() == SIZE - 1
    slots.check()
