"""GET /cluster/deployments: how the deployments of model groups do. Owns the route; no key is in an answer."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from fastapi import APIRouter
from starlette.responses import Response  # noqa: TC002 - FastAPI reads the annotation

from coordinator.edge.http.bodies import json_response

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence


class DeploymentRoutes:
    """What operators ask of them."""

    def __init__(self, view: Callable[[], Sequence[dict[str, Any]]]) -> None:
        self._view = view

    def router(self) -> APIRouter:
        """Their route."""
        router = APIRouter()
        router.add_api_route(
            "/cluster/deployments", self.deployments, methods=["GET"], response_model=None
        )
        return router

    async def deployments(self) -> Response:
        """Each with its state: up, or left alone for a while."""
        return json_response({"data": list(self._view())})
