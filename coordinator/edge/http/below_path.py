"""The path that a proxy has this server below. Owns that it is taken off before anybody looks at a path, if it is there.

Some proxies take it away themselves and some do not; both are served, so a prefix with which one of our own paths begins
would mean two things, and is refused.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from protocol.errors import ConfigError

if TYPE_CHECKING:
    from collections.abc import Iterable

    from starlette.types import ASGIApp, Receive, Scope, Send


def prefix_text(text: str) -> str:
    """A path's beginning as it is kept: no slash at its end. ValueError says what to write."""
    if not text.strip("/"):
        return ""
    if not text.startswith("/") or "//" in text or not text.isprintable() or {*text} & {*"?#%"}:
        raise ValueError(f"{text!r} is no path: write it as /llm, as clients see it")
    return text.rstrip("/")


def check_prefix(prefix: str, paths: Iterable[str]) -> None:
    """Raise ConfigError where the beginning of one of our own `paths` is the same."""
    if prefix and any(f"{path}/".startswith(f"{prefix}/") for path in paths):
        told = f"--root-path: {prefix} is the beginning of this server's own paths"
        raise ConfigError(f"{told}; let the proxy have it below another one, as /llm{prefix}")


class BelowPath:
    """ASGI middleware, before all others."""

    def __init__(self, app: ASGIApp, prefix: str) -> None:
        self._app = app
        self._prefix = prefix

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass everything on, as if it had been asked of this server alone."""
        if scope["type"] == "http" and scope["path"].startswith(f"{self._prefix}/"):
            scope = {**scope, "path": scope["path"].removeprefix(self._prefix)}
        await self._app(scope, receive, send)
