"""The last two minutes, second by second. Owns what the live page and `baton status` plot; pure, told of time by a clock.

A second counts when it is over: the one that is running would show as a dip.
"""

from __future__ import annotations

import statistics
from collections import deque
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Iterable

    from protocol.clock import Clock

KEPT_S = 120
SUMMARY_S = 10
MAX_FIRST_TOKENS = 1000
"""First tokens of one second that are kept; a median needs no more."""


@dataclass(slots=True)
class _Second:
    at: int
    output_tokens: int = 0
    prompt_tokens: int = 0
    ttfts_s: list[float] = field(default_factory=list)
    gaps_s: float = 0.0
    gap_tokens: int = 0


class RecentActivity:
    """What happened in each of the last `KEPT_S` seconds; memory does not grow with load."""

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._seconds: deque[_Second] = deque(maxlen=KEPT_S + 1)

    def _now(self) -> _Second:
        at = int(self._clock.now_s())
        if not self._seconds or self._seconds[-1].at != at:
            self._seconds.append(_Second(at))
        return self._seconds[-1]

    def started(self, num_prompt_tokens: int) -> None:
        """A request was admitted."""
        self._now().prompt_tokens += num_prompt_tokens

    def first_token(self, seconds: float) -> None:
        """A choice has its first token, so long after the request came."""
        second = self._now()
        if len(second.ttfts_s) < MAX_FIRST_TOKENS:
            second.ttfts_s.append(seconds)

    def inter_token(self, seconds: float, num_tokens: int) -> None:
        """`num_tokens` more came, all of them this long after the one before."""
        second = self._now()
        second.gaps_s += seconds
        second.gap_tokens += num_tokens

    def generated(self, num_tokens: int) -> None:
        """Tokens came."""
        self._now().output_tokens += num_tokens

    def view(self) -> dict[str, Any]:
        """`recent` of `GET /cluster`: lists with one entry a second, oldest first, and a summary of the last ten.

        A second without a first token has `ttft_ms` null, one without a second token `tpot_ms` null.
        """
        now = int(self._clock.now_s())
        by_second = {second.at: second for second in self._seconds}
        seconds = [by_second.get(at) or _Second(at) for at in range(now - KEPT_S, now)]
        return {
            "step_s": 1,
            "output_tokens": [second.output_tokens for second in seconds],
            "prompt_tokens": [second.prompt_tokens for second in seconds],
            "ttft_ms": [_ttft_ms([second]) for second in seconds],
            "tpot_ms": [_tpot_ms([second]) for second in seconds],
            "summary": _summary(seconds[-SUMMARY_S:]),
        }


def _summary(seconds: list[_Second]) -> dict[str, Any]:
    return {
        "window_s": len(seconds),
        "output_tokens_per_s": sum(second.output_tokens for second in seconds) / len(seconds),
        "prompt_tokens_per_s": sum(second.prompt_tokens for second in seconds) / len(seconds),
        "ttft_ms": _ttft_ms(seconds),
        "tpot_ms": _tpot_ms(seconds),
    }


def _ttft_ms(seconds: Iterable[_Second]) -> float | None:
    """The median."""
    found = [ttft_s for second in seconds for ttft_s in second.ttfts_s]
    return round(statistics.median(found) * 1e3, 2) if found else None


def _tpot_ms(seconds: list[_Second]) -> float | None:
    """The mean over all tokens that followed another one."""
    tokens = sum(second.gap_tokens for second in seconds)
    return round(sum(second.gaps_s for second in seconds) / tokens * 1e3, 2) if tokens else None
