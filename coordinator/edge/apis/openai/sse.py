"""A run to HTTP, streamed or whole. Owns headers, `data:` lines and who notices that a client left.

Headers wait for the first event: a request that fails before its first token gets a real status.
The client is watched the whole time, so that a disconnect is acted on at once and not at the next
write. A client that reads nothing for `stalled_client_s` is given up.
"""

from __future__ import annotations

import asyncio
import logging
from typing import TYPE_CHECKING

from starlette.responses import Response

from coordinator.edge.answers.generation_run import error_kind
from coordinator.edge.apis.openai.replies import PromptTokensDetails, Usage, encode
from coordinator.edge.apis.openai.reply_format import joined
from coordinator.edge.http.error_replies import error_body
from protocol.errors import BatonError, InternalError

if TYPE_CHECKING:
    from collections.abc import Coroutine

    from starlette.types import Receive, Scope, Send

    from coordinator.edge.answers.generation_run import GenerationRun
    from coordinator.edge.apis.openai.replies import Reply
    from coordinator.edge.apis.openai.reply_format import ReplyFormat
    from coordinator.edge.http.limits import EdgeLimits
    from coordinator.edge.telemetry.metrics import EdgeMetrics
    from coordinator.edge.text.choice_text import TextDelta

log = logging.getLogger(__name__)
DONE = b"data: [DONE]\n\n"
STREAM_HEADERS = {"Cache-Control": "no-cache", "X-Accel-Buffering": "no"}


class StalledClient(Exception):
    """The client stopped reading."""


async def until_disconnect(receive: Receive, work: Coroutine[None, None, None]) -> bool:
    """Do `work` unless the client leaves first; whether it was done. Raises what `work` raises."""
    worker = asyncio.create_task(work)
    watcher = asyncio.create_task(_disconnected(receive))
    try:
        await asyncio.wait({worker, watcher}, return_when=asyncio.FIRST_COMPLETED)
        if worker.done():
            worker.result()
        return worker.done()
    finally:
        worker.cancel()
        watcher.cancel()
        await asyncio.gather(worker, watcher, return_exceptions=True)


async def _disconnected(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass


class RunResponse(Response):
    """Base of both answers: submits the run, and closes it whatever happens."""

    def __init__(
        self,
        run: GenerationRun,
        form: ReplyFormat,
        *,
        metrics: EdgeMetrics,
        limits: EdgeLimits,
    ) -> None:
        super().__init__(headers=self.extra_headers(), media_type=self.content_type())
        del self.headers["content-length"]
        self.run = run
        self.form = form
        self._metrics = metrics
        self._limits = limits

    def extra_headers(self) -> dict[str, str]:
        """Headers besides the content type."""
        return {}

    def content_type(self) -> str:
        """Media type of the answer."""
        return "application/json"

    async def __call__(
        self,
        scope: Scope,  # noqa: ARG002 - ASGI's signature
        receive: Receive,
        send: Send,
    ) -> None:
        """Answer; returns without one when the client is gone."""
        reason = "the request failed"
        try:
            if not await until_disconnect(receive, self.answer(send)):
                reason, self.run.error = "client disconnected", "client_disconnected"
                self._metrics.disconnected()
        except StalledClient:
            reason, self.run.error = "the client stopped reading", "client_stalled"
            self._metrics.disconnected()
            log.warning("a client read nothing for %s s: its stream is closed", self._stall_s)
        except Exception as error:
            self.run.error = error_kind(error)
            raise
        finally:
            self.run.close(reason)

    async def answer(self, send: Send) -> None:
        """Submit the run and send what comes of it."""
        raise NotImplementedError

    @property
    def _stall_s(self) -> float:
        return self._limits.stalled_client_s

    async def start(self, send: Send) -> None:
        """Send status and headers."""
        headers = self.raw_headers
        await send({"type": "http.response.start", "status": 200, "headers": headers})

    async def write(self, send: Send, body: bytes, *, more: bool = True) -> None:
        """Send some body; raises StalledClient when it is not taken in time."""
        try:
            async with asyncio.timeout(self._stall_s):
                await send({"type": "http.response.body", "body": body, "more_body": more})
        except TimeoutError as error:
            raise StalledClient from error

    def time(self, reply: Reply) -> None:
        """The request ends with this reply; it says where the time went when that was asked for."""
        timings = self.run.finish()
        if self.run.facts.wants_timings:
            reply.baton = timings

    def usage(self) -> Usage:
        """Token counts so far; the prompt counts once however many choices it has."""
        per_prompt = self.form.options.choices_per_prompt
        prompts = self.run.generations[::per_prompt]
        num_prompt = sum(len(generation.prompt_token_ids) for generation in prompts)
        num_output = self.run.num_output_tokens
        cached = PromptTokensDetails(min(self.run.num_cached_tokens // per_prompt, num_prompt))
        return Usage(num_prompt, num_prompt + num_output, num_output, cached)


class WholeResponse(RunResponse):
    """One JSON body when every choice has ended."""

    async def answer(self, send: Send) -> None:
        """Wait for the end, then say everything at once."""
        self.run.submit()
        deltas: list[list[TextDelta]] = [[] for _ in self.run.generations]
        while (said := await self.run.next_delta()) is not None:
            index, delta = said
            deltas[index].append(delta)
        reply = self.form.whole([joined(own) for own in deltas], self.usage())
        self.time(reply)
        body = encode(reply)
        self.headers["content-length"] = str(len(body))
        await self.start(send)
        await self.write(send, body, more=False)


class StreamResponse(RunResponse):
    """Server-sent events: a chunk for each event with text, then `[DONE]`."""

    def extra_headers(self) -> dict[str, str]:
        """Proxies must neither keep nor gather what passes."""
        return STREAM_HEADERS

    def content_type(self) -> str:
        """Media type of the answer."""
        return "text/event-stream"

    async def answer(self, send: Send) -> None:
        """Headers with the first text, then every chunk; an error later is an event."""
        self.run.submit()
        first = await self.run.next_delta()
        await self.start(send)
        try:
            await self._chunks(send, first)
        except StalledClient:
            raise
        except BatonError as error:
            await self._fail(send, error)
        except Exception as error:
            log.exception("a stream failed unexpectedly")
            await self._fail(send, InternalError(str(error)))
        await self.write(send, DONE, more=False)

    async def _chunks(self, send: Send, said: tuple[int, TextDelta] | None) -> None:
        options = self.form.options
        while said is not None:
            index, delta = said
            usage = self.usage() if options.continuous_usage else None
            chunk = self.form.chunk(index, delta, usage)
            if self.run.is_over and not options.include_usage:
                self.time(chunk)
            await self.write(send, b"data: " + encode(chunk) + b"\n\n")
            said = await self.run.next_delta()
        if options.include_usage:
            chunk = self.form.usage_chunk(self.usage())
            self.time(chunk)
            await self.write(send, b"data: " + encode(chunk) + b"\n\n")

    async def _fail(self, send: Send, error: BatonError) -> None:
        self.run.error = error.error_type
        self._metrics.stream_failed(error.error_type)
        await self.write(send, b"data: " + error_body(error) + b"\n\n")
