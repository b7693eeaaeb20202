"""Distributions of what was seen lately, in bounded memory. Owns the buckets and the forgetting; pure.

Values fall into buckets that grow by 5 %, so a quantile is within 2.5 % of the true one however wide the
range is; that is the log-bucketed sketch of Masson et al., "DDSketch" (VLDB 2019), with its guarantee. Old
values leave in slices: a window is the slices that began within it.
"""

from __future__ import annotations

import itertools
import math
from collections import deque
from dataclasses import dataclass, field

GROWTH = 1.05
_LOG_GROWTH = math.log(GROWTH)
_ZERO = -(1 << 30)


@dataclass(frozen=True, slots=True)
class Distribution:
    """Values in rising order and their shares, which sum to 1; empty when nothing is known."""

    values: tuple[float, ...] = ()
    shares: tuple[float, ...] = ()
    count: float = 0.0

    @property
    def mean(self) -> float:
        """0 when empty."""
        return sum(v * s for v, s in zip(self.values, self.shares, strict=True))

    @property
    def scv(self) -> float:
        """Squared coefficient of variation: 0 for a constant, 1 for an exponential."""
        mean = self.mean
        if mean <= 0:
            return 0.0
        second = sum(v * v * s for v, s in zip(self.values, self.shares, strict=True))
        return max(second / (mean * mean) - 1.0, 0.0)

    def quantile(self, share: float) -> float:
        """The least value that `share` of all do not exceed; 0 when empty."""
        total = 0.0
        for value, part in zip(self.values, self.shares, strict=True):
            total += part
            if total >= share - 1e-12:
                return value
        return self.values[-1] if self.values else 0.0

    def share_within(self, limit: float) -> float:
        """How much of it is at most `limit`; 1 when empty."""
        if not self.values:
            return 1.0
        return sum(s for v, s in zip(self.values, self.shares, strict=True) if v <= limit)

    def scaled(self, factor: float) -> Distribution:
        """Every value times `factor`."""
        return Distribution(tuple(v * factor for v in self.values), self.shares, self.count)


def distribution(values: list[float]) -> Distribution:
    """Of plain values."""
    sketch = Sketch()
    for value in values:
        sketch.add(value)
    return sketch.distribution()


@dataclass(slots=True)
class Sketch:
    """Counts by bucket. Each bucket also keeps its sum, so that means are exact."""

    counts: dict[int, float] = field(default_factory=dict)
    sums: dict[int, float] = field(default_factory=dict)

    def add(self, value: float, weight: float = 1.0) -> None:
        """Values at or below zero share one bucket."""
        index = _ZERO if value <= 0 else math.floor(math.log(value) / _LOG_GROWTH)
        self.counts[index] = self.counts.get(index, 0.0) + weight
        self.sums[index] = self.sums.get(index, 0.0) + weight * max(value, 0.0)

    def merge(self, other: Sketch) -> None:
        """Add all of `other`."""
        for index, count in other.counts.items():
            self.counts[index] = self.counts.get(index, 0.0) + count
            self.sums[index] = self.sums.get(index, 0.0) + other.sums[index]

    def distribution(self) -> Distribution:
        """What is in it, one value a bucket: the bucket's mean."""
        total = sum(self.counts.values())
        if total <= 0:
            return Distribution()
        order = sorted(self.counts)
        return Distribution(
            tuple(self.sums[i] / self.counts[i] for i in order),
            tuple(self.counts[i] / total for i in order),
            total,
        )


class SlidingSketch:
    """The last `kept_s` seconds in slices of `slice_s`; memory does not grow with the number of values."""

    def __init__(self, kept_s: float, slice_s: float) -> None:
        self._kept_s, self._slice_s = kept_s, slice_s
        self._slices: deque[tuple[float, Sketch]] = deque()

    def add(self, now_s: float, value: float, weight: float = 1.0) -> None:
        """A value seen now."""
        start_s = math.floor(now_s / self._slice_s) * self._slice_s
        if not self._slices or self._slices[-1][0] != start_s:
            self._slices.append((start_s, Sketch()))
            while self._slices[0][0] < now_s - self._kept_s:
                self._slices.popleft()
        self._slices[-1][1].add(value, weight)

    def over(self, now_s: float, window_s: float) -> Distribution:
        """Of slices that began within the last `window_s` seconds."""
        merged = Sketch()
        for start_s, sketch in self._slices:
            if start_s >= now_s - window_s:
                merged.merge(sketch)
        return merged.distribution()


class Arrivals:
    """How many came in each of the last seconds: rates over windows, and how bursty they are."""

    def __init__(self, kept_s: float = 600.0, bin_s: float = 5.0) -> None:
        self._bin_s = bin_s
        self._bins: deque[tuple[int, int]] = deque(maxlen=int(kept_s / bin_s) + 1)
        self._since_s: float | None = None

    def add(self, now_s: float, count: int = 1) -> None:
        """`count` requests came now."""
        self._since_s = now_s if self._since_s is None else self._since_s
        index = int(now_s // self._bin_s)
        if self._bins and self._bins[-1][0] == index:
            index, before = self._bins.pop()
            count += before
        self._bins.append((index, count))

    def in_window(self, now_s: float, window_s: float) -> tuple[int, float]:
        """Requests within the last `window_s` seconds, and the seconds that were looked at: whole
        bins, never before the first arrival."""
        first = math.ceil((now_s - window_s) / self._bin_s - 1e-9)
        if self._since_s is not None:
            first = max(first, int(self._since_s // self._bin_s))
        count = sum(n for index, n in self._bins if index >= first)
        return count, max(now_s - first * self._bin_s, self._bin_s)

    def rate(self, now_s: float, window_s: float) -> float:
        """Requests a second."""
        count, seconds = self.in_window(now_s, window_s)
        return count / seconds

    def dispersion(self, now_s: float, window_s: float) -> float:
        """Variance over mean of the counts of a bin: 1 for Poisson, 0 for a metronome, more for bursts.

        Taken from differences of neighbours, so that a slow rise of the rate does not count as bursts."""
        last = int(now_s // self._bin_s) - 1
        first = max(math.ceil((now_s - window_s) / self._bin_s), last - len(self._bins))
        if self._since_s is not None:
            first = max(first, int(self._since_s // self._bin_s) + 1)
        counts = dict(self._bins)
        series = [counts.get(index, 0) for index in range(first, last + 1)]
        mean = sum(series) / len(series) if series else 0.0
        if len(series) < 6 or mean <= 0:
            return 1.0
        pairs = itertools.pairwise(series)
        variance = sum((b - a) ** 2 for a, b in pairs) / (2 * (len(series) - 1))
        return min(max(variance / mean, 0.25), 16.0)
