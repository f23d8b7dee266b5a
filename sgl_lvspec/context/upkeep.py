"""What keeps the draft's slots in step with SGLang's: freed with the target's slot, checked when the server is idle."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch

from sgl_lvspec import late_hooks

if TYPE_CHECKING:
    from sglang.srt.mem_cache.allocator.base import BaseTokenToKVPoolAllocator

    from sgl_lvspec.context.slots import DraftSlots
    from sgl_lvspec.context.tally import ContextTally

_FREE = "sglang.srt.mem_cache.allocator.token.TokenToKVPoolAllocator.free"
_IDLE = "sglang.srt.managers.scheduler.Scheduler.on_idle"


class Upkeep:
    """Hooks on SGLang's allocator and scheduler of this process."""

    def __init__(self, slots: DraftSlots, allocator: BaseTokenToKVPoolAllocator, tally: ContextTally) -> None:
        self._slots, self._allocator, self._tally = slots, allocator, tally
        self._is_checked = True
        late_hooks.apply(_FREE, self.before_free, "before")
        late_hooks.apply(_IDLE, self.after_on_idle, "after")

    def after_flush(self) -> None:
        """Forget everything with the target's pool."""
        self._slots.clear()
        self._is_checked = False

    def before_free(self, allocator: BaseTokenToKVPoolAllocator, free_index: torch.Tensor) -> None:
        """The target's tokens are gone: so are the draft's. SGLang may name slots again when it ends a group of
        frees; by then they hold nothing."""
        if allocator is self._allocator and free_index.numel():
            self._slots.release(free_index)
            self._is_checked = False

    def after_on_idle(self, _result: None, _scheduler: Any) -> None:
        """Check once each time that the server falls idle, beside SGLang's own check.

        Raises:
            RuntimeError: slots are lost, or held for tokens that the target has freed.
        """
        if not self._is_checked:
            self._is_checked = True
            self._check()
            self._tally.evicted = self._slots.num_evicted()
            self._tally.note_idle(self._slots.size - self._slots.available())

    def _check(self) -> None:
        self._slots.check()
        free = self._allocator.get_all_free_pages()
        if len(free.unique()) != len(free):
            raise RuntimeError(
                "LVSPEC: SGLang's list of free KV slots names a slot twice; a request may read another's."
            )
        held = int((self._slots.draft_slot[free] > 0).sum())
        if held:
            raise RuntimeError(
                f"LVSPEC: the draft holds {held} tokens that the target has freed. This is an error of the plugin; "
                "please report it."
            )
