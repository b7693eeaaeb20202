"""The fewest workers that hold the targets. Owns the search over pool shapes; what a shape attains is told by a function.

Prefill and decode are bounded apart: the least of each with plenty of the other. From that corner the shape grows
where it is worse, until it attains the goal, and then every neighbour with fewer workers is tried. Around the best,
shapes of nearly as many workers are tried too, for the curve.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable

CURVE_REACH = 2


@dataclass(frozen=True, slots=True)
class Point:
    """What one shape attains: both targets, and each by itself."""

    prefill: int
    decode: int
    attained: float
    ttft: float
    tpot: float

    @property
    def workers(self) -> int:
        """Of both pools."""
        return self.prefill + self.decode


class Sizing:
    """Every shape is measured once; `points` are all that were."""

    def __init__(self, measure: Callable[[int, int], Point], goal: float, max_workers: int) -> None:
        self._measure = measure
        self._goal = goal
        self._most = max_workers
        self._known: dict[tuple[int, int], Point] = {}

    def at(self, prefill: int, decode: int) -> Point:
        """Of one shape."""
        key = (prefill, decode)
        if key not in self._known:
            self._known[key] = self._measure(prefill, decode)
        return self._known[key]

    @property
    def points(self) -> list[Point]:
        """Fewest workers first."""
        return sorted(self._known.values(), key=lambda p: (p.workers, p.prefill))

    def best(self) -> Point | None:
        """The cheapest shape that attains the goal, of those the better one; None within `max_workers`."""
        half = max(self._most // 2, 1)
        prefill = self._least(lambda n: self.at(n, half).ttft, self._most - half)
        decode = self._least(lambda n: self.at(max(half, prefill), n).tpot, self._most - half)
        point = self._grow(prefill, decode)
        if point is not None:
            point = self._shrink(point)
            self._look_around(point)
        good = [p for p in self._known.values() if p.attained >= self._goal]
        return min(good, key=lambda p: (p.workers, -p.attained), default=None)

    def _least(self, attained: Callable[[int], float], most: int) -> int:
        """The least number that attains the goal, `most` when none does."""
        low, high = 0, 1
        while high < most and attained(high) < self._goal:
            low, high = high, min(2 * high, most)
        while high - low > 1:
            middle = (low + high) // 2
            low, high = (low, middle) if attained(middle) >= self._goal else (middle, high)
        return max(high, 1)

    def _grow(self, prefill: int, decode: int) -> Point | None:
        while prefill + decode <= self._most:
            point = self.at(prefill, decode)
            if point.attained >= self._goal:
                return point
            if point.ttft <= point.tpot:
                prefill += 1
            else:
                decode += 1
        return None

    def _shrink(self, point: Point) -> Point:
        while True:
            steps = ((-1, 0), (0, -1), (-2, 1), (1, -2))
            shapes = [(point.prefill + p, point.decode + d) for p, d in steps]
            found = [self.at(p, d) for p, d in shapes if p >= 1 and d >= 1]
            good = [other for other in found if other.attained >= self._goal]
            if not good:
                return point
            point = max(good, key=lambda other: other.attained)

    def _look_around(self, best: Point) -> None:
        """Shapes of nearly as many workers, at nearly the same ratio."""
        for total in range(best.workers - CURVE_REACH, min(best.workers + 1, self._most) + 1):
            centre = round(best.prefill / best.workers * total)
            for prefill in (centre - 1, centre, centre + 1):
                if prefill >= 1 and total - prefill >= 1:
                    self.at(prefill, total - prefill)
