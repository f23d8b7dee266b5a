"""What loose verification is measured against: chance, probability, entropy, FLy. Not part of the plugin.

Each looks at the mismatches of a round and says which of them to accept. Tokens that the server's rule protects are
protected here too, so that arms differ in their decision alone; none has a budget.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence

import torch

from bench.fidelity.engine import LIMIT, K, Round
from bench.fidelity.server_rule import Seen, look
from lvspec_kernels.relax import BONUS, FILLER, MATCH, NOT_COMMITTED

ENTROPY = 0.3  # nats, FLy's threshold
WINDOW = 6  # FLy's win_len: the mismatch and five matches behind it

# Which drafts may be accepted although they mismatch: (round, what the target thinks, matches bool [B, K]) -> [B, K].
Loosen = Callable[[Round, Seen, torch.Tensor], torch.Tensor]


class Baseline:
    """Decides rounds by a function of the mismatches."""

    def __init__(self, loosen: Loosen, is_ordinary: torch.Tensor) -> None:
        """`is_ordinary` bool [V] says which tokens are not protected."""
        self._loosen, self._is_ordinary = loosen, is_ordinary

    def __call__(self, seen: Round) -> tuple[torch.Tensor, torch.Tensor]:
        """Labels and tokens, as `engine.Decide` wants them."""
        drafted, wanted = seen.draft_token[:, 1:], seen.choice[:, :-1]
        is_match = drafted == wanted
        is_loose = self._loosen(seen, look(seen), is_match) & ~is_match
        is_loose &= self._is_ordinary[drafted] & self._is_ordinary[wanted]
        return committed(seen, is_match, is_loose)


def committed(seen: Round, is_match: torch.Tensor, is_loose: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """The leading run of accepted drafts and the target's token behind it: labels and tokens [B, D]."""
    accepted = (is_match | is_loose).long().cumprod(1).sum(1, keepdim=True)
    node = torch.arange(K + 1)
    reason = torch.nn.functional.pad(torch.where(is_loose, FILLER, MATCH), (0, 1))
    labels = torch.where(node < accepted, reason, torch.where(node == accepted, BONUS, NOT_COMMITTED))
    return labels, torch.where(node < accepted, seen.draft_token.roll(-1, 1), seen.choice)


def strict(_seen: Round, _numbers: Seen, is_match: torch.Tensor) -> torch.Tensor:
    """Nothing but matches."""
    return torch.zeros_like(is_match)


def by_chance(share: float, clips: Sequence[int], seed: int) -> Loosen:
    """Random relaxation: each mismatch with probability `share`.

    A clip's draws depend on `seed` and its number alone, not on what else is in its batch.
    """
    draws = torch.stack(
        [torch.rand(LIMIT, K, generator=torch.Generator().manual_seed(seed * 1_000_003 + clip)) for clip in clips]
    )
    rounds = itertools.count()

    def loosen(seen: Round, _numbers: Seen, _is_match: torch.Tensor) -> torch.Tensor:
        return draws[seen.rows, next(rounds)] < share

    return loosen


def by_probability(threshold: float) -> Loosen:
    """Typical acceptance: a token that the target gives at least this log-probability."""

    def loosen(_seen: Round, numbers: Seen, _is_match: torch.Tensor) -> torch.Tensor:
        return numbers.logprob[:, :-1] >= threshold

    return loosen


def by_entropy(threshold: float = ENTROPY) -> Loosen:
    """FLy without its window (`abla_no_window`; LVSpec calls it FLy+): wherever the target is not sure."""

    def loosen(_seen: Round, numbers: Seen, _is_match: torch.Tensor) -> torch.Tensor:
        return numbers.entropy[:, :-1] >= threshold

    return loosen


def fly(window: int = WINDOW, threshold: float = ENTROPY) -> Loosen:
    """FLy (arXiv 2511.22972) as released: the target is not sure, and the next `window` - 1 drafts match.

    Matches are those before anything is loosened, and the last `window` drafts are never loosened.
    """

    def loosen(_seen: Round, numbers: Seen, is_match: torch.Tensor) -> torch.Tensor:
        is_followed = torch.zeros_like(is_match)
        for position in range(K - window):
            is_followed[:, position] = is_match[:, position + 1 : position + window].all(1)
        return is_followed & (numbers.entropy[:, :-1] >= threshold)

    return loosen
