"""When requests come. Owns the schedules: all at once, Poisson and gamma at a rate, and ramps.

The gaps are drawn as `vllm bench serve` draws them (numpy's global generator, one gamma draw a request, scaled so
that the last request leaves at N / rate), so that an equal seed gives both clients the same schedule.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

import numpy as np


@dataclass(frozen=True)
class Traffic:
    """Rates in requests a second. `burstiness` is the gamma distribution's shape: 1 is Poisson, inf is even."""

    rate: float = math.inf
    burstiness: float = 1.0
    ramp: Literal["linear", "exponential"] | None = None
    ramp_start: float = 0.0
    ramp_end: float = 0.0

    def rate_at(self, index: int, total: int) -> float:
        """The rate that request `index` of `total` is drawn with."""
        progress = index / max(total - 1, 1)
        if self.ramp == "linear":
            return self.ramp_start + (self.ramp_end - self.ramp_start) * progress
        if self.ramp == "exponential":
            return float(self.ramp_start * (self.ramp_end / self.ramp_start) ** progress)
        return self.rate


def schedule(traffic: Traffic, total: int, seed: int) -> list[float]:
    """Seconds after the start at which each of `total` requests is due, never decreasing."""
    rates = np.array([traffic.rate_at(index, total) for index in range(total)])
    if math.isinf(traffic.rate) and traffic.ramp is None:
        return [0.0] * total
    due = np.cumsum(_gaps(rates, traffic.burstiness, seed))
    if traffic.ramp is None:
        due *= total / traffic.rate / due[-1]
    return [float(at_s) for at_s in due]


def _gaps(rates: np.ndarray, burstiness: float, seed: int) -> np.ndarray:
    if math.isinf(burstiness):
        return 1 / rates
    # The legacy generator, on purpose: see the module's docstring.
    draw = np.random.RandomState(seed)
    return draw.gamma(shape=burstiness, scale=1 / (rates * burstiness))
