"""Every HTTP request by its route. Owns the two families that prometheus-fastapi-instrumentator made common, as vLLM has them.

Statuses are grouped ("2xx"), and paths are those of routes, so that no client can add a series. A client that left
before it was answered counts as 499, so "4xx".
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from prometheus_client import Counter, Histogram

from protocol.clock import SystemClock

if TYPE_CHECKING:
    from collections.abc import Callable

    from prometheus_client import CollectorRegistry
    from starlette.types import ASGIApp, Message, Receive, Scope, Send


BUCKETS = (0.1, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0)
METHODS = ("GET", "HEAD", "POST", "OPTIONS", "PUT", "PATCH", "DELETE")
LEFT = 499
FAILED = 500


class HttpMetrics:
    """ASGI middleware: a request is counted when its handler has ended; `template_of` is the route of a path."""

    def __init__(
        self, app: ASGIApp, template_of: Callable[[str], str], registry: CollectorRegistry
    ) -> None:
        self._app = app
        self._template_of = template_of
        self._clock = SystemClock()
        self._total = Counter(
            "http_requests", "Requests", ("handler", "method", "status"), registry=registry
        )
        self._seconds = Histogram(
            "http_request_duration_seconds",
            "From a request's head to the end of its answer",
            ("handler", "method"),
            buckets=BUCKETS,
            registry=registry,
        )

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass everything on."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        began_s, status = self._clock.now_s(), LEFT

        async def watched(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
            await send(message)

        try:
            await self._app(scope, receive, watched)
        except Exception:
            status = FAILED
            raise
        finally:
            handler = self._template_of(scope["path"])
            method = scope["method"] if scope["method"] in METHODS else "other"
            self._total.labels(handler, method, f"{status // 100}xx").inc()
            self._seconds.labels(handler, method).observe(self._clock.now_s() - began_s)
