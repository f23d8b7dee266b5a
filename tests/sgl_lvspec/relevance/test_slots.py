"""The tables by slot under everything that SGLang does with slots, against a dictionary that knows the truth."""

from __future__ import annotations

import hypothesis.strategies as st
import pytest
import torch
from hypothesis import settings
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule
from sglang.srt.managers.schedule_batch import MM_PAD_SHIFT_VALUE, Modality, MultimodalDataItem
from sglang.srt.mem_cache.allocator.paged import PagedTokenToKVPoolAllocator
from sglang.srt.mem_cache.allocator.token import TokenToKVPoolAllocator
from sglang.srt.mem_cache.memory_pool import MHATokenToKVPool

from sgl_lvspec.relevance.slots import SlotTables, find_stale

VISUAL = MM_PAD_SHIFT_VALUE + 12_345  # SGLang's id of a visual token: the shift plus its item's hash
NUM_SLOTS, NUM_ROWS, CONTEXT, WIDTH = 60, 5, 40, 4


def test_ids_from_sglangs_shift_on_are_visual() -> None:
    tables = SlotTables(10, "cpu")
    ids = torch.tensor([0, MM_PAD_SHIFT_VALUE - 1, MM_PAD_SHIFT_VALUE, 2**62])
    tables.mark_prompt(ids, torch.tensor([7, 3, 9, 1], dtype=torch.int32))
    assert torch.nonzero(tables.is_visual).flatten().tolist() == [1, 9]


def test_every_written_row_is_rewritten_whatever_stood_there() -> None:
    tables = SlotTables(10, "cpu")
    tables.is_visual.fill_(True)
    tables.mark_prompt(torch.tensor([5, VISUAL, 6]), torch.tensor([1, 2, 3]))
    tables.mark_drafted(torch.tensor([4, 5]))
    assert torch.nonzero(~tables.is_visual).flatten().tolist() == [1, 3, 4, 5]


def test_an_empty_batch_writes_nothing() -> None:
    tables = SlotTables(10, "cpu")
    tables.is_visual.fill_(True)
    tables.mark_prompt(torch.zeros(0, dtype=torch.int64), torch.zeros(0, dtype=torch.int64))
    tables.mark_drafted(torch.zeros(0, dtype=torch.int64))
    assert tables.is_visual.all()


@pytest.mark.parametrize("page_size", [1, 16])
def test_the_tables_have_a_row_for_every_slot_of_the_pool(page_size: int) -> None:
    """The allocator hands out slots to the last row of the pool; an index beyond the tables would raise."""
    pool = MHATokenToKVPool(64, page_size, torch.float32, 1, 4, 1, "cpu", enable_memory_saver=False)
    if page_size == 1:
        allocator = TokenToKVPoolAllocator(64, torch.float32, "cpu", pool, need_sort=False)
    else:
        allocator = PagedTokenToKVPoolAllocator(64, page_size, torch.float32, "cpu", pool, need_sort=False)
    tables = SlotTables.beside(allocator, state_width=8)
    assert len(tables.is_visual) == len(pool.get_key_buffer(0))
    every = allocator.alloc(64)
    assert 0 not in every, "slot 0 is the dummy"
    tables.mark_prompt(torch.full((64,), VISUAL), every)
    assert int(tables.is_visual.sum()) == 64
    assert tables.visual_state is not None
    assert tables.visual_state.shape == (len(tables.is_visual), 8)
    assert tables.visual_state.dtype == torch.float32


def test_states_are_kept_only_for_the_scorer_that_reads_them() -> None:
    assert SlotTables(10, "cpu").visual_state is None


def test_a_flush_leaves_no_visual_slot() -> None:
    tables = SlotTables(10, "cpu")
    tables.is_visual.fill_(True)
    tables.clear()
    assert not tables.is_visual.any()


def test_find_stale_names_each_wrong_position_and_reads_nothing_behind_the_context() -> None:
    is_visual = torch.zeros(20, dtype=torch.bool)
    is_visual[[11, 13, 16]] = True
    table = torch.zeros(2, 8, dtype=torch.int32)
    table[1] = torch.arange(10, 18)
    item = MultimodalDataItem(modality=Modality.VIDEO, hash=1, offsets=[(1, 2)])
    assert find_stale(is_visual, table, row=1, length=6, offsets=item.offsets or []) == [2, 3]
    assert find_stale(is_visual, table, row=1, length=7, offsets=[(1, 1), (3, 3), (6, 6)]) == []


