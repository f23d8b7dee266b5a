"""What a round, or a part of it, tells about tokens that a request keeps: one entry a token in each list."""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

from lvspec_kernels.relax import BONUS

NO_TOKEN = -1  # of `choices`, beside a token that is the target's own


class TokenReport(NamedTuple):
    """Tokens of one request in their order; a list that is None was not measured, or is the same for all."""

    labels: list[int]  # as in `tally`
    relevance: list[float] | None  # visual relevance; anything for a bonus
    gaps: list[float] | None  # log p(target's likeliest) - log p(token); None: nothing was given up
    choices: list[int] | None  # the target's own token, NO_TOKEN where it is the returned one; None: everywhere

    @classmethod
    def of_target(cls, count: int) -> TokenReport:
        """Tokens that the target wrote itself."""
        return cls([BONUS] * count, None, None, None)

    def tokens(self) -> Iterator[tuple[int, float, float, int]]:
        """(label, relevance, gap, choice) of each token; NaN or NO_TOKEN where nothing was measured."""
        count = len(self.labels)
        nothing = [float("nan")] * count
        choices = [NO_TOKEN] * count if self.choices is None else self.choices
        return zip(self.labels, self.relevance or nothing, self.gaps or nothing, choices, strict=True)

    def first(self, count: int) -> TokenReport:
        """The first tokens alone."""
        return TokenReport(*(part and part[:count] for part in self))  # type: ignore[arg-type]

    def after_target_tokens(self, count: int) -> TokenReport:
        """The same behind further tokens of the target's own."""
        return TokenReport(
            [BONUS] * count + self.labels,
            self.relevance and [float("nan")] * count + self.relevance,
            self.gaps and [0.0] * count + self.gaps,
            self.choices and [NO_TOKEN] * count + self.choices,
        )
