"""Whether a draft's mismatches need more care than those that the calibration was measured on.

The rule takes a share λ of the mismatches for wording, by the care that they need. That is right as long as mismatches
are what they were: mostly wording. A draft that gets facts wrong (another checkpoint, another kind of video, a broken
one) fills them with facts, and a running quantile would follow. So half of the mismatches are expected above the
calibrated median; how many more there are is counted.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from sgl_lvspec.guard.limits import LEAST_MISMATCHES


@dataclass(slots=True)
class Drift:
    """Counts of mismatches, old ones fading.

    Attributes:
        median: care that half of the calibration's mismatches lie below; infinite without a calibration, and then
            nothing ever drifts.
        memory: mismatches after which one counts for a half; None: all count alike.
    """

    median: float
    memory: float | None = None
    seen: float = 0.0
    above: float = 0.0

    def count(self, care: float) -> None:
        """One mismatch more; NaN is none."""
        if math.isnan(care):
            return
        if self.memory is not None:
            fading = 0.5 ** (1 / self.memory)
            self.seen, self.above = self.seen * fading, self.above * fading
        self.seen += 1
        self.above += care >= self.median

    @property
    def score(self) -> float:
        """Standard deviations of a fair coin above the half; 0 while there is too little to say."""
        if self.seen < LEAST_MISMATCHES or math.isinf(self.median):
            return 0.0
        return (self.above - self.seen / 2) / (math.sqrt(self.seen) / 2)