class Slots(RuleBasedStateMachine):
    """SGLang as the tables see it: requests take, share, give back and rewrite slots, the chunk borders lie anywhere.

    `truth` is what a slot's present content is; the tables start all True, so a row that is not written shows.
    """

    @initialize()
    def start(self) -> None:
        self.tables = SlotTables(NUM_SLOTS, "cpu", WIDTH)
        self.tables.is_visual.fill_(True)  # what earlier owners left behind
        self.table = torch.zeros(NUM_ROWS, CONTEXT, dtype=torch.int32)
        self.free = list(range(1, NUM_SLOTS))
        self.ids: dict[int, list[int]] = {}  # row: ids of its whole prompt and answer
        self.done: dict[int, int] = {}  # row: how much of that has been computed
        self.cached: list[tuple[list[int], list[int]]] = []  # the radix tree: (ids, their slots)
        self.drafted: dict[int, list[int]] = {}  # row: slots behind its context that verify wrote

    def slots_of(self, row: int, first: int, last: int) -> list[int]:
        return self.table[row, first:last].tolist()

    @rule(parts=st.lists(st.tuples(st.booleans(), st.integers(1, 6)), min_size=1, max_size=4), data=st.data())
    def arrive(self, parts: list[tuple[bool, int]], data: st.DataObject) -> None:
        """A prompt of text and videos; it may begin with a cached one, whose slots it then shares."""
        rows = sorted(set(range(1, NUM_ROWS)) - set(self.ids))
        ids = [VISUAL if is_visual else 7 for is_visual, count in parts for _ in range(count)]
        shared: list[int] = []
        if self.cached and data.draw(st.booleans()):
            prefix, slots = data.draw(st.sampled_from(self.cached))
            cut = data.draw(st.integers(0, len(prefix)))
            ids, shared = prefix[:cut] + ids, slots[:cut]
        need = len(ids) - len(shared)
        if not rows or len(ids) > CONTEXT - 10 or need > len(self.free):
            return
        self.ids[rows[0]], self.done[rows[0]] = ids, len(shared)
        new, self.free = self.free[:need], self.free[need:]
        self.table[rows[0], : len(ids)] = torch.tensor(shared + new, dtype=torch.int32)

    @precondition(lambda self: any(self.done[row] < len(self.ids[row]) for row in self.ids))
    @rule(data=st.data())
    def prefill(self, data: st.DataObject) -> None:
        """A chunk of one or more prompts, in one batch."""
        waiting = [row for row in self.ids if self.done[row] < len(self.ids[row])]
        rows = data.draw(st.lists(st.sampled_from(waiting), min_size=1, unique=True))
        ids, slots = [], []
        for row in rows:
            first = self.done[row]
            last = data.draw(st.integers(first + 1, len(self.ids[row])))
            ids += self.ids[row][first:last]
            slots += self.slots_of(row, first, last)
            self.done[row] = last
        self.tables.mark_prompt(torch.tensor(ids), torch.tensor(slots))

    @precondition(lambda self: any(self.done[row] == len(self.ids[row]) for row in self.ids))
    @rule(data=st.data(), width=st.integers(1, 4))
    def verify(self, data: st.DataObject, width: int) -> None:
        """A round: `width` slots are written behind the context, a part of them is committed."""
        running = [row for row in self.ids if self.done[row] == len(self.ids[row])]
        rows = data.draw(st.lists(st.sampled_from(running), min_size=1, unique=True))
        rows = [row for row in rows if self.done[row] + width <= CONTEXT]
        written = []
        for row in rows:
            reserved = self.drafted.get(row, [])
            while len(reserved) < width and self.free:
                reserved = [*reserved, self.free.pop(0)]
            if len(reserved) < width:
                self.drafted[row] = reserved
                continue
            written += reserved[:width]
            count = data.draw(st.integers(1, width))
            self.table[row, self.done[row] : self.done[row] + count] = torch.tensor(reserved[:count], dtype=torch.int32)
            self.ids[row] = self.ids[row] + [7] * count
            self.done[row] += count
            self.drafted[row] = reserved[count:]
        self.tables.mark_drafted(torch.tensor(written, dtype=torch.int64))

    @precondition(lambda self: bool(self.ids))
    @rule(data=st.data(), keeps=st.booleans())
    def leave(self, data: st.DataObject, keeps: bool) -> None:
        """A request ends, is aborted or retracted: its slots go to the radix tree, or straight back."""
        row = data.draw(st.sampled_from(sorted(self.ids)))
        slots = self.slots_of(row, 0, len(self.ids[row]))
        if keeps:
            self.cached.append((self.ids[row][: self.done[row]], slots[: self.done[row]]))
        del self.ids[row], self.done[row]
        self.drafted.pop(row, None)
        self._reclaim(data)

    @precondition(lambda self: bool(self.cached))
    @rule(data=st.data())
    def evict(self, data: st.DataObject) -> None:
        self.cached.remove(data.draw(st.sampled_from(self.cached)))
        self._reclaim(data)

    def _reclaim(self, data: st.DataObject) -> None:
        """Slots that nobody holds are free again, in any order."""
        held = {slot for _, slots in self.cached for slot in slots}
        held |= {slot for row, ids in self.ids.items() for slot in self.slots_of(row, 0, len(ids))}
        held |= {slot for slots in self.drafted.values() for slot in slots}
        self.free = data.draw(st.permutations(sorted(set(range(1, NUM_SLOTS)) - held)))

    @precondition(lambda self: not self.ids)
    @rule()
    def flush(self) -> None:
        self.cached, self.free = [], list(range(1, NUM_SLOTS))
        self.tables.clear()
        assert not self.tables.is_visual.any()
        self.tables.is_visual.fill_(True)

    @invariant()
    def every_context_reads_its_own_truth(self) -> None:
        for row, ids in self.ids.items():
            seen = ids[: self.done[row]]
            offsets = [(position, position) for position, token in enumerate(seen) if token == VISUAL]
            assert find_stale(self.tables.is_visual, self.table, row, len(seen), offsets) == []


TestSlots = Slots.TestCase
TestSlots.settings = settings(max_examples=60, stateful_step_count=30, deadline=None)
