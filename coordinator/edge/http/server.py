"""The HTTP server around the application. Owns how uvicorn is set up: its loop, its connections, its patience."""

from __future__ import annotations

import functools
from typing import TYPE_CHECKING, Any, cast

import uvicorn

from coordinator.edge.http.wire.connection import Connection, Gate

if TYPE_CHECKING:
    from collections.abc import Callable

    from coordinator.edge.http.wire.limits import WireLimits


def make_server(
    app: Any,
    *,
    host: str,
    port: int,
    limits: WireLimits | None = None,
    refused: Callable[[int, str], None] | None = None,
) -> uvicorn.Server:
    """A server that is ready to run; `refused` is told status and type of what never became a request."""
    gate = Gate(limits, refused)
    config = uvicorn.Config(
        app,
        host=host,
        port=port,
        loop="uvloop",
        http=cast("Any", functools.partial(Connection, gate=gate)),
        ws="none",
        log_config=None,  # uvicorn's own would close the handlers that the process has
        log_level="warning",
        access_log=False,
        timeout_graceful_shutdown=1,
    )
    return uvicorn.Server(config)
