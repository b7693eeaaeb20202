"""Where one choice's time went, as the service sees it. Owns the split of its life into segments; pure.

    submitted ─queue─► dispatched ─prefill_queue, prefix_fetch, prefill─► first token
              ─decode_wait, exposed_transfer, first_step─► second token ─decode─► last token

The instants are the coordinator's own. Workers report durations, never instants, and each report
fills a part of the interval it lies in; what no report explains is `control`: messages under way.
So segments are consecutive, and their sum is the time from the first instant to the last.

A failed attempt keeps its segments; what came after its last token is `replay`. One that is handed over has lost nothing:
it is followed by one that reads what it left. An attempt on one worker alone has no handoff: its prompt's stages belong to the
decode role.
"""

from __future__ import annotations

import enum
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from protocol.roles import Role
from protocol.spans import Span

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from protocol.spans import Spans

COORDINATOR = "coordinator"
PROMPT_REPORTS = (Span.QUEUE, Span.PREFIX_FETCH, Span.PREFILL)


class Stage(enum.StrEnum):
    """What a stretch of a request's time went to, in the order in which people are told."""

    TOKENIZE = "tokenize"
    QUEUE = "queue"
    PREFILL_QUEUE = "prefill_queue"
    PREFIX_FETCH = "prefix_fetch"
    PREFILL = "prefill"
    DECODE_WAIT = "decode_wait"
    EXPOSED_TRANSFER = "exposed_transfer"
    FIRST_STEP = "first_step"
    DECODE = "decode"
    REPLAY = "replay"
    DELIVER = "deliver"
    CONTROL = "control"


@dataclass(frozen=True, slots=True)
class Segment:
    """A stretch of time: what was done, by which role and worker ("" for the coordinator)."""

    stage: Stage
    seconds: float
    role: str = COORDINATOR
    worker: str = ""


@dataclass(slots=True)
class Attempt:
    """One dispatch. `reports` are the durations that each of its workers told; `left_s` is when it was given up, since it had
    failed or goes on elsewhere."""

    dispatched_s: float
    prefill_worker: str | None
    decode_worker: str
    first_s: float | None = None
    second_s: float | None = None
    last_s: float | None = None
    left_s: float | None = None
    has_failed: bool = False
    reports: dict[str, Spans] = field(default_factory=dict)

    def segments(self, until_s: float) -> list[Segment]:
        """From the dispatch to when it was left, or to `until_s`."""
        end_s = until_s if self.left_s is None else min(self.left_s, until_s)
        if self.first_s is None:
            return [self._tail(Role.PREFILL, end_s - self.dispatched_s)]
        first_s = min(self.first_s, end_s)
        segments, mark_s = self._prompt(first_s - self.dispatched_s), first_s
        if self.second_s is not None and self.prefill_worker is not None:
            mark_s = min(self.second_s, end_s)
            segments += self._handoff(mark_s - first_s)
        last_s = min(self.last_s or first_s, end_s)
        segments.append(
            Segment(Stage.DECODE, max(last_s - mark_s, 0.0), Role.DECODE, self.decode_worker)
        )
        rest_s = end_s - max(last_s, mark_s)
        return [*segments, self._tail(Role.DECODE, rest_s)] if rest_s > 0 else segments

    def _prompt(self, seconds: float) -> list[Segment]:
        """Dispatch to first token, on the worker that computed the prompt."""
        worker = self.prefill_worker or self.decode_worker
        told = self.reports.get(worker, {})
        known = [
            (Stage.PREFILL_QUEUE, told.get(Span.QUEUE, 0.0)),
            (Stage.PREFILL, told.get(Span.PREFILL, 0.0)),
        ]
        if fetch_s := told.get(Span.PREFIX_FETCH):
            known.insert(1, (Stage.PREFIX_FETCH, fetch_s))
        role = Role.PREFILL if self.prefill_worker else Role.DECODE
        return _explained(seconds, known, told.get(Span.UNHEARD, 0.0), (role, worker))

    def _handoff(self, seconds: float) -> list[Segment]:
        """First to second token: what the handoff costs the client, and the first step after it."""
        told = self.reports.get(self.decode_worker, {})
        computing = self.reports.get(self.prefill_worker or "", {})
        hidden_s = sum(computing.get(name, 0.0) for name in PROMPT_REPORTS)
        blocks_s = max(told.get(Span.WAIT_BLOCKS, 0.0) - hidden_s, 0.0)
        known = [
            (Stage.DECODE_WAIT, blocks_s + told.get(Span.STEP_WAIT, 0.0)),
            (Stage.EXPOSED_TRANSFER, told.get(Span.EXPOSED_TRANSFER, 0.0)),
            (Stage.FIRST_STEP, told.get(Span.FIRST_STEP, 0.0)),
        ]
        where = (Role.DECODE, self.decode_worker)
        return _explained(seconds, known, told.get(Span.UNHEARD, 0.0), where)

    def _tail(self, role: Role, seconds: float) -> Segment:
        """After the last token: lost when the attempt failed, else the stage that was left."""
        worker, stage = self.decode_worker, Stage.DECODE
        if role is Role.PREFILL:
            worker, stage = self.prefill_worker or worker, Stage.PREFILL
        stage = Stage.REPLAY if self.has_failed else stage
        return Segment(stage, max(seconds, 0.0), role, worker)


