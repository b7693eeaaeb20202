"""The HTTP server around the application. Owns how uvicorn is set up: its loop, its connections, its patience."""

from __future__ import annotations

import functools
from typing import TYPE_CHECKING, Any, cast

import uvicorn

from coordinator.edge.http.wire.connection import Connection, Gate

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from coordinator.edge.http.tls import Tls
    from coordinator.edge.http.wire.limits import WireLimits


def make_server(  # noqa: PLR0913 - everything that a server is told
    app: Any,
    *,
    host: str,
    port: int,
    limits: WireLimits | None = None,
    refused: Callable[[int, str], None] | None = None,
    tls: Tls | None = None,
    proxies: Sequence[str] = (),
) -> uvicorn.Server:
    """A server that is ready to run; `refused` is told status and type of what never became a request. With `tls` it
    speaks HTTPS. What `X-Forwarded-*` says counts from `proxies`, addresses and networks, only."""
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
        proxy_headers=bool(proxies),
        forwarded_allow_ips=list(proxies),
        ssl_context_factory=None if tls is None else lambda _config, _default: tls.context,
        timeout_graceful_shutdown=1,
    )
    return uvicorn.Server(config)
