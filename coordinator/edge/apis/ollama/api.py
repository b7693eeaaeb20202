"""Ollama's API as the edge mounts it. Owns nothing but what belongs to it."""

from __future__ import annotations

from typing import TYPE_CHECKING

from coordinator.edge.apis.ollama.dialects import error_body
from coordinator.edge.apis.ollama.embeddings import EmbeddingRoutes
from coordinator.edge.apis.ollama.routes import AnswerRoutes, ModelRoutes
from coordinator.edge.http.route_list import joined

if TYPE_CHECKING:
    from fastapi import APIRouter

    from coordinator.edge.answers.edge import Edge
    from coordinator.edge.http.error_replies import Failure


class OllamaApi:
    """What lies below `/api/`."""

    prefix = "/api/"
    header = ""

    def __init__(self, edge: Edge) -> None:
        self._routes = (AnswerRoutes(edge), EmbeddingRoutes(edge), ModelRoutes(edge))

    def router(self) -> APIRouter:
        """All of its routes."""
        return joined(routes.router() for routes in self._routes)

    def failure(self, failure: Failure) -> bytes:
        """Ollama's error object."""
        return error_body(failure)
