"""A request that goes from deployment to deployment until one answers. Owns what a client notices of it: nothing before the first
token, an honest error after it; and that it is booked once, whoever answered.

A whole answer is read to its end before any of it is told, so it can be tried elsewhere to the last.
"""

from __future__ import annotations

import asyncio
import logging
from collections import deque
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol
from urllib.parse import quote

from coordinator.accounts.booking import Departure, Request
from coordinator.edge.answers.answer import NotSayable, Usage
from coordinator.edge.answers.generation_run import error_kind
from coordinator.edge.gateway.upstream_run import SLOW_READER, UpstreamFailed
from coordinator.upstreams.journey import Trouble
from protocol.errors import (
    BatonError,
    ContextLengthExceeded,
    InternalError,
    InvalidRequest,
    LimitReached,
    Overloaded,
)
from protocol.finish import FinishReason

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from coordinator.accounts.booking import Booking
    from coordinator.edge.answers.answer import Delta, Ending
    from coordinator.edge.telemetry.request_record import RequestFacts
    from coordinator.edge.telemetry.upstream_metrics import UpstreamMetrics
    from coordinator.upstreams.deployments import Deployment, Spent
    from coordinator.upstreams.journey import Journey
    from protocol.clock import Clock

log = logging.getLogger(__name__)
DEPLOYMENT_HEADER = "x-baton-deployment"
ATTEMPTS_HEADER = "x-baton-attempts"
FLOAT_BYTES = 4
FULL_KIND, FAILED_KIND = "full", "failed"


class Attempt(Protocol):
    """One try: at our own pools, or at a server."""

    usage: Usage

    @property
    def is_over(self) -> bool:
        """Whether everything was told."""
        ...

    async def submit(self) -> None:
        """Begin; raises what refuses it at once."""
        ...

    async def next_delta(self) -> Delta:
        """The next; raises what ended it."""
        ...

    def finish(self) -> Ending:
        """What only the end tells."""
        ...

    def close(self, reason: str) -> None:
        """End it, whatever state it is in."""
        ...


@dataclass(frozen=True, slots=True)
class Extent:
    """How much a request asks for: choices, and tokens at most; its prompts' are guessed until somebody counts them."""

    num_choices: int
    num_prompt_tokens: int
    most_output_tokens: int

    @property
    def num_tokens(self) -> int:
        """All of them."""
        return self.num_prompt_tokens + self.most_output_tokens


