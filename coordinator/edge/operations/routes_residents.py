"""Models in memory, over HTTP. Owns the bodies of `/models/load` and `/models/unload`; who is in is decided by the cluster."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from fastapi import APIRouter, Request
from pydantic import BaseModel, ConfigDict
from starlette.responses import Response  # noqa: TC002 - FastAPI reads the annotation

from coordinator.edge.answers.responses import unless_left
from coordinator.edge.http.bodies import body_schema, check_fields, json_response, parse_object
from coordinator.edge.http.field_types import KeepAlive  # noqa: TC001 - pydantic reads the annotation
from protocol.errors import ModelNotFound
from protocol.keep_alive import parse_keep_alive

if TYPE_CHECKING:
    from coordinator.cluster.service_api import ModelControl
    from coordinator.edge.answers.edge import Edge


class NamedModel(BaseModel):
    """Which model, and how long it stays without use: seconds, or as `5m`; 0 until nobody uses it, negative for ever."""

    model_config = ConfigDict(extra="forbid")

    model: str
    keep_alive: KeepAlive | None = None


class ResidentRoutes:
    """What operators change, and see."""

    def __init__(self, edge: Edge, residents: ModelControl) -> None:
        self._edge, self._residents = edge, residents

    def router(self) -> APIRouter:
        """Their routes."""
        router = APIRouter()
        for path, endpoint in (("/models/load", self.load), ("/models/unload", self.unload)):
            router.add_api_route(
                path,
                endpoint,
                methods=["POST"],
                response_model=None,
                openapi_extra=body_schema(NamedModel),
            )
        router.add_api_route("/models", self.models, methods=["GET"], response_model=None)
        return router

    async def load(self, request: Request) -> Response:
        """Bring a model into memory; the answer comes when it is there."""
        asked = await self._read(request)
        name = self._name(asked)
        keep_alive_s = parse_keep_alive(asked.keep_alive, "keep_alive")
        await unless_left(request, self._residents.load(name, keep_alive_s))
        return json_response({"success": True, **self._card(name)})

    async def unload(self, request: Request) -> Response:
        """Take it out as soon as nobody uses it; the answer comes at once."""
        name = self._name(await self._read(request))
        self._residents.unload(name)
        return json_response({"success": True, **self._card(name)})

    async def models(self) -> Response:
        """Every model with its state."""
        cards = [self._card(served.model.name) for served in self._edge.models]
        return json_response({"object": "list", "data": cards})

    async def _read(self, request: Request) -> NamedModel:
        return await self._edge.bodies.read(
            request, lambda body: check_fields(parse_object(body), NamedModel)
        )

    def _name(self, asked: NamedModel) -> str:
        if asked.model not in self._edge.own_names:
            names = ", ".join(self._edge.own_names)
            told = f"the model {asked.model!r} is not served here; served: {names}; others are named when the server is started: baton serve A B"
            raise ModelNotFound(told, "model")
        return self._edge.of(asked.model).model.name

    def _card(self, name: str) -> dict[str, Any]:
        view = self._residents.view(name)
        return {"id": name, "status": {"value": view.pop("state")}, **view}
