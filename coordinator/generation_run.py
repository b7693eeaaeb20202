"""One HTTP request's generations, from admission to the last event. Owns their streams and who cancels them.

However a request ends, `close` is called: streams that have not ended are cancelled, so the pools
free their blocks.
"""

from __future__ import annotations

import asyncio
from dataclasses import dataclass
from typing import TYPE_CHECKING

from coordinator.choice_text import ChoiceText, TextDelta, TextOptions
from engine.api.errors import InternalError

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Sequence

    from coordinator.metrics import EdgeMetrics
    from coordinator.service_api import Generation, Service, StreamEvent, TokenStream
    from coordinator.tokenizer import TextTokenizer
    from engine.api.clock import Clock

UNFINISHED = "a stream ended without a finish reason"


@dataclass(frozen=True, slots=True)
class RunContext:
    """What every run of one application shares."""

    service: Service
    tokenizer: TextTokenizer
    metrics: EdgeMetrics
    clock: Clock


class MergedEvents:
    """Events of several streams in the order they come, as (stream's index, event)."""

    def __init__(self, streams: Sequence[TokenStream]) -> None:
        self._single: AsyncIterator[StreamEvent] | None = None
        self._pumps: list[asyncio.Task[None]] = []
        self._arrived: asyncio.Queue[tuple[int, StreamEvent | Exception]] = asyncio.Queue()
        if len(streams) == 1:
            self._single = aiter(streams[0])
        else:
            self._pumps = [
                asyncio.create_task(self._pump(index, stream))
                for index, stream in enumerate(streams)
            ]

    async def next(self) -> tuple[int, StreamEvent]:
        """The next event. A stream that ends without a last event is a bug: InternalError."""
        if self._single is not None:
            try:
                return 0, await anext(self._single)
            except StopAsyncIteration as error:
                raise InternalError(UNFINISHED) from error
        index, item = await self._arrived.get()
        if isinstance(item, Exception):
            raise item
        return index, item

    async def _pump(self, index: int, stream: TokenStream) -> None:
        is_last = False
        try:
            async for event in stream:
                is_last = event.finish_reason is not None or event.error is not None
                self._arrived.put_nowait((index, event))
        except Exception as error:  # noqa: BLE001 - told to the reader, who raises it
            self._arrived.put_nowait((index, error))
            return
        if not is_last:
            self._arrived.put_nowait((index, InternalError(UNFINISHED)))

    def close(self) -> None:
        """Read no more."""
        for pump in self._pumps:
            pump.cancel()


class GenerationRun:
    """Submits every choice of a request and turns their events into text, until all have ended."""

    def __init__(
        self, generations: Sequence[Generation], options: TextOptions, context: RunContext
    ) -> None:
        self.generations = generations
        self._context = context
        self._arrival_s = context.clock.now_s()
        self._streams: list[TokenStream] = []
        self._events: MergedEvents | None = None
        self.texts = [ChoiceText(context.tokenizer, options) for _ in generations]
        self._meters = [ChoiceMeter(context.metrics, self._arrival_s) for _ in generations]
        self._cached = [0] * len(generations)

    @property
    def num_cached_tokens(self) -> int:
        """Prompt tokens that a prefix cache held, all prompts together."""
        return sum(self._cached)

    @property
    def num_output_tokens(self) -> int:
        """Tokens generated so far, all choices together."""
        return sum(text.num_tokens for text in self.texts)

    @property
    def is_over(self) -> bool:
        """Whether every choice has its finish reason."""
        return all(text.finish_reason is not None for text in self.texts)

    def submit(self) -> None:
        """Admit all choices or none; raises what the service raises."""
        try:
            for generation in self.generations:
                self._streams.append(self._context.service.submit(generation))
        except BaseException:
            self.close("another choice of the request was refused")
            raise
        self._events = MergedEvents(self._streams)
        for generation in self.generations:
            self._context.metrics.started(len(generation.prompt_token_ids))

    async def next_delta(self) -> tuple[int, TextDelta] | None:
        """The next text of any choice, or None when all have ended; raises a choice's error."""
        assert self._events is not None, "submit first"
        while not self.is_over:
            index, event = await self._events.next()
            if self.texts[index].finish_reason is not None:
                continue
            if event.error is not None:
                raise event.error
            delta = self._take(index, event)
            if delta.text or delta.finish_reason is not None:
                return index, delta
        return None

    def _take(self, index: int, event: StreamEvent) -> TextDelta:
        self._cached[index] = max(self._cached[index], event.num_cached_tokens)
        text = self.texts[index]
        before = text.num_tokens
        delta = text.push(event)
        now_s = self._context.clock.now_s()
        self._meters[index].tokens(text.num_tokens - before, now_s)
        if delta.finish_reason is not None:
            self._choice_ended(index, event, delta.finish_reason)
        return delta

    def _choice_ended(self, index: int, event: StreamEvent, reason: str) -> None:
        metrics = self._context.metrics
        self._meters[index].finished(reason)
        metrics.prefix(len(self.generations[index].prompt_token_ids), self._cached[index])
        for name, seconds in event.spans.items():
            metrics.stage(name, seconds)
        if event.finish_reason is None:
            self._streams[index].cancel("a stop string was found")
        if self.is_over:
            metrics.finished(self._context.clock.now_s() - self._arrival_s)

    def close(self, reason: str) -> None:
        """Cancel what has not ended; idempotent."""
        for stream, text in zip(self._streams, self.texts, strict=False):
            if text.finish_reason is None:
                stream.cancel(reason)
        self._streams = []
        if self._events is not None:
            self._events.close()


class ChoiceMeter:
    """When one choice's tokens came."""

    def __init__(self, metrics: EdgeMetrics, arrival_s: float) -> None:
        self._metrics = metrics
        self._arrival_s = arrival_s
        self._first_s = 0.0
        self._last_s = 0.0
        self._num_tokens = 0

    def tokens(self, num_tokens: int, now_s: float) -> None:
        """Some more tokens came at `now_s`."""
        if num_tokens == 0:
            return
        if self._num_tokens == 0:
            self._first_s = now_s
            self._metrics.first_token(now_s - self._arrival_s)
        else:
            self._metrics.inter_token(now_s - self._last_s, num_tokens)
        self._num_tokens += num_tokens
        self._last_s = now_s
        self._metrics.generated(num_tokens)

    def finished(self, reason: str) -> None:
        """The choice ended well."""
        self._metrics.choice_finished(reason, self._num_tokens, self._last_s - self._first_s)