class RoutedRun:
    """See the module; to a response it is a run as any other."""

    def __init__(  # noqa: PLR0913 - what a request needs on its way
        self,
        journey: Journey,
        attempt_at: Callable[[Deployment], Awaitable[Attempt]],
        facts: RequestFacts,
        clock: Clock,
        metrics: UpstreamMetrics,
        booking: Booking | None,
        extent: Extent,
    ) -> None:
        self.facts = facts
        self.booking = booking
        self.error: str | None = None
        self.num_told_tokens = 0
        self.headers: dict[str, str] = {}
        self._journey = journey
        self._attempt_at = attempt_at
        self._clock = clock
        self._metrics = metrics
        self._extent = extent
        self._stop: Deployment | None = None
        self._spent: Spent | None = None
        self._attempt: Attempt | None = None
        self._ready: deque[Delta] = deque()
        self._guess = Usage(extent.num_prompt_tokens)
        self._num_embedded = 0
        self._ends: set[FinishReason] = set()

    @property
    def num_choices(self) -> int:
        """How many answers there are, to all prompts."""
        return self._extent.num_choices

    @property
    def usage(self) -> Usage:
        """Of the try that answers."""
        return self._guess if self._attempt is None else self._attempt.usage

    @property
    def num_told(self) -> int:
        """How much there is to spell."""
        return self.usage.num_output_tokens + self._num_embedded

    @property
    def is_over(self) -> bool:
        """Whether everything was told."""
        return self._attempt is not None and self._attempt.is_over and not self._ready

    async def submit(self) -> None:
        """Admit it; raises LimitReached or LedgerUnavailable. Where it goes is decided when its first delta is waited for."""
        if self.booking is None:
            return
        facts = self.facts
        request = Request(
            facts.model, facts.operation, facts.reply_id, facts.label, facts.arrival_s
        )
        try:
            most = self._extent.most_output_tokens
            self.booking.reserve(request, self._guess.num_prompt_tokens, most)
        except BaseException as error:
            self.booking.refuse()
            self.error = error_kind(error)
            self.close("the request was refused")
            raise

    def failed(self, kind: str) -> None:
        """What ended it, or will: the type of an error, or a `Departure`."""
        self.error = kind

    def told(self) -> None:
        """What was made so far is on its way to the client."""
        self.num_told_tokens = self.usage.num_output_tokens

    async def next_delta(self) -> Delta:
        """The next; raises what the last try ended with."""
        if not self._ready:
            if self._attempt is None:
                await self._find()
            else:
                self._ready.append(await self._heard(self._attempt))
        delta = self._ready.popleft()
        self._num_embedded += len(delta.embedding) // FLOAT_BYTES
        if delta.finish_reason is not None:
            self._ends.add(delta.finish_reason)
        return delta

    async def _heard(self, attempt: Attempt) -> Delta:
        """Of a try whose beginning the client has."""
        try:
            return await attempt.next_delta()
        except BatonError as error:
            self._count_failure(error)
            raise

    async def _find(self) -> None:
        """Try one deployment after another, until one says something."""
        last: BatonError | None = None
        while True:
            now_s = self._clock.now_s()
            stop = self._journey.next_stop(now_s)
            if stop is None:
                raise last or self._full(now_s)
            if last is not None and self._journey.settings.retry_after_s:
                await _pause(self._journey.settings.retry_after_s)
            try:
                self._ready.extend(await self._begun(stop))
            except BatonError as error:
                self._give_up(error)
                if isinstance(error, LimitReached) or not self._journey.failed(trouble_of(error)):
                    raise
                log.info("%s: %s; trying elsewhere", self.facts.label or "a request", error)
                last = _worse(last, error)
            else:
                self.headers[DEPLOYMENT_HEADER] = header_name_of(stop.deployment_id)
                self.headers[ATTEMPTS_HEADER] = str(len(self._journey.steps))
                if self.booking is not None:
                    self.booking.first_token(self._clock.now_s())
                return

    async def _begun(self, stop: Deployment) -> list[Delta]:
        """Its first delta, or all of a whole answer."""
        attempt = self._attempt = await self._attempt_at(stop)
        self._stop = stop
        self._spent = stop.begin(self._journey.tokens, self._clock.now_s())
        await attempt.submit()
        deltas = [await attempt.next_delta()]
        while not (self.facts.is_stream or attempt.is_over):
            deltas.append(await attempt.next_delta())
        return deltas

    def _give_up(self, error: BatonError) -> None:
        self._count_failure(error)
        if self._attempt is not None:
            self._attempt.close("it is tried elsewhere")
            self._attempt = None

    def _count_failure(self, error: BatonError) -> None:
        stop, self._stop, self._spent = self._stop, None, None
        if stop is None:
            return
        kind = error.kind if isinstance(error, UpstreamFailed) else _kind_of(error)
        self._metrics.ended(stop.deployment_id, kind)
        is_place = trouble_of(error) is Trouble.PLACE and kind not in (SLOW_READER, FULL_KIND)
        if not is_place or stop.settings.is_own:
            stop.left(self._clock.now_s())
            return
        cool_s = error.cool_s if isinstance(error, UpstreamFailed) else None
        stop.failed(kind, self._clock.now_s(), self._journey.settings, cool_s)
        if stop.is_cooling(self._clock.now_s()):
            log.warning("deployment %r is left alone for a while: %s", stop.deployment_id, kind)

    def _full(self, now_s: float) -> Overloaded:
        seconds = self._journey.promise_s(now_s) - now_s
        name = self.facts.model
        return Overloaded(f"no deployment of {name!r} takes a request now", max(seconds, 0.001))

    def finish(self) -> Ending:
        """Everything but the last bytes is sent."""
        assert self._attempt is not None, "it is over"
        ending, usage = self._attempt.finish(), self.usage
        stop, spent = self._stop, self._spent
        self._stop = self._spent = None
        if stop is not None and spent is not None:
            tokens = usage.num_prompt_tokens + usage.num_output_tokens
            stop.succeeded(spent, tokens, self._clock.now_s())
            self._metrics.ended(stop.deployment_id, "ok")
        if self.booking is not None:
            self.booking.finish(usage, ",".join(sorted(self._ends)), self.num_told_tokens)
        return ending

    def close(self, reason: str) -> None:
        """End what has not ended, and book it; idempotent."""
        if self._attempt is not None:
            self._attempt.close(reason)
        if self._stop is not None:
            self._stop.left(self._clock.now_s())
            self._metrics.ended(self._stop.deployment_id, "client_left")
            self._stop = None
        if self.error is None and not self.is_over:
            self.error = InternalError.error_type
        if self.booking is not None:
            failure = (
                FinishReason.ABORT if isinstance(self.error, Departure) else FinishReason.ERROR
            )
            self.booking.close(self.usage, self.num_told_tokens, failure, self.error)


def header_name_of(deployment_id: str) -> str:
    """As it stands; of one that no header can have each byte of UTF-8 that is no letter, digit or `-._~/: ` as `%XX`."""
    if deployment_id.isascii() and deployment_id.isprintable():
        return deployment_id
    return quote(deployment_id, safe="/: ")


async def _pause(seconds: float) -> None:
    over = asyncio.Event()
    asyncio.get_running_loop().call_later(seconds, over.set)
    await over.wait()


def trouble_of(error: BatonError) -> Trouble:
    """What a failure says of what to try next."""
    if isinstance(error, UpstreamFailed):
        return error.trouble
    if isinstance(error, ContextLengthExceeded):
        return Trouble.CONTEXT
    if isinstance(error, NotSayable):
        return Trouble.PLACE
    return Trouble.REQUEST if isinstance(error, InvalidRequest) else Trouble.PLACE


def _kind_of(error: BatonError) -> str:
    return FULL_KIND if isinstance(error, Overloaded | NotSayable) else FAILED_KIND


def _worse(last: BatonError | None, error: BatonError) -> BatonError:
    """Which of two failures a client is told: when to come back, if one says so, else the later."""
    return last if isinstance(last, Overloaded) and not isinstance(error, Overloaded) else error
