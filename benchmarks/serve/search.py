"""The highest rate that keeps the SLO. Owns the order of trials; sends nothing, reads no clock.

Doubles (or halves) from the first rate until it lies between one that kept the SLO and one that did not, then
bisects on a logarithmic scale: the definition is DistServe's, most requests a second with 90 % inside the SLO.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field

MAX_TRIALS = 30


@dataclass(frozen=True)
class Trial:
    """One rate in requests a second and the share of requests that were within the SLO."""

    rate: float
    attainment: float


@dataclass
class RateSearch:
    """`next_rate` until it is None; `best` then is the answer."""

    start: float
    target: float = 0.9
    precision: float = 0.05
    max_rate: float = math.inf
    min_rate: float = 1e-3
    trials: list[Trial] = field(default_factory=list)

    @property
    def best(self) -> float | None:
        """The highest rate below every failed one that kept the SLO; None when none did."""
        failed = self._lowest_failed()
        kept = [t.rate for t in self.trials if t.attainment >= self.target and t.rate < failed]
        return max(kept, default=None)

    @property
    def is_bounded(self) -> bool:
        """Whether some rate failed: without one the true answer may be higher than `best`."""
        return math.isfinite(self._lowest_failed())

    def _lowest_failed(self) -> float:
        return min((t.rate for t in self.trials if t.attainment < self.target), default=math.inf)

    def next_rate(self) -> float | None:
        """The next to try, or None when the answer is known closely enough."""
        if len(self.trials) >= MAX_TRIALS:
            return None
        if not self.trials:
            return min(self.start, self.max_rate)
        best, failed = self.best, self._lowest_failed()
        if best is None:
            return failed / 2 if failed / 2 >= self.min_rate else None
        if math.isinf(failed):
            return min(best * 2, self.max_rate) if best < self.max_rate else None
        return math.sqrt(best * failed) if failed / best > 1 + self.precision else None

    def record(self, rate: float, attainment: float) -> None:
        """What a trial showed."""
        self.trials.append(Trial(rate, attainment))
