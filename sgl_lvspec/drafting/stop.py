"""When a chain is long enough: each further token costs a forward of the draft, and counts only if all before it do.

The chance that a drafted token is accepted is read off the draft itself: its probability p of the word that it says is
about the chance that the target says the same (a match), and of the rest the rule lets a share λ through as wording:

    reach_i = Π_(j <= i) (p_j + (1 - p_j) λ)          of one request
    go on while reach_i of a loose request, or the mean of the strict ones, is at least `stop`

What a strict request is answered does not depend on where its chains end, so the strict requests of a batch share a
decision. A loose one keeps what it is offered, so its own chain ends by its own reach, whoever is beside it: tokens
that were drafted behind it for others are none of its own.

Stopping by the draft's own confidence: Draft & Verify (arXiv 2309.08169, section 3.3), which looks at the last p alone.
By the cost model, with c draft forwards in one of the target and a round that costs R target forwards and commits N
tokens, one forward more pays while the chance is above N / (c R): 0.2 to 0.4 for c from 5 to 10. Drafts are surer than
they are right (the demo pair's says .5 where it is right in .3), so bounds on p itself lie higher; see
`bench.speed.chains` for what each wins.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch


class EarlyStop:
    """Follows the chains of one round. Reads numbers on the host after each step, so it is for CPUs.

    Args:
        stop: bound on the reach, from 0 (chains run to K) to 1.
        leniency: float32 [B], λ of each request; 0: strict.
        may_accept: bool [B], False: the request commits no draft whatever it is. None: all may.
        agree: makes a tensor that of the first rank, in place; ranks that round otherwise must not part here.
    """

    def __init__(
        self,
        stop: float,
        leniency: torch.Tensor,
        may_accept: torch.Tensor | None = None,
        agree: Callable[[torch.Tensor], Any] | None = None,
    ) -> None:
        self._stop, self._leniency, self._agree = stop, leniency, agree
        self._is_loose = leniency > 0
        self._shares = ~self._is_loose if may_accept is None else ~self._is_loose & may_accept
        self._reach = [torch.ones_like(leniency)]  # before the first token, and after each

    def agree_on(self, tokens: torch.Tensor) -> None:
        """Make the tokens just drafted, int64 [B], those of the first rank: a step of which each rank reads another
        token draws nobody's."""
        if self._agree is not None:
            self._agree(tokens)

    def is_reached(self, logits: torch.Tensor) -> bool:
        """Whether the chains end with the tokens just drafted: the likeliest of the draft's logits float [B, V]."""
        if self._stop <= 0.0:
            return False
        confidence = (logits.amax(dim=-1) - logits.logsumexp(dim=-1)).float().exp()
        if self._agree is not None:
            self._agree(confidence)
        reach = _reach(self._reach[-1], confidence, self._leniency)
        self._reach.append(reach)
        if bool((reach[self._is_loose] >= self._stop).any()):
            return False
        sharing = reach[self._shares]
        return not len(sharing) or float(sharing.mean()) < self._stop

    def own_lengths(self) -> torch.Tensor | None:
        """How many tokens of its chain each loose request is offered, int64 [B] (a strict one: all); None: all, all."""
        longest = len(self._reach) - 1
        if not longest or not self._is_loose.any():
            return None
        lengths = torch.where(self._is_loose, _lengths(self._reach[1:], self._stop), longest)
        return lengths if bool((lengths < longest).any()) else None


def own_lengths(confidence: torch.Tensor, leniency: torch.Tensor, stop: float) -> torch.Tensor:
    """Where chains end by themselves: int64 [B], from 1 to k, of the draft's probabilities float32 [B, k] and λ [B]."""
    reach, before = [], torch.ones(len(confidence))
    for each in confidence.unbind(dim=1):
        before = _reach(before, each, leniency)
        reach.append(before)
    return _lengths(reach, stop)


def _reach(before: torch.Tensor, confidence: torch.Tensor, leniency: torch.Tensor) -> torch.Tensor:
    """Reach [B] with one token more."""
    return before * (confidence + (1.0 - confidence) * leniency)


def _lengths(reach: list[torch.Tensor], stop: float) -> torch.Tensor:
    """Up to and with the first token whose reach is below `stop`; all where there is none."""
    is_above = torch.stack(reach, dim=1) >= stop
    return (is_above.long().cumprod(dim=1).sum(dim=1) + 1).clamp_max(len(reach))