def _explained(
    total_s: float,
    known: Sequence[tuple[Stage, float]],
    unheard_s: float,
    where: tuple[Role, str],
) -> list[Segment]:
    """`known` parts of an interval in order, cut to what it has; the rest is `control`.

    A worker in the middle of a step hears a message only when that step ends: of the rest, up to
    `unheard_s` was such a wait and goes to the first part.
    """
    left_s, parts = max(total_s, 0.0), []
    for _, seconds in known:
        parts.append(min(max(seconds, 0.0), left_s))
        left_s -= parts[-1]
    waited_s = min(max(unheard_s, 0.0), left_s)
    parts[0] += waited_s
    told = [Segment(stage, part, *where) for (stage, _), part in zip(known, parts, strict=True)]
    return [*told, Segment(Stage.CONTROL, left_s - waited_s)]


@dataclass(slots=True)
class Timeline:
    """All attempts of one choice, in order. At most the last one has not been left."""

    submitted_s: float
    attempts: list[Attempt] = field(default_factory=list)
    transfer_bytes: int = 0

    @property
    def replays(self) -> int:
        """Attempts that failed."""
        return sum(attempt.has_failed for attempt in self.attempts)

    @property
    def opening(self) -> Attempt:
        """The attempt that brought the first token; the last one where none has."""
        brought = (attempt for attempt in self.attempts if attempt.first_s is not None)
        return next(brought, self.attempts[-1])

    def dispatched(self, prefill_worker: str | None, decode_worker: str, now_s: float) -> None:
        """A new attempt begins."""
        self.attempts.append(Attempt(now_s, prefill_worker, decode_worker))

    def heard(
        self, worker_id: str, spans: Mapping[Span, float], now_s: float, *, is_new: bool
    ) -> None:
        """An output of the current attempt came; `is_new` when it brought the client a token, or the end of an answer
        without any."""
        attempt = self.attempts[-1]
        if spans:
            attempt.reports.setdefault(worker_id, {}).update(spans)
            if Span.FIRST_STEP in spans:
                attempt.second_s = now_s
        if is_new:
            attempt.last_s = now_s
            attempt.first_s = now_s if attempt.first_s is None else attempt.first_s

    def pulled(self, num_bytes: int) -> None:
        """So much was moved from worker to worker for it."""
        self.transfer_bytes += num_bytes

    def failed(self, now_s: float) -> None:
        """The current attempt is given up."""
        if self.attempts and self.attempts[-1].left_s is None:
            self.attempts[-1].left_s, self.attempts[-1].has_failed = now_s, True

    def handed_over(self, now_s: float) -> None:
        """The next attempt goes on with what the current one has."""
        self.attempts[-1].left_s = now_s

    def segments(self, until_s: float) -> list[Segment]:
        """From submission to `until_s`: queue, the first attempt, queue, the next …"""
        found, mark_s = [], self.submitted_s
        for attempt in self.attempts:
            found.append(Segment(Stage.QUEUE, max(attempt.dispatched_s - mark_s, 0.0)))
            found += attempt.segments(until_s)
            mark_s = until_s if attempt.left_s is None else attempt.left_s
        if until_s > mark_s:
            found.append(Segment(Stage.QUEUE, until_s - mark_s))
        return found
