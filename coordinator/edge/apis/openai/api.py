"""OpenAI's API as the edge mounts it. Owns nothing but what belongs to it."""

from __future__ import annotations

from typing import TYPE_CHECKING

from coordinator.edge.apis.openai.dialects.replies import error_body
from coordinator.edge.apis.openai.embeddings import EmbeddingRoutes
from coordinator.edge.apis.openai.responses.routes import ResponseRoutes
from coordinator.edge.apis.openai.routes import GenerationRoutes
from coordinator.edge.apis.openai.text_routes import TextRoutes
from coordinator.edge.http.route_list import joined

if TYPE_CHECKING:
    from fastapi import APIRouter

    from coordinator.edge.answers.edge import Edge
    from coordinator.edge.http.error_replies import Failure


class OpenAiApi:
    """`/v1`, `/tokenize` and `/detokenize`; it tells the failures of every path that is no other API's."""

    prefix = header = ""

    def __init__(self, edge: Edge) -> None:
        self._routes = (
            GenerationRoutes(edge),
            EmbeddingRoutes(edge),
            ResponseRoutes(edge),
            TextRoutes(edge),
        )

    def router(self) -> APIRouter:
        """All of its routes."""
        return joined(routes.router() for routes in self._routes)

    def failure(self, failure: Failure) -> bytes:
        """OpenAI's error object."""
        return error_body(failure)
