"""What one choice cost and when. Owns its instants at the edge, and that each figure is counted once.

arrival ─tokenize─► submitted ─(coordinator.cluster.timeline)─► last event ─deliver─► told to the client
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from coordinator.cluster.timeline import Segment, Stage
from protocol.finish import FinishReason

if TYPE_CHECKING:
    from coordinator.cluster.service_api import StreamEvent
    from coordinator.cluster.timeline import Timeline
    from coordinator.edge.telemetry.metrics import EdgeMetrics

UNWELL = (None, FinishReason.ABORT, FinishReason.ERROR)


@dataclass(slots=True)
class ChoiceMeter:
    """Grows with a choice's events; `settle` ends it, after which nothing changes. Until the service admits it `timeline` says
    only when it came."""

    metrics: EdgeMetrics
    arrival_s: float
    num_prompt_tokens: int
    timeline: Timeline
    num_tokens: int = 0
    num_cached_tokens: int = 0
    finish_reason: FinishReason | None = None
    first_s: float = 0.0
    last_s: float = 0.0
    heard_s: float | None = None
    ended_s: float | None = None
    is_settled: bool = False

    def begin(self, timeline: Timeline) -> None:
        """The service admitted the choice."""
        self.timeline = timeline

    def event(self, event: StreamEvent, num_tokens: int, now_s: float) -> None:
        """`num_tokens` of an event belong to the text."""
        self.heard_s = now_s if event.at_s is None else event.at_s
        self.num_cached_tokens = max(self.num_cached_tokens, event.num_cached_tokens)
        if num_tokens == 0:
            return
        if self.num_tokens == 0:
            self.first_s = now_s
            self.metrics.first_token(now_s - self.arrival_s)
        else:
            self.metrics.inter_token(now_s - self.last_s, num_tokens)
        self.num_tokens += num_tokens
        self.last_s = now_s
        self.metrics.generated(num_tokens)

    def ended(self, reason: FinishReason, now_s: float) -> None:
        """The choice has its finish reason."""
        self.finish_reason, self.ended_s = reason, now_s
        self.metrics.choice_ended(reason)
        self.metrics.choice_finished(self.num_tokens, self.last_s - self.first_s)

    def delivered(self, now_s: float) -> None:
        """Its text is on its way: a choice that nobody settled before ends now."""
        if not self.is_settled:
            self.ended_s = now_s

    @property
    def is_well(self) -> bool:
        """Whether it ended as a client wants it to."""
        return self.finish_reason not in UNWELL

    def settle(self, failure: FinishReason, now_s: float) -> None:
        """Count what only the end tells; a choice without a finish reason ends as `failure`."""
        if self.is_settled:
            return
        self.is_settled = True
        if self.finish_reason is None:
            self.finish_reason, self.ended_s = failure, now_s
            self.metrics.choice_ended(failure)
            self.metrics.unfinished(self.num_tokens)
            return
        self.metrics.spent(self.segments(), self.end_s - self.arrival_s)

    @property
    def end_s(self) -> float:
        """When the choice ended; its arrival as long as it has not."""
        return self.arrival_s if self.ended_s is None else self.ended_s

    def segments(self) -> list[Segment]:
        """Consecutive, from arrival to end: their sum is the choice's end-to-end time."""
        end_s = self.end_s
        served_s = end_s if self.heard_s is None or not self.is_well else min(self.heard_s, end_s)
        submitted_s = min(self.timeline.submitted_s, served_s)
        return [
            Segment(Stage.TOKENIZE, submitted_s - self.arrival_s),
            *self.timeline.segments(served_s),
            Segment(Stage.DELIVER, end_s - served_s),
        ]
