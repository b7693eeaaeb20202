"""`X-Request-Id` on every answer. Owns the label: a client's own when it is short and printable, else ours."""

from __future__ import annotations

from typing import TYPE_CHECKING

from starlette.datastructures import MutableHeaders

from coordinator.edge.http.limits import MAX_REQUEST_ID_CHARACTERS
from protocol.ids import new_request_id

if TYPE_CHECKING:
    from starlette.requests import Request
    from starlette.types import ASGIApp, Message, Receive, Scope, Send


LABEL = "baton.request_label"
ALSO = {b"anthropic-version": "request-id"}
"""By a header of the request, where else the clients that send it look for the label."""


def label_of(request: Request) -> str:
    """What answers, traces and logs call this request."""
    label: str = request.scope[LABEL]
    return label


class RequestIds:
    """ASGI middleware: adds the header to whatever the application answers."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass everything on; `label_of` tells the label."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        label = _label(scope)
        scope[LABEL] = label

        names = ["X-Request-Id", *(ALSO[name] for name, _ in scope["headers"] if name in ALSO)]

        async def labelled(message: Message) -> None:
            if message["type"] == "http.response.start":
                headers = MutableHeaders(scope=message)
                for name in names:
                    headers[name] = label
            await send(message)

        await self._app(scope, receive, labelled)


def _label(scope: Scope) -> str:
    own = next((value for name, value in scope["headers"] if name == b"x-request-id"), b"")
    label = str(own, "latin-1")
    if 0 < len(label) <= MAX_REQUEST_ID_CHARACTERS and label.isascii() and label.isprintable():
        return label
    return new_request_id()
