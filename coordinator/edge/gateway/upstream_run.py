"""One try at one server: asked over HTTP, heard in a task of its own, read delta by delta. Owns deadlines and what a failure is.

    task: POST ─► status ─► bytes ─► Events ─► Listener ─► queue ─► next_delta
                   └─ not 200, not a stream, cut, too slow, nonsense ─► UpstreamFailed

Nothing of a body is believed without bounds: redirects are not followed, compressed answers not taken, events at most a
megabyte, and answers no longer than was asked. No key leaves in a message: what a server says of an error is told only where it is the client's own fault.
"""

from __future__ import annotations

import asyncio
import logging
import math
from collections import deque
from dataclasses import dataclass
from functools import cache
from http.cookiejar import CookieJar, DefaultCookiePolicy
from typing import TYPE_CHECKING

import httpx
import orjson

from coordinator.edge.answers.answer import Ending, Usage
from coordinator.edge.gateway.hearing import BrokenStream, Events
from coordinator.upstreams.journey import Trouble
from coordinator.upstreams.settings import Provider
from protocol.errors import BatonError, InternalError

if TYPE_CHECKING:
    import ssl
    from collections.abc import Mapping

    from coordinator.edge.answers.answer import Delta
    from coordinator.edge.gateway.hearing import Listener
    from coordinator.upstreams.settings import DeploymentSettings

log = logging.getLogger(__name__)
ANTHROPIC_VERSION = "2023-06-01"
MAX_ERROR_BYTES = 64 * 1024
MAX_STREAM_BYTES = 64 * 1024 * 1024
"""Of one answer: 128,000 tokens, each in an event of its own."""
MAX_SILENT_BYTES = 4 * 1024 * 1024
"""Between two things that it says: comments, and events without a word."""
MAX_WAITING_DELTAS = 64
MAX_TOLD_CHARACTERS, MAX_TYPE_CHARACTERS = 300, 50
"""Of what a server says itself: without keys first, and then cut, since no piece of a key is told either."""
CONTEXT_CODES = ("context_length_exceeded",)
CONTEXT_WORDS = ("maximum context length", "prompt is too long", "context window")
CLIENTS_FAULT = frozenset((400, 404, 413, 422))
"""Nobody else would take it either, but for a prompt that is too long."""
KEY_TROUBLE = frozenset((401, 403))
KEY_COOLDOWN_S = 60.0
SLOW_READER = "slow_reader"
"""It was our client that took too long."""


class UpstreamFailed(BatonError):
    """Another server did not answer as it should. `trouble` says where else to try, `cool_s` how long it wants to be left alone."""

    http_status = 502
    error_type = "UpstreamError"
    code: str | None = "upstream_error"

    def __init__(
        self,
        told: str,
        kind: str,
        trouble: Trouble = Trouble.PLACE,
        status: int = 502,
        cool_s: float | None = None,
        code: str | None = None,
    ) -> None:
        super().__init__(told)
        self.http_status = status
        self.kind = kind
        self.trouble = trouble
        self.cool_s = cool_s
        self.code = code or type(self).code


@dataclass(frozen=True, slots=True)
class Called:
    """One try: which server, what is sent to which of its paths, who hears the stream, how much all prompts weigh until
    they are counted, and in how many pieces the answer may come, if it was told where to end."""

    place: DeploymentSettings
    path: str
    body: bytes
    listener: Listener
    num_prompt_guess: int
    most_pieces: int | None = None

    @property
    def url(self) -> str:
        """Where it goes; Anthropic's base has no version in it."""
        if self.place.provider is not Provider.ANTHROPIC:
            return f"{self.place.api_base}/{self.path}"
        return f"{self.place.api_base.removesuffix('/v1')}/v1/{self.path}"


@cache
def _authorities() -> ssl.SSLContext:
    """Whom servers may be vouched for by; reading them takes 20 ms."""
    return httpx.create_ssl_context(trust_env=False)


def client() -> httpx.AsyncClient:
    """For all servers: proxies and keys of the environment are not used, redirects not followed, cookies not kept: they would
    go with the next client's request, and to every server of that host. The library is told to say no more than warnings: a
    server's headers, which it would log, may repeat a key."""
    for name in ("httpx", "httpcore"):
        logging.getLogger(name).setLevel(logging.WARNING)
    limits = httpx.Limits(max_connections=None, max_keepalive_connections=256)
    timeout = httpx.Timeout(None, connect=10.0)
    return httpx.AsyncClient(
        verify=_authorities(),
        cookies=CookieJar(DefaultCookiePolicy(allowed_domains=())),
        limits=limits,
        timeout=timeout,
        trust_env=False,
        follow_redirects=False,
    )


