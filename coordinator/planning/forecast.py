"""How many requests will come when a worker that is ordered now is ready. Owns level, trend and season; pure.

Requests are counted in minutes. Two ways to look ahead compete with what is seen now, the mean of two minutes:

    trend     Holt's level and slope, the slope damped (E. S. Gardner, "Exponential smoothing: the state of the art", 1985)
    season    what came one, two and three periods ago at that minute, moved half way to what comes today; the period is
              where the minutes of before correlate best with those of now

Each minute every one of them is measured by what it had said of that minute. Whoever is best is believed, if it erred by no
more than `BELIEVED` of what the plain mean erred: on a load that cannot be foreseen nothing is.
"""

from __future__ import annotations

import math
from collections import deque
from dataclasses import dataclass, field
from itertools import islice

BIN_S = 60.0
AHEAD_BINS = 2
KEPT_BINS = 2 * 24 * 60
NOW_BINS = 2
BELIEVED = 0.75
MIN_SCORED = 15
"""Minutes that a way was measured before it is believed."""
SCORE_KEEP = 0.95
LEVEL, SLOPE, DAMPING = 0.5, 0.2, 0.85
LEAST_PERIOD, PERIOD_STEP = 8, 1.04
SEARCH_EVERY = 10
SEARCH_SAMPLES = 240
LEAST_CORRELATION = 0.4
TURNED, CLEARLY = 0.1, 0.05
"""Minutes that follow each other resemble each other anyway: a season's have ceased to before. Two periods are no better
than one, unless clearly."""
CYCLES = 3


@dataclass(slots=True)
class _Way:
    """One way to look ahead: what it said of the coming minutes, and how far it was off."""

    said: deque[float | None] = field(default_factory=deque)
    error: float = 0.0
    naive_error: float = 0.0
    scored: int = 0

    def scores(self, count: float, naive: float | None) -> None:
        """The minute that it spoke of AHEAD_BINS minutes ago brought `count`; the mean had said `naive`."""
        said = self.said.popleft() if len(self.said) == AHEAD_BINS else None
        if said is None or naive is None:
            return
        self.error = SCORE_KEEP * self.error + abs(said - count)
        self.naive_error = SCORE_KEEP * self.naive_error + abs(naive - count)
        self.scored += 1

    @property
    def ratio(self) -> float:
        """Of the mean's error; infinite while too little was measured."""
        if self.scored < MIN_SCORED or self.naive_error <= 0:
            return math.inf
        return self.error / self.naive_error


