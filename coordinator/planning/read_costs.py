"""What reading blocks from another worker costs, in seconds, by what readers measured. Owns the lines through what they told
lately, one for each source and tier; pure.

    seconds = asking + per_token · n        from the question to the last proof

Where nothing is known, or what is known is old, a token read costs a tenth of one computed. A source that was slower than
computing is tried again after a while, each time after a longer one.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass, field

PRIOR_SHARE = 0.1
"""Of a computed token's time, until readers told."""
KEPT = 16
"""Reads that a line is drawn through."""
ALIKE = 0.1
"""Lengths that spread by less than this share of their mean do not tell the question from the tokens."""
RETRY_S, MOST_RETRY_S = 30.0, 600.0
"""What was measured counts for so long; of a source that was slower than computing each time twice as long."""
DOUBTED_SHARE = 0.05
"""Of what computing takes: a source that was slower than that is waited for so long when it is tried again."""
LATE_SHARE = 0.5
"""Of what computing takes: who has given nothing in so long was waited for in vain, and has not just nothing."""


@dataclass(frozen=True, slots=True)
class ReadCost:
    """Seconds for the question, and for each token."""

    asking_s: float
    token_s: float

    def seconds(self, num_tokens: int) -> float:
        """Of a run that begins here."""
        return self.asking_s + self.token_s * num_tokens


@dataclass(slots=True)
class _Seen:
    """What was read of one source and tier: tokens and seconds. `slow` reads in a row took longer than computing."""

    reads: deque[tuple[int, float]] = field(default_factory=lambda: deque(maxlen=KEPT))
    last_s: float = 0.0
    slow: int = 0

    def line(self) -> ReadCost:
        """By least squares, neither part below zero; all by the token where lengths are alike, or chance says how a short run
        would do."""
        count = len(self.reads)
        mean_n = sum(n for n, _ in self.reads) / count
        mean_s = sum(s for _, s in self.reads) / count
        spread = sum((n - mean_n) ** 2 for n, _ in self.reads)
        if spread <= count * (ALIKE * mean_n) ** 2:
            return ReadCost(0.0, mean_s / mean_n) if mean_n else ReadCost(mean_s, 0.0)
        slope = sum((n - mean_n) * (s - mean_s) for n, s in self.reads) / spread
        slope = min(max(slope, 0.0), mean_s / mean_n if mean_n else 0.0)
        return ReadCost(max(mean_s - slope * mean_n, 0.0), slope)


class ReadCosts:
    """Asked by source and whether it reads its disk for it."""

    def __init__(self) -> None:
        self._seen: dict[tuple[str, bool], _Seen] = {}

    def told(
        self,
        source: str,
        num_tokens: int,
        seconds: float,
        now_s: float,
        *,
        from_disk: bool,
        computing_s: float,
    ) -> None:
        """A run was read; none of it (0 tokens) where no answer came in time, or nothing was proven. Computing what was
        asked for takes `computing_s`. Who let a reader wait for so long, and for nothing, is what it is now: what was read
        there quickly before is forgotten, or each of those reads would cost one more prompt its time. Who was doubted is
        slow as well when nothing came in the share of it that a reader waits then: how slow, nobody knows."""
        seen = self._seen.setdefault((source, from_disk), _Seen())
        if now_s - seen.last_s > self._counts_for_s(seen):
            seen.reads.clear()
        late_s = (DOUBTED_SHARE if seen.slow else LATE_SHARE) * computing_s
        is_vain = not num_tokens and seconds >= late_s
        if is_vain:
            seen.reads.clear()
        is_slow = is_vain or seconds > computing_s
        seen.reads.append((num_tokens, max(seconds, computing_s) if is_vain else seconds))
        seen.last_s = now_s
        seen.slow = seen.slow + 1 if is_slow else 0

    @staticmethod
    def _counts_for_s(seen: _Seen) -> float:
        return min(RETRY_S * 2.0 ** min(seen.slow, 10), MOST_RETRY_S)

    def cost(self, source: str, now_s: float, token_s: float, *, from_disk: bool) -> ReadCost:
        """What a run from there costs, a computed token being `token_s`."""
        seen = self._seen.get((source, from_disk))
        if seen is None or now_s - seen.last_s > self._counts_for_s(seen):
            return ReadCost(token_s, PRIOR_SHARE * token_s)
        return seen.line()

    def patience(self, source: str, now_s: float) -> float:
        """For what share of computing's time a reader waits for that source's answer: all of it, but where the last that
        is known is that it was slower, and that is old."""
        seen = (self._seen.get((source, from_disk)) for from_disk in (False, True))
        is_doubted = any(s and s.slow and now_s - s.last_s > self._counts_for_s(s) for s in seen)
        return DOUBTED_SHARE if is_doubted else 1.0

    def forget(self, source: str) -> None:
        """The worker is gone."""
        for from_disk in (False, True):
            self._seen.pop((source, from_disk), None)
