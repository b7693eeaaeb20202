"""What a request keeps until it is answered. Owns that it is let go of however the request ends: also where it is refused between
being given something and answering with it."""

from __future__ import annotations

from contextvars import ContextVar
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable

    from starlette.types import ASGIApp, Receive, Scope, Send


class _Kept:
    """Of one request, until it `is_over`."""

    def __init__(self) -> None:
        self._kept: list[Callable[[], None]] = []
        self._is_over = False

    def keep(self, let_go: Callable[[], None]) -> None:
        if self._is_over:  # its stream goes on without it
            let_go()
        else:
            self._kept.append(let_go)

    def let_go(self) -> None:
        self._is_over = True
        for let_go in self._kept:
            let_go()


_kept: ContextVar[_Kept] = ContextVar("what this request keeps")


def keep(let_go: Callable[[], None]) -> None:
    """Call `let_go` when the request that is being handled has been answered."""
    _kept.get().keep(let_go)


class Holds:
    """ASGI middleware: lets go of what `keep` was given."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass everything on."""
        kept = _Kept()
        token = _kept.set(kept)
        try:
            await self._app(scope, receive, send)
        finally:
            _kept.reset(token)
            kept.let_go()