def headers_of(place: DeploymentSettings, accepted: str) -> dict[str, str]:
    """With its key; what the operator adds stands in the place of what has that name, in whatever letters."""
    told = {
        "content-type": "application/json",
        "accept": accepted,
        "accept-encoding": "identity",
    }
    if place.provider is Provider.ANTHROPIC:
        told |= {"anthropic-version": ANTHROPIC_VERSION, "x-api-key": place.api_key}
    elif place.api_key:
        told["authorization"] = f"Bearer {place.api_key}"
    return told | {name.lower(): value for name, value in place.headers.items()}


class UpstreamRun:
    """As a run of our own pools, to whoever reads it: `submit`, `next_delta` until `is_over`, `finish`; `close` whatever happens."""

    media_type = "text/event-stream"

    def __init__(self, called: Called, http: httpx.AsyncClient) -> None:
        self._called = called
        self._http = http
        self.listener = called.listener
        self._heard: asyncio.Queue[Delta | BatonError | None] = asyncio.Queue(MAX_WAITING_DELTAS)
        self._ready: deque[Delta] = deque()
        self._last: Delta | None = None
        self._task: asyncio.Task[None] | None = None
        self._has_begun = self._has_ended = False
        self._num_pieces = self._num_silent_bytes = 0
        self.usage = Usage(called.num_prompt_guess)

    async def submit(self) -> None:
        """Begin."""
        self._task = asyncio.create_task(self._listen())

    @property
    def is_over(self) -> bool:
        """Whether the stream came to its end, and all of it was told."""
        return self._has_ended and not self._ready

    async def next_delta(self) -> Delta:
        """The next that says something. The last choice's end waits until the server has told what it counted. Raises
        UpstreamFailed."""
        while not self._ready:
            heard = await self._heard.get()
            if isinstance(heard, BatonError):
                raise heard
            if heard is None:
                self._has_ended = True
                self._count()
                self._release()
            elif heard.finish_reason is not None:
                self._release()
                self._last = heard
            elif heard.parts:
                self._release()
                self._ready.append(heard)
                self.usage.num_output_tokens += 1  # by pieces, until the server tells
        return self._ready.popleft()

    def _release(self) -> None:
        if self._last is not None:
            self._ready.append(self._last)
            self._last = None

    def finish(self) -> Ending:
        """What was counted."""
        return Ending(self.usage)

    def close(self, reason: str) -> None:  # noqa: ARG002 - another server is told by the closed connection
        """Hang up."""
        if self._task is not None:
            self._task.cancel()

    def _count(self) -> None:
        counted, usage = self.listener.counted, self.usage
        usage.num_prompt_tokens = _or(counted.prompt, usage.num_prompt_tokens)
        usage.num_output_tokens = _or(counted.output, usage.num_output_tokens)
        usage.num_cached_tokens = min(_or(counted.cached, 0), usage.num_prompt_tokens)
        usage.num_reasoning_tokens = min(_or(counted.reasoning, 0), usage.num_output_tokens)

    async def _listen(self) -> None:
        place = self._called.place
        try:
            async with asyncio.timeout(place.timeout_s):
                await self._ask()
            end: BatonError | None = None
        except UpstreamFailed as error:
            end = error
        except TimeoutError:
            kind = SLOW_READER if self._heard.full() else "timeout"
            end = self._failed(kind, f"did not end its answer within {place.timeout_s:g} s")
        except BrokenStream as broken:
            end = self._broken(broken)
        except (httpx.HTTPError, httpx.InvalidURL) as error:
            end = self._failed("connection", f"cannot be reached ({type(error).__name__})")
        except Exception as error:
            log.exception("an answer of another server could not be read")
            end = InternalError(str(error))
        await self._heard.put(end)

    async def _ask(self) -> None:
        called, place = self._called, self._called.place
        request = self._http.build_request(
            "POST", called.url, headers=headers_of(place, self.media_type), content=called.body
        )
        try:
            async with asyncio.timeout(place.first_token_s) as first:
                await self._hear(request, first)
        except TimeoutError as error:
            if self._has_begun:
                raise
            told = f"said nothing within {place.first_token_s:g} s"
            raise self._failed("timeout", told) from error

    async def _hear(self, request: httpx.Request, first: asyncio.Timeout) -> None:
        reply = await self._http.send(request, stream=True)
        try:
            await self._check(reply)
            await self.read(reply, first)
        finally:
            await reply.aclose()

    async def read(self, reply: httpx.Response, first: asyncio.Timeout) -> None:
        """All of a good answer; `first` is the deadline of its beginning. Raises BrokenStream."""
        events, num_bytes = Events(), 0
        async for piece in reply.aiter_raw():
            num_bytes += len(piece)
            self._num_silent_bytes += len(piece)
            if num_bytes > MAX_STREAM_BYTES:
                raise BrokenStream(f"an answer is larger than {MAX_STREAM_BYTES} bytes")
            if self._num_silent_bytes > MAX_SILENT_BYTES:
                raise BrokenStream(f"it says nothing in {MAX_SILENT_BYTES} bytes")
            for data in events.feed(piece):
                for delta in self.listener.hear(data):
                    if not self._has_begun and delta.parts:
                        self.begun(first)
                    self._count_piece(delta)
                    await self.tell(delta)
            if self.listener.is_over:
                return
        self.listener.end()

    def begun(self, first: asyncio.Timeout) -> None:
        """It has until its end now."""
        self._has_begun = True
        first.reschedule(None)

    def _count_piece(self, delta: Delta) -> None:
        if not delta.parts:
            return
        most = self._called.most_pieces
        self._num_pieces, self._num_silent_bytes = self._num_pieces + 1, 0
        if most is not None and self._num_pieces > most:
            raise BrokenStream("it goes on after as many tokens as were asked for")

    async def tell(self, delta: Delta) -> None:
        """Whoever reads, when there is room."""
        await self._heard.put(delta)

    async def _check(self, reply: httpx.Response) -> None:
        status, media = reply.status_code, reply.headers.get("content-type", "")
        encoding = reply.headers.get("content-encoding", "identity")
        if status == httpx.codes.OK and media.startswith(self.media_type):
            if encoding.lower() != "identity":
                shown = self._shown(encoding, MAX_TYPE_CHARACTERS)
                raise self._failed("protocol", f"sent an answer in the encoding {shown!r}")
            return
        if status == httpx.codes.OK:
            shown = self._shown(media, MAX_TYPE_CHARACTERS)
            raise self._failed("protocol", f"sent {shown!r} instead of {self.media_type}")
        raise self._refused(status, reply.headers, await _some_of(reply))

    def _refused(self, status: int, headers: Mapping[str, str], body: bytes) -> UpstreamFailed:
        told, code = _error_of(body)
        told = self._without_secrets(told)
        if status in CLIENTS_FAULT:
            is_context = code in CONTEXT_CODES or any(word in told for word in CONTEXT_WORDS)
            trouble = Trouble.CONTEXT if is_context else Trouble.REQUEST
            told = told or f"{self._name} refused the request with status {status}"
            code = "context_length_exceeded" if is_context else "upstream_refused"
            return UpstreamFailed(told, f"status_{status}", trouble, status, None, code)
        if status in KEY_TROUBLE:
            return self._failed(f"status_{status}", "refuses its API key", cool_s=KEY_COOLDOWN_S)
        cool_s = _patience(headers) if status in (429, 503, 529) else None
        return self._failed(f"status_{status}", f"answered with status {status}", cool_s=cool_s)

    def _broken(self, broken: BrokenStream) -> UpstreamFailed:
        told = self._shown(str(broken), MAX_TOLD_CHARACTERS) if broken.may_tell else str(broken)
        return self._failed("broken_stream", f"broke its stream: {told}")

    @property
    def _name(self) -> str:
        return f"the deployment {self._called.place.deployment_id!r}"

    def _failed(self, kind: str, told: str, *, cool_s: float | None = None) -> UpstreamFailed:
        return UpstreamFailed(f"{self._name} {told}", kind, cool_s=cool_s)

    def _shown(self, told: str, most: int) -> str:
        return self._without_secrets(told)[:most]

    def _without_secrets(self, told: str) -> str:
        place = self._called.place
        for secret in (place.api_key, *place.headers.values()):
            if secret:
                told = told.replace(secret, "…")
        return told


def _or(value: int | None, otherwise: int) -> int:
    return otherwise if value is None else value


async def _some_of(reply: httpx.Response) -> bytes:
    """The beginning of an error's body."""
    found = bytearray()
    async for piece in reply.aiter_raw():
        found += piece
        if len(found) >= MAX_ERROR_BYTES:
            break
    return bytes(found[:MAX_ERROR_BYTES])


def _error_of(body: bytes) -> tuple[str, str]:
    """Message and code, as both dialects have them; nothing where it is something else."""
    try:
        fields = orjson.loads(body)
    except orjson.JSONDecodeError:
        return "", ""
    error = fields.get("error") if isinstance(fields, dict) else None
    if not isinstance(error, dict):
        return "", ""
    message, code = error.get("message"), error.get("code")
    return (message if isinstance(message, str) else ""), (code if isinstance(code, str) else "")


def _patience(headers: Mapping[str, str]) -> float | None:
    """How long a server wants to be left alone, in seconds; None where it does not say."""
    for name, unit_s in (("retry-after-ms", 0.001), ("retry-after", 1.0)):
        try:
            seconds = float(headers.get(name, "")) * unit_s
        except ValueError:
            continue
        if math.isfinite(seconds) and seconds >= 0:
            return seconds
    return None
