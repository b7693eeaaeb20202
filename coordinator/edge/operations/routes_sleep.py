"""Sleep over HTTP, by vLLM's names. Owns what stands behind their `?`; how a model sleeps is the cluster's."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from fastapi import APIRouter, Request
from starlette.responses import Response

from coordinator.edge.http.bodies import json_response
from coordinator.edge.http.query import check_names, choice
from protocol.errors import ModelNotFound
from protocol.sleeping import LEVELS, Part

if TYPE_CHECKING:
    from coordinator.cluster.service_api import SleepControl
    from coordinator.edge.answers.edge import Edge

MODES = ("wait",)
"""vLLM's others end or hold the answers that are being written."""
SCHEMAS: dict[str, dict[str, Any]] = {
    "model": {"type": "string"},
    "level": {"type": "integer", "enum": sorted(LEVELS)},
    "mode": {"type": "string", "enum": list(MODES)},
    "tags": {"type": "array", "items": {"type": "string", "enum": [part.value for part in Part]}},
}
SLEEP, WAKE_UP, IS_SLEEPING = ("level", "mode", "model"), ("tags", "model"), ("model",)


class SleepRoutes:
    """Each answer comes when it is so. Without `model` all models are meant that have workers."""

    def __init__(self, edge: Edge, sleeping: SleepControl) -> None:
        self._edge, self._sleeping = edge, sleeping

    def router(self) -> APIRouter:
        """Their routes."""
        router = APIRouter()
        for path, endpoint, method, names in (
            ("/sleep", self.sleep, "POST", SLEEP),
            ("/wake_up", self.wake_up, "POST", WAKE_UP),
            ("/is_sleeping", self.is_sleeping, "GET", IS_SLEEPING),
        ):
            told = {
                "parameters": [
                    {"name": name, "in": "query", "schema": SCHEMAS[name]} for name in names
                ]
            }
            router.add_api_route(
                path, endpoint, methods=[method], response_model=None, openapi_extra=told
            )
        return router

    async def sleep(self, request: Request) -> Response:
        """Give memory back in the next moment in which nobody is served."""
        asked = request.query_params
        check_names(asked, SLEEP)
        level = choice(asked.get("level", "1"), "level", [str(level) for level in LEVELS])
        choice(asked.get("mode", "wait"), "mode", MODES)
        await self._sleeping.sleep(self._model(request), int(level))
        return Response()

    async def wake_up(self, request: Request) -> Response:
        """Take it again, all of it or what `tags` name."""
        check_names(request.query_params, WAKE_UP)
        tags = request.query_params.getlist("tags") or [part.value for part in Part]
        parts = [Part(choice(tag, "tags", [part.value for part in Part])) for tag in tags]
        await self._sleeping.wake(self._model(request), parts)
        return Response()

    async def is_sleeping(self, request: Request) -> Response:
        """Whether all that are meant sleep."""
        check_names(request.query_params, IS_SLEEPING)
        return json_response({"is_sleeping": self._sleeping.is_asleep(self._model(request))})

    def _model(self, request: Request) -> str | None:
        name = request.query_params.get("model")
        if name is None:
            return None
        if name not in self._edge.own_names:
            names = ", ".join(self._edge.own_names)
            raise ModelNotFound(f"the model {name!r} is not served here; served: {names}", "model")
        return self._edge.of(name).model.name
