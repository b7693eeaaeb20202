"""Anthropic's API as the edge mounts it. Owns nothing but what belongs to it."""

from __future__ import annotations

from typing import TYPE_CHECKING

from coordinator.edge.apis.anthropic.replies import error_body
from coordinator.edge.apis.anthropic.routes import VERSION_HEADER, MessageRoutes, ModelRoutes
from coordinator.edge.http.route_list import joined

if TYPE_CHECKING:
    from fastapi import APIRouter

    from coordinator.edge.answers.edge import Edge
    from coordinator.edge.http.error_replies import Failure


class AnthropicApi:
    """`/v1/messages`, and `/v1/models` for requests that name Anthropic's version."""

    prefix = "/v1/messages"
    header = VERSION_HEADER

    def __init__(self, edge: Edge) -> None:
        self._routes = (MessageRoutes(edge), ModelRoutes(edge))

    def router(self) -> APIRouter:
        """All of its routes."""
        return joined(routes.router() for routes in self._routes)

    def failure(self, failure: Failure) -> bytes:
        """Anthropic's error object."""
        return error_body(failure)
