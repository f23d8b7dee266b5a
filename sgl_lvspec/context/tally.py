"""What the draft read and what it did without, counted since the server started."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(slots=True)
class ContextTally:
    """Counts of tokens unless said otherwise.

    Attributes:
        read_text, read_visual: read by the draft.
        left_out: visual tokens that a policy left out.
        evicted: forgotten because the draft's pool was full.
        fallbacks: choices (of a medium) that were made evenly, because the target had nothing to tell the policy.
        unread_prompts: prompts that found no room in the pool.
        unseen_media: media whose pixels were gone.
        seconds: spent reading, on the host's clock.
    """

    read_text: int = 0
    read_visual: int = 0
    left_out: int = 0
    evicted: int = 0
    fallbacks: int = 0
    unread_prompts: int = 0
    unseen_media: int = 0
    seconds: float = 0.0