class Forecast:
    """Told of every arrival."""

    def __init__(self) -> None:
        self._bins: deque[int] = deque(maxlen=KEPT_BINS)
        self._index: int | None = None
        self._count = 0
        self._level: float | None = None
        self._slope = 0.0
        self._period = 0
        self._trend, self._season = _Way(), _Way()
        self._naive: deque[float | None] = deque()

    def add(self, now_s: float, count: int = 1) -> None:
        """`count` requests came now."""
        self.look(now_s)
        self._count += count

    def look(self, now_s: float) -> None:
        """Time passes, whether anything comes or not."""
        index = int(now_s // BIN_S)
        if self._index is None:
            self._index = index
        passed = min(index - self._index, KEPT_BINS)
        for _ in range(passed):
            self._close(self._count)
            self._count = 0
        self._index = max(index, self._index)

    def ahead_per_s(self) -> float | None:
        """Requests a second in two to three minutes; None where nothing is better than the mean of the last two."""
        best = min((self._trend, self._season), key=lambda way: way.ratio)
        if best.ratio > BELIEVED or not best.said or best.said[-1] is None:
            return None
        return max(best.said[-1], 0.0) / BIN_S

    def view(self) -> dict[str, float | None]:
        """For people: what is expected, the season's length, and how the errors compare with the mean's."""
        ratios = (_shown(self._trend.ratio), _shown(self._season.ratio))
        ahead = self.ahead_per_s()
        return {
            "requests_per_s": None if ahead is None else round(ahead, 3),
            "period_s": self._period * BIN_S or None,
            "trend_error": ratios[0],
            "season_error": ratios[1],
        }

    # ---- a minute is over

    def _close(self, count: int) -> None:
        naive = self._naive.popleft() if len(self._naive) == AHEAD_BINS else None
        self._trend.scores(count, naive)
        self._season.scores(count, naive)
        self._bins.append(count)
        self._smooth(count)
        if len(self._bins) % SEARCH_EVERY == 0 or len(self._bins) == KEPT_BINS:
            self._search()
        recent = self._mean(len(self._bins), NOW_BINS)
        self._naive.append(recent)
        self._trend.said.append(self._along_trend())
        self._season.said.append(self._along_season(recent))

    def _smooth(self, count: int) -> None:
        if self._level is None:
            self._level = float(count)
            return
        before, slope = self._level, DAMPING * self._slope
        self._level = LEVEL * count + (1.0 - LEVEL) * (before + slope)
        self._slope = SLOPE * (self._level - before) + (1.0 - SLOPE) * slope

    def _along_trend(self) -> float | None:
        if self._level is None:
            return None
        return self._level + self._slope * sum(DAMPING**step for step in range(1, AHEAD_BINS + 1))

    def _along_season(self, recent: float) -> float | None:
        """None without a period."""
        if not self._period:
            return None
        end = len(self._bins)
        then = [
            self._mean(end + AHEAD_BINS + 1 - cycle * self._period, 3)
            for cycle in range(1, CYCLES + 1)
            if end - cycle * self._period >= NOW_BINS
        ]
        if not then:
            return None
        usual = self._mean(end - self._period, NOW_BINS)
        return sum(then) / len(then) + 0.5 * (recent - usual)

    def _mean(self, end: int, count: int) -> float:
        """Of the `count` minutes before `end`."""
        end = min(end, len(self._bins))
        begin = max(end - count, 0)
        return sum(self._bins[i] for i in range(begin, end)) / max(end - begin, 1)

    # ---- the season

    def _search(self) -> None:
        """The period whose minutes resemble each other most, of those that were seen twice; a few milliseconds."""
        size = len(self._bins)
        smooth = _smoothed(self._bins)
        mean = sum(smooth) / size
        around = [value - mean for value in smooth]
        best, period, lag, has_turned = LEAST_CORRELATION, 0, float(LEAST_PERIOD), False
        while lag <= size / 2:
            found = _correlation(around, round(lag))
            has_turned = has_turned or found < TURNED
            if has_turned and found > best:
                best, period = found + CLEARLY, round(lag)
            lag = max(lag * PERIOD_STEP, lag + 1)
        near = range(round(period / PERIOD_STEP), min(round(period * PERIOD_STEP), size // 2) + 1)
        self._period = max(near, key=lambda lag: _correlation(around, lag)) if period else 0


def _smoothed(bins: deque[int]) -> list[float]:
    """Means of three minutes, the ends as they are."""
    values = list(bins)
    inner = zip(values, islice(values, 1, None), islice(values, 2, None), strict=False)
    return [float(values[0]), *(sum(three) / 3 for three in inner), float(values[-1])][
        : len(values)
    ]


def _correlation(around: list[float], lag: int) -> float:
    """Of the values with those `lag` before, which must have swung: a rise alone is no season."""
    step = max((len(around) - lag) // SEARCH_SAMPLES, 1)
    pairs = [(around[i], around[i - lag]) for i in range(lag, len(around), step)]
    product = sum(a * b for a, b in pairs)
    squares = sum(a * a for a, _ in pairs) * sum(b * b for _, b in pairs)
    return product / math.sqrt(squares) if squares > 0 else 0.0


def _shown(ratio: float) -> float | None:
    return round(ratio, 3) if math.isfinite(ratio) else None
