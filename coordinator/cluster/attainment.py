"""How many requests of the last minutes held their SLO. Owns the count of them; decides nothing, pure.

A request holds the SLO when its first token and its further ones came in time. One that was refused, or failed, did not;
one whose client left says nothing. Goodput is how many held it, a second.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from coordinator.planning.demand import FinishedRequest
    from coordinator.planning.observations import Targets
    from protocol.clock import Clock

WINDOW_S = 300.0
SPAN_S = 5.0


@dataclass(slots=True)
class _Span:
    """`SPAN_S` seconds from `at_s` on."""

    at_s: float
    ended: int = 0
    in_time: int = 0
    first_in_time: int = 0
    rest_in_time: int = 0
    refused: int = 0
    failed: int = 0


class Attainment:
    """`targets` may change while it counts: what has been judged stays so. Without any, nothing is told."""

    def __init__(self, clock: Clock) -> None:
        self.targets: Targets | None = None
        self._clock = clock
        self._since_s = clock.now_s()
        self._spans: deque[_Span] = deque()

    def judge_by(self, targets: Targets) -> None:
        """What counts as in time from now on."""
        self.targets = targets

    def _now(self) -> _Span:
        now_s = self._clock.now_s()
        if not self._spans or now_s - self._spans[-1].at_s >= SPAN_S:
            self._spans.append(_Span(now_s))
        while self._spans[0].at_s <= now_s - WINDOW_S:
            self._spans.popleft()
        return self._spans[-1]

    def finished(self, request: FinishedRequest) -> None:
        """A request ended well."""
        if self.targets is None or request.first_s is None or request.last_s is None:
            return
        following = max(request.num_output_tokens - 1, 0)
        is_first = request.first_s - request.submitted_s <= self.targets.ttft_s
        is_rest = request.last_s - request.first_s <= self.targets.tpot_s * following
        span = self._now()
        span.ended += 1
        span.first_in_time += is_first
        span.rest_in_time += is_rest
        span.in_time += is_first and is_rest

    def refused(self, count: int) -> None:
        """So many were turned away."""
        self._now().refused += count

    def failed(self) -> None:
        """One ended with an error that is not its client's."""
        self._now().failed += 1

    def view(self) -> dict[str, Any] | None:
        """`slo` of `GET /cluster`; None where nobody set one. Shares are of everything that ended or was refused."""
        targets = self.targets
        if targets is None:
            return None
        self._now()
        ended, held = self._sum("ended"), self._sum("in_time")
        refused, failed = self._sum("refused"), self._sum("failed")
        judged = ended + refused + failed
        window_s = min(WINDOW_S, max(self._clock.now_s() - self._since_s, SPAN_S))
        return {
            "ttft_ms": round(targets.ttft_s * 1e3, 3),
            "tpot_ms": round(targets.tpot_s * 1e3, 3),
            "goal": targets.goal,
            "window_s": round(window_s, 1),
            "requests": judged,
            "refused": refused,
            "failed": failed,
            "attained": _share(held, judged),
            "ttft_attained": _share(self._sum("first_in_time"), judged),
            "tpot_attained": _share(self._sum("rest_in_time"), ended),
            "goodput_per_s": round(held / window_s, 4),
        }

    def _sum(self, name: str) -> int:
        return sum(getattr(span, name) for span in self._spans)


def _share(part: int, whole: int) -> float | None:
    return round(part / whole, 4) if whole else None
