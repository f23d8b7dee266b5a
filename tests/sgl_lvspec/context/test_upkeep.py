"""The draft's slots follow SGLang's: freed with the target's, and looked over each time that the server falls idle."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from sglang.srt.mem_cache.allocator.token import TokenToKVPoolAllocator
from sglang.srt.mem_cache.memory_pool import MHATokenToKVPool

from sgl_lvspec import late_hooks
from sgl_lvspec.context.slots import LEFT_OUT, DraftSlots
from sgl_lvspec.context.tally import ContextTally
from sgl_lvspec.context.upkeep import Upkeep

TARGETS, SIZE = 20, 10


class Allocator(TokenToKVPoolAllocator):
    """SGLang's, with the hook before `free` that the registry would put there."""

    hook: Any = None

    def __init__(self) -> None:
        kv = MHATokenToKVPool(TARGETS, 1, torch.float32, 1, 4, 1, "cpu", enable_memory_saver=False)
        super().__init__(TARGETS, torch.float32, "cpu", kv, need_sort=False)

    def free(self, free_index: torch.Tensor) -> None:
        self.hook(self, free_index)
        super().free(free_index)


class Server:
    """An allocator, the draft's slots beside it, and the hooks as `late_hooks` was told them."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        hooks: dict[tuple[str, str], Any] = {}
        monkeypatch.setattr(late_hooks, "apply", lambda target, hook, kind: hooks.update({(target, kind): hook}))
        self.allocator, self.slots, self.tally = Allocator(), DraftSlots(TARGETS + 1, SIZE, "cpu"), ContextTally()
        self.upkeep = Upkeep(self.slots, self.allocator, self.tally)
        self.allocator.hook = hooks["sglang.srt.mem_cache.allocator.token.TokenToKVPoolAllocator.free", "before"]
        self._on_idle = hooks["sglang.srt.managers.scheduler.Scheduler.on_idle", "after"]
        assert len(hooks) == 2

    def arrive(self, count: int) -> torch.Tensor:
        """Target slots of a request that the draft has read but for its last token, which was left out."""
        given = self.allocator.alloc(count)
        assert given is not None
        self.slots.take(given[:-1])
        self.slots.leave_out(given[-1:])
        return given

    def idle(self) -> None:
        self._on_idle(None, object())


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Server:
    return Server(monkeypatch)


def test_what_the_target_frees_the_draft_frees(server: Server) -> None:
    first, second = server.arrive(4), server.arrive(5)
    server.allocator.free(first)
    assert server.slots.available() == SIZE - 4
    assert server.slots.state_of(first).tolist() == [0] * 4, "also what was left out: the slot gets another token"
    assert int(server.slots.state_of(second)[-1]) == LEFT_OUT
    server.idle()
    assert server.tally.held == 4


def test_a_group_of_frees_names_every_slot_twice(server: Server) -> None:
    """The second time when the group ends; by then another request may not have it yet."""
    first, second = server.arrive(4), server.arrive(3)
    server.allocator.free_group_begin()
    server.allocator.free(first)
    server.allocator.free(second[1:])
    server.allocator.free_group_end()
    assert server.slots.available() == SIZE - 1
    server.allocator.free(torch.empty(0, dtype=torch.int64))
    server.idle()


def test_another_allocator_is_none_of_its_business(server: Server) -> None:
    """The draft's own one frees nothing, but every allocator of the process comes by."""
    held = server.arrive(4)
    other = Allocator()
    other.hook = server.allocator.hook
    other.free(held)
    assert server.slots.available() == SIZE - 3


def test_a_flush_leaves_nothing(server: Server) -> None:
    server.arrive(4)
    server.allocator.clear()
    server.upkeep.after_flush()
    assert server.slots.available() == SIZE
    server.tally.held = 99
    server.idle()
    assert server.tally.held == 0


def test_tokens_held_for_freed_slots_are_an_error(server: Server) -> None:
    held = server.arrive(4)
    server.allocator.free(held)
    server.slots.take(held[:2])
    with pytest.raises(RuntimeError, match=r"^LVSPEC: the draft holds 2 tokens that the target has freed\. "):
        server.idle()


def test_tables_that_do_not_add_up_are_an_error(server: Server) -> None:
    held = server.arrive(4)
    server.allocator.free(held[:1])
    server.slots.draft_slot[held[1]] = 0
    with pytest.raises(RuntimeError, match="do not add up"):
        server.idle()


def test_a_slot_that_sglang_frees_twice_is_named(server: Server) -> None:
    held = server.arrive(4)
    server.allocator.free(held)
    server.allocator.free(held[:1])
    with pytest.raises(RuntimeError, match="SGLang's list of free KV slots names a slot twice"):
        server.idle()


def test_an_idle_server_is_looked_over_once(server: Server) -> None:
    """SGLang calls this in a loop while nothing is to be done."""
    held = server.arrive(4)
    server.idle()
    assert server.tally.held == 0, "nothing was freed since the start"
    server.allocator.free(held[:1])
    server.idle()
    assert server.tally.held == 2
    server.slots.draft_slot[held[1]] = 0
    server.idle()
    server.allocator.free(held[2:3])
    with pytest.raises(RuntimeError, match="do not add up"):
        server.idle()
