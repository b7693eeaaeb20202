"""The highest rate that keeps the SLO. Owns the order of trials; sends nothing, reads no clock.

Doubles (or halves) from the first rate until it lies between one that kept the SLO and one that did not, then
bisects on a logarithmic scale: the definition is DistServe's, most requests a second with 90 % inside the SLO.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field

MAX_TRIALS, MAX_UNRELIABLE = 30, 3


@dataclass(frozen=True)
class Trial:
    """One rate in requests a second and the share of requests that were within the SLO; not `reliable` where the
    client was the bottleneck: what it attained says nothing of the server."""

    rate: float
    attainment: float
    reliable: bool = True


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
        return max((t.rate for t in self.trials if self._kept(t) and t.rate < failed), default=None)

    @property
    def is_bounded(self) -> bool:
        """Whether the server failed at some rate: without one the true answer may be higher than `best`."""
        return any(t.reliable and not self._kept(t) for t in self.trials)

    def _kept(self, trial: Trial) -> bool:
        return trial.reliable and trial.attainment >= self.target

    def _lowest_failed(self) -> float:
        return min((t.rate for t in self.trials if not self._kept(t)), default=math.inf)

    def next_rate(self) -> float | None:
        """The next to try, or None when the answer is known closely enough."""
        unreliable = sum(not trial.reliable for trial in self.trials)
        if len(self.trials) >= MAX_TRIALS or unreliable >= MAX_UNRELIABLE:
            return None
        if not self.trials:
            return min(self.start, self.max_rate)
        best, failed = self.best, self._lowest_failed()
        if best is None:
            return failed / 2 if failed / 2 >= self.min_rate else None
        if math.isinf(failed):
            return min(best * 2, self.max_rate) if best < self.max_rate else None
        return math.sqrt(best * failed) if failed / best > 1 + self.precision else None

    def record(self, rate: float, attainment: float, *, reliable: bool = True) -> None:
        """What a trial showed."""
        self.trials.append(Trial(rate, attainment, reliable))
