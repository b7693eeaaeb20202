"""One HTTP request's generations, from admission to the last event. Owns their streams and who cancels them.

However a request ends, `close` is called: streams that have not ended are cancelled, so the pools
free their blocks.
"""

from __future__ import annotations

import asyncio
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING

from coordinator.accounts.booking import Departure, Request
from coordinator.cluster.timeline import Timeline
from coordinator.edge.answers.answer import Ending, Usage
from coordinator.edge.answers.choice_text import ChoiceText, TextOptions
from coordinator.edge.answers.prompt_scoring import ScoreBook
from coordinator.edge.http.side_work import MOST_AT_ONCE, others_turn
from coordinator.edge.telemetry.choice_meter import ChoiceMeter
from coordinator.edge.telemetry.request_record import RequestRecord, cached_of_prompts, timings_of
from protocol.errors import BatonError, GrammarDeadEnd, InternalError
from protocol.finish import FinishReason

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Sequence

    from coordinator.accounts.booking import Booking
    from coordinator.cluster.service_api import (
        Generation,
        ModelControl,
        Service,
        StreamEvent,
        TokenStream,
    )
    from coordinator.edge.answers.answer import Delta
    from coordinator.edge.answers.answer_parts import PartReader
    from coordinator.edge.http.side_work import LoopTurns
    from coordinator.edge.telemetry.metrics import EdgeMetrics
    from coordinator.edge.telemetry.request_record import RequestFacts, TraceSink
    from coordinator.edge.text.tokenizer import TextTokenizer
    from protocol.clock import Clock

UNFINISHED = "a stream ended without a finish reason"


@dataclass(frozen=True, slots=True)
class RunContext:
    """What every run of one application shares."""

    service: Service
    tokenizer: TextTokenizer
    metrics: EdgeMetrics
    clock: Clock
    turns: LoopTurns
    traces: TraceSink | None = None
    models: ModelControl | None = None


class MergedEvents:
    """Events of several streams in the order they come, as (stream's index, event)."""

    def __init__(self, streams: Sequence[TokenStream]) -> None:
        self._single: AsyncIterator[StreamEvent] | None = None
        self._arrived: asyncio.Queue[tuple[int, StreamEvent]] = asyncio.Queue()
        if len(streams) == 1:
            self._single = aiter(streams[0])
        else:
            for index, stream in enumerate(streams):
                stream.listen(partial(self._hear, index))

    async def next(self) -> tuple[int, StreamEvent]:
        """The next event. A stream that ends without a last event is a bug: InternalError."""
        if self._single is not None:
            try:
                return 0, await anext(self._single)
            except StopAsyncIteration as error:
                raise InternalError(UNFINISHED) from error
        return await self._arrived.get()

    def _hear(self, index: int, event: StreamEvent) -> None:
        self._arrived.put_nowait((index, event))


def error_kind(error: BaseException) -> str:
    """What metrics and traces call an error."""
    return error.error_type if isinstance(error, BatonError) else InternalError.error_type


