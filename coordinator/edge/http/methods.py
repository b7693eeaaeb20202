"""HEAD and OPTIONS for every route. Owns what they answer: GET's headers, and which methods there are."""

from __future__ import annotations

from typing import TYPE_CHECKING

from starlette.responses import Response

if TYPE_CHECKING:
    from starlette.types import ASGIApp, Message, Receive, Scope, Send

    from coordinator.edge.http.route_list import RouteList


class Methods:
    """ASGI middleware. HEAD is what GET answers without its body; OPTIONS names the methods of a path that exists."""

    def __init__(self, app: ASGIApp, routes: RouteList) -> None:
        self._app = app
        self._routes = routes

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass everything else on."""
        if scope["type"] != "http" or scope["method"] not in ("HEAD", "OPTIONS"):
            await self._app(scope, receive, send)
            return
        methods = self._routes.methods_of(scope["path"])
        if scope["path"] == "*":  # the server as a whole (RFC 9110, 9.3.7)
            methods = {method for route in self._routes for method in route.methods or ()}
        if scope["method"] == "OPTIONS" and methods:
            allowed = ", ".join(
                sorted({*methods, "OPTIONS", *(["HEAD"] if "GET" in methods else [])})
            )
            await Response(status_code=204, headers={"Allow": allowed})(scope, receive, send)
            return
        if scope["method"] == "HEAD" and "GET" in methods:
            await self._app({**scope, "method": "GET"}, receive, _without_body(send))
            return
        await self._app(scope, receive, send)


def _without_body(send: Send) -> Send:
    async def bodiless(message: Message) -> None:
        if message["type"] == "http.response.body":
            message = {**message, "body": b""}
        await send(message)

    return bodiless
