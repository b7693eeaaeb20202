"""Requests to one endpoint over kept-alive connections. Owns the pool of connections, deadlines and error texts."""

from __future__ import annotations

import asyncio
import ssl
import time
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

import msgspec

from benchmarks.serve.answer import Answer, error_text
from benchmarks.serve.connection import Connection, ConnectionLost, Lags, Origin
from protocol.errors import BatonError, ConfigError

if TYPE_CHECKING:
    from collections.abc import Mapping

    from benchmarks.serve.answer import Outcome

MAX_ERROR_BYTES = 1 << 16
CONNECT_TIMEOUT_S = 10.0


def parse_url(url: str, *, insecure: bool = False) -> tuple[Origin, str]:
    """Where to connect, and the path that every request's path is put behind; a `/v1` at its end is dropped."""
    parts = urlsplit(url if "://" in url else f"http://{url}")
    try:
        port = parts.port
    except ValueError:
        port = 0
    if parts.scheme not in ("http", "https") or not parts.hostname or port == 0:
        raise ConfigError(f"--url: {url!r} is no URL; write http://HOST:PORT")
    tls = None
    if parts.scheme == "https":
        tls = ssl.create_default_context()
        if insecure:
            tls.check_hostname, tls.verify_mode = False, ssl.CERT_NONE
    origin = Origin(parts.hostname, port or (443 if tls else 80), tls)
    return origin, parts.path.rstrip("/").removesuffix("/v1")


class Client:
    """Within one event loop. `lags` has every read's delay; `idle` connections are used last in, first out."""

    def __init__(
        self, origin: Origin, prefix: str, headers: Mapping[str, str], *, timeout_s: float
    ) -> None:
        self.lags = Lags()
        self._origin = origin
        self._timeout_s = timeout_s
        self._idle: list[Connection] = []
        self._prefix = prefix
        host = f"[{origin.host}]" if ":" in origin.host else origin.host
        fields = {"Host": f"{host}:{origin.port}", "User-Agent": "baton-bench", **headers}
        self._head = "".join(f"{name}: {value}\r\n" for name, value in fields.items())

    async def connect(self) -> None:
        """Have a connection open; BatonError when nobody listens there."""
        where = f"{self._origin.host}:{self._origin.port}"
        try:
            async with asyncio.timeout(CONNECT_TIMEOUT_S):
                self._idle.append(await Connection.open(self._origin, self.lags))
        except (TimeoutError, OSError) as error:
            raise BatonError(
                f"--url: no server at {where} ({str(error) or type(error).__name__}); "
                "start one with: baton serve"
            ) from None

    def message(self, path: str, body: bytes, request_id: str) -> bytes:
        """A whole POST, to be made before the clock runs."""
        head = (
            f"POST {self._prefix}{path} HTTP/1.1\r\n{self._head}Content-Type: application/json\r\n"
            f"x-request-id: {request_id}\r\nContent-Length: {len(body)}\r\n\r\n"
        )
        return head.encode() + body

    async def ask(self, message: bytes, num_prompt_tokens: int) -> Outcome:
        """Send and read a whole streamed answer; what goes wrong is in the outcome's error."""
        answer = Answer(time.perf_counter())
        unparsed = bytearray()

        def sink(data: bytes, at_s: float) -> None:
            if len(unparsed) < MAX_ERROR_BYTES and not answer.times_s:
                unparsed.extend(data)
            answer.feed(data, at_s)

        try:
            async with asyncio.timeout(self._timeout_s):
                status = await self._exchange(message, sink)
            if status != 200:
                answer.error = f"HTTP {status}: {_explain(bytes(unparsed))}"
        except TimeoutError:
            answer.error = f"no whole answer within {self._timeout_s:g} s (--request-timeout)"
        except (ConnectionLost, OSError) as error:
            answer.error = f"{type(error).__name__}: {error}"
        return answer.finish(num_prompt_tokens)

    async def get_json(self, path: str) -> Any:
        """The body of a GET; None when the endpoint has no such thing or does not answer."""
        body = bytearray()
        message = f"GET {self._prefix}{path} HTTP/1.1\r\n{self._head}\r\n".encode()
        try:
            async with asyncio.timeout(min(10.0, self._timeout_s)):
                status = await self._exchange(message, lambda data, _: body.extend(data))
            return msgspec.json.decode(bytes(body)) if status == 200 else None
        except (TimeoutError, ConnectionLost, OSError, msgspec.DecodeError):
            return None

    async def _exchange(self, message: bytes, sink: Any) -> int:
        connection = self._take_idle() or await Connection.open(self._origin, self.lags)
        try:
            status = await connection.exchange(message, sink)
        except ConnectionLost as error:
            if not error.stale:
                raise
            connection = await Connection.open(self._origin, self.lags)
            status = await connection.exchange(message, sink)
        if connection.is_open:
            self._idle.append(connection)
        return status

    def _take_idle(self) -> Connection | None:
        while self._idle:
            connection = self._idle.pop()
            if connection.is_open:
                return connection
        return None

    def close(self) -> None:
        """Close what is idle."""
        for connection in self._idle:
            connection.close()
        self._idle.clear()


def _explain(body: bytes) -> str:
    """One line of an error's body."""
    try:
        decoded = msgspec.json.decode(body)
    except msgspec.DecodeError:
        return body[:200].decode("utf-8", "replace")
    detail = decoded.get("error", decoded) if isinstance(decoded, dict) else decoded
    return error_text(detail)
