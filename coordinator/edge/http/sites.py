"""Which web pages may use this server through somebody's browser. Owns the checks of Host and Origin.

A server without keys trusts whoever reaches it, and a browser on the same host reaches it for every page it shows. So
without keys a request must name this server as a browser would that means it (a name an attacker points here is not
one of those: DNS rebinding), and nothing but reading is done for a page of another site. With keys the key decides:
a foreign page has none.
"""

from __future__ import annotations

import ipaddress
from dataclasses import dataclass
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

from starlette.datastructures import Headers
from starlette.responses import Response

from coordinator.edge.http.error_replies import ForeignHost, ForeignOrigin, failure_of

if TYPE_CHECKING:
    from collections.abc import Callable

    from starlette.types import ASGIApp, Receive, Scope, Send

    from coordinator.edge.http.error_replies import Spellers

ANY = "*"
PORTS = {"http": 80, "https": 443}
READING = ("GET", "HEAD", "OPTIONS")


@dataclass(frozen=True, slots=True)
class Sites:
    """What an operator allows. `checks_host` is for servers that nothing else guards."""

    checks_host: bool = False
    hosts: tuple[str, ...] = ()
    origins: tuple[str, ...] = ()
    methods: tuple[str, ...] = (ANY,)
    headers: tuple[str, ...] = (ANY,)
    credentials: bool = False


class SiteGuard:
    """ASGI middleware for a server without keys."""

    def __init__(
        self,
        app: ASGIApp,
        sites: Sites,
        spellers: Spellers,
        refused: Callable[[int, str], None],
    ) -> None:
        self._app = app
        self._sites = sites
        self._spellers = spellers
        self._refused = refused

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass a request on, or refuse it."""
        error = self._objection(scope) if scope["type"] == "http" else None
        if error is None:
            await self._app(scope, receive, send)
            return
        failure = failure_of(error)
        self._refused(failure.status, failure.kind)
        body = self._spellers.of(scope["path"], Headers(scope=scope))(failure)
        reply = Response(body, failure.status, media_type="application/json")
        await reply(scope, receive, send)

    def _objection(self, scope: Scope) -> ForeignHost | ForeignOrigin | None:
        headers = {bytes(name): str(value, "latin-1") for name, value in scope["headers"]}
        host = headers.get(b"host", "")
        if self._sites.checks_host and host and not self._is_own(host):
            return ForeignHost(
                f"this server is not called {host!r}; allow the name with --allowed-hosts"
            )
        if scope["method"] in READING:
            return None
        origin = headers.get(b"origin")
        if origin is None:
            is_foreign = headers.get(b"sec-fetch-site") in ("cross-site", "same-site")
        else:
            is_foreign = not self._is_allowed(origin, scope["scheme"], host)
        if not is_foreign:
            return None
        return ForeignOrigin(
            f"pages of {origin or 'another site'} may not use this server; allow them with "
            "--allowed-origins, or set --api-key"
        )

    def _is_own(self, host: str) -> bool:
        if ANY in self._sites.hosts:
            return True
        name = name_of(host)
        return name is not None and (name in self._sites.hosts or is_local(name))

    def _is_allowed(self, origin: str, scheme: str, host: str) -> bool:
        if ANY in self._sites.origins or origin in self._sites.origins:
            return True
        own = site_of(f"{scheme}://{host}")
        return own is not None and site_of(origin) == own


def name_of(host: str) -> str | None:
    """The name or address in a Host header, without its port; None for what is neither."""
    try:
        parts = urlsplit(f"//{host}")
        _ = parts.port
    except ValueError:
        return None
    is_plain = not (parts.path or parts.query or parts.fragment or parts.username is not None)
    return parts.hostname.rstrip(".") if is_plain and parts.hostname else None


def site_of(origin: str) -> tuple[str, str, int] | None:
    """Scheme, host and port of an Origin header; None for "null" and other opaque ones."""
    try:
        parts = urlsplit(origin)
        port = parts.port
    except ValueError:
        return None
    if parts.scheme not in PORTS or not parts.hostname:
        return None
    return parts.scheme, parts.hostname, PORTS[parts.scheme] if port is None else port


def is_local(name: str) -> bool:
    """Names that no attacker can point elsewhere: localhost, and addresses as they are."""
    if name == "localhost" or name.endswith(".localhost"):
        return True
    try:
        ipaddress.ip_address(name.partition("%")[0])
    except ValueError:
        return False
    return True