class GenerationRun:
    """Submits every choice of a request and turns their events into text, until all have ended."""

    def __init__(  # noqa: PLR0913 - a request, and what it is answered with
        self,
        generations: Sequence[Generation],
        options: TextOptions,
        facts: RequestFacts,
        context: RunContext,
        make_parts: Callable[[], PartReader] | None = None,
        booking: Booking | None = None,
        keep_alive_s: float | None = None,
    ) -> None:
        self.generations = generations
        self.facts = facts
        self.error: str | None = None
        self.booking = booking
        self.num_told_tokens = 0
        self.headers: dict[str, str] = {}
        self._num_embedded = 0
        self._context = context
        self._sink = context.traces
        self._keep_alive_s = keep_alive_s
        self._leave_model: Callable[[], None] | None = None
        self._is_admitted = False
        self._streams: list[TokenStream] = []
        self._events: MergedEvents | None = None
        self._num_open = len(generations)
        self._constraint_field = options.constraint_field
        self._scores = ScoreBook(generations, facts.choices_per_prompt, options.prompt_scores)
        self._options = options
        self._texts: list[ChoiceText | None] = [None] * len(generations)
        self._parts = [make_parts() for _ in generations] if make_parts is not None else None
        nowhere, metrics = Timeline(facts.arrival_s), context.metrics
        self._meters = [
            ChoiceMeter(metrics, facts.arrival_s, len(generation.prompt_token_ids), nowhere)
            for generation in generations
        ]
        prompts = generations[:: facts.choices_per_prompt]
        self.usage = Usage(sum(len(generation.prompt_token_ids) for generation in prompts))

    @property
    def num_choices(self) -> int:
        """How many answers there are, to all prompts."""
        return len(self.generations)

    @property
    def num_told(self) -> int:
        """How many tokens, alternatives to them, and numbers of embeddings have been told."""
        alternatives = self.generations[0].sampling.logprobs
        per_token = 1 if alternatives is None else 2 + alternatives
        return self.usage.num_output_tokens * per_token + self._num_embedded

    @property
    def is_over(self) -> bool:
        """Whether every choice has its finish reason, and it was said."""
        return self._num_open == 0 and self._scores.is_empty

    async def submit(self) -> None:
        """Admit all choices or none; raises what the service raises. Where models come and go it waits for its own with its
        first delta."""
        # Outside the try: a client who leaves meanwhile was not refused, and whoever closes the run says that it left.
        await self._turn()
        try:
            if self.booking is not None:
                self._reserve(self.booking)
            if self._context.models is None:
                self._begin()
        except BaseException as error:
            self._refused(error)
            raise

    async def _turn(self) -> None:
        """Many choices are admitted in a turn of the loop of their own."""
        if len(self.generations) > MOST_AT_ONCE:
            await self._context.turns.turn()

    def _refused(self, error: BaseException) -> None:
        if self.booking is not None:
            self.booking.refuse()
        self.error = self.error or error_kind(error)
        self.close("the request was refused")

    async def _arrive(self, models: ModelControl) -> None:
        """Its model is in memory, as long as it uses it."""
        try:
            name = self.facts.response_model
            self._leave_model = await models.enter(name, self._keep_alive_s)
            await self._turn()
            self._begin()
        except asyncio.CancelledError:
            raise  # its client left: whoever closes it says so
        except BaseException as error:
            self._refused(error)
            raise

    def _begin(self) -> None:
        self._streams = list(self._context.service.submit_all(self.generations))
        self._events = MergedEvents(self._streams)
        self._is_admitted = True
        for stream, meter in zip(self._streams, self._meters, strict=True):
            meter.begin(stream.timeline)
        prompts = self.generations[:: self.facts.choices_per_prompt]
        self._context.turns.later(prompts, self._started)
        if self.facts.adapter:
            num_tokens = self.usage.num_prompt_tokens
            self._context.metrics.adapters.started(self.facts.adapter, num_tokens)

    def _started(self, generation: Generation) -> None:
        num_prompt, max_tokens = len(generation.prompt_token_ids), generation.sampling.max_tokens
        self._context.metrics.started(num_prompt, self.facts.choices_per_prompt, max_tokens)

    def _reserve(self, booking: Booking) -> None:
        facts = self.facts
        request = Request(
            facts.response_model if facts.adapter else facts.model,
            facts.operation,
            facts.reply_id,
            facts.label,
            facts.arrival_s,
            facts.adapter,
        )
        most = sum(generation.sampling.max_tokens for generation in self.generations)
        booking.reserve(request, self.usage.num_prompt_tokens, most)

    def told(self) -> None:
        """What was made so far is on its way to the client."""
        self.num_told_tokens = self.usage.num_output_tokens

    async def next_delta(self) -> Delta:
        """The next delta of any choice, until all have ended; raises a choice's error."""
        if self._events is None and self._context.models is not None:
            await self._arrive(self._context.models)
        assert self._events is not None, "submit first"
        assert not self.is_over, "every choice has ended"
        while True:
            if (waited := self._scores.next()) is not None:
                return waited
            index, event = await self._events.next()
            if self._text(index).finish_reason is not None:
                continue
            if event.error is not None:
                raise self._named(event.error)
            if event.prompt_scores:
                self._scores.take(index, event.prompt_scores)
                await others_turn()  # many events may be here already, and each takes a while
            delta = self._take(index, event)
            if delta is not None and (free := self._scores.admit(delta)) is not None:
                return free

    def _text(self, index: int) -> ChoiceText:
        """Made when a choice first says something: thousands may wait for that."""
        text = self._texts[index]
        if text is None:
            prompt = self.generations[index].prompt_token_ids
            text = ChoiceText(index, self._context.tokenizer, self._options, prompt)
            self._texts[index] = text
        return text

    def _named(self, error: BatonError) -> BatonError:
        """No worker knows what the client calls its constraint."""
        if isinstance(error, GrammarDeadEnd):
            return GrammarDeadEnd(str(error), self._constraint_field or "tools")
        return error

    def _take(self, index: int, event: StreamEvent) -> Delta | None:
        text, meter = self._text(index), self._meters[index]
        before = text.num_tokens
        delta = text.push(event)
        now_s = self._context.clock.now_s()
        num_tokens = text.num_tokens - before
        self.usage.num_output_tokens += num_tokens
        meter.event(event, num_tokens, now_s)
        if event.num_cached_tokens:
            self._count_cached()
        if delta is not None and delta.finish_reason is not None:
            delta.embedding = event.embedding
            self._num_embedded += len(event.embedding) // 4
            self._choice_ended(index, event, delta.finish_reason, now_s)
        return delta if delta is None or self._parts is None else self._parted(self._parts, delta)

    def _parted(self, parts: list[PartReader], delta: Delta) -> Delta | None:
        told = parts[delta.index].read(delta)
        self.usage.num_reasoning_tokens = sum(part.num_reasoning_tokens for part in parts)
        return told

    def _count_cached(self) -> None:
        self.usage.num_cached_tokens = sum(cached_of_prompts(self._meters, self.facts))

    def _choice_ended(
        self, index: int, event: StreamEvent, reason: FinishReason, now_s: float
    ) -> None:
        self._num_open -= 1
        self._meters[index].ended(reason, now_s)
        if self._num_open:  # the last one ends when its text is on its way: see `finish`
            self._meters[index].settle(reason, now_s)
        if event.finish_reason is None:
            self._streams[index].finish()

    def failed(self, kind: str) -> None:
        """What ended it, or will: the type of an error, or how its client left."""
        self.error = kind

    def finish(self) -> Ending:
        """Everything but the last bytes is sent: the request ends now. Only when `is_over`."""
        now_s = self._context.clock.now_s()
        for meter in self._meters:
            meter.delivered(now_s)
        self._settle(FinishReason.ABORT, now_s)
        if self.booking is not None:
            self.booking.first_token(self._first_s())
            self.booking.finish(self.usage, self._ends(), self.num_told_tokens)
        return Ending(self.usage, timings_of(self._meters) if self.facts.wants_timings else None)

    def _ends(self) -> str:
        """How the choices ended, each way once."""
        return ",".join(
            sorted({meter.finish_reason or FinishReason.ABORT for meter in self._meters})
        )

    def _first_s(self) -> float | None:
        return min((meter.first_s for meter in self._meters if meter.num_tokens), default=None)

    def _settle(self, failure: FinishReason, now_s: float) -> None:
        """Count every choice, once; none of a request that was refused."""
        if not self._is_admitted:
            return
        self._is_admitted = False
        if self.facts.adapter:
            num_tokens = self.usage.num_output_tokens
            self._context.metrics.adapters.generated(self.facts.adapter, num_tokens)
        per_prompt = self.facts.choices_per_prompt
        for meter in self._meters:
            meter.settle(failure, now_s)
        for first in range(0, len(self._meters), per_prompt):
            sizes = [meter.num_tokens for meter in self._meters[first : first + per_prompt]]
            self._context.metrics.longest(max(sizes))
        for index, cached in enumerate(cached_of_prompts(self._meters, self.facts)):
            choices = self._meters[index * per_prompt : (index + 1) * per_prompt]
            if any(choice.num_tokens for choice in choices):
                self._context.metrics.prefix(choices[0].num_prompt_tokens, cached)

    def close(self, reason: str) -> None:
        """Cancel what has not ended, and tell the trace; idempotent."""
        told = zip(self._streams, self._texts, strict=False)
        open_ones = [it for it, text in told if text is None or text.finish_reason is None]
        self._streams = []
        self._context.turns.later(open_ones, lambda stream: stream.cancel(reason))
        if self._leave_model is not None:
            self._leave_model()
            self._leave_model = None
        if self.error is None and not self.is_over:  # the task was cancelled: the server stops
            self.error = InternalError.error_type
        failure = FinishReason.ABORT if isinstance(self.error, Departure) else FinishReason.ERROR
        self._settle(failure, self._context.clock.now_s())
        if self.booking is not None:
            self.booking.first_token(self._first_s())
            self.booking.close(self.usage, self.num_told_tokens, failure, self.error)
        self._trace()

    def _trace(self) -> None:
        sink, self._sink = self._sink, None
        if sink is not None:
            ends_s = [meter.ended_s for meter in self._meters if meter.ended_s is not None]
            end_s = max(ends_s, default=self._context.clock.now_s())
            sampling = self.generations[0].sampling
            sink.record(RequestRecord(self.facts, sampling, self._meters, end_s, self.error))
