"""The HTTP server around the application. Owns how uvicorn is set up: its loop, its connections, its patience."""

from __future__ import annotations

import asyncio
import functools
import logging
import sys
from typing import TYPE_CHECKING, Any, cast

import uvicorn
from uvicorn.config import STARTUP_FAILURE

from coordinator.edge.http.wire.connection import Connection, Gate

if TYPE_CHECKING:
    import socket
    from collections.abc import Callable, Sequence

    from coordinator.edge.http.tls import Tls
    from coordinator.edge.http.wire.limits import WireLimits


log = logging.getLogger(__name__)


class TlsServer(uvicorn.Server):
    """uvicorn's, but that a client has as long for its handshake as for a head: uvicorn leaves it a minute."""

    def __init__(self, config: uvicorn.Config, handshake_s: float) -> None:
        super().__init__(config)
        self._handshake_s = handshake_s

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """As uvicorn's for a host and a port; there are no `sockets`."""
        assert sockets is None, "it listens itself"
        await self.lifespan.startup()
        if self.lifespan.should_exit:
            sys.exit(STARTUP_FAILURE)
        config, loop = self.config, asyncio.get_running_loop()
        try:
            server = await loop.create_server(
                self._connection,
                host=config.host,
                port=config.port,
                ssl=config.ssl,
                ssl_handshake_timeout=self._handshake_s,
                backlog=config.backlog,
            )
        except OSError as error:
            log.error("%s", error)  # noqa: TRY400 - told to people
            await self.lifespan.shutdown()
            sys.exit(STARTUP_FAILURE)
        self.servers = [server]
        self.started = True

    def _connection(self) -> asyncio.Protocol:
        make = cast("Any", self.config.http_protocol_class)
        made: asyncio.Protocol = make(
            config=self.config, server_state=self.server_state, app_state=self.lifespan.state
        )
        return made


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
    return uvicorn.Server(config) if tls is None else TlsServer(config, gate.limits.head_deadline_s)
