"""Rollouts over HTTP. Owns the bodies of `/rollouts/*`; who answers, and what is loaded, is decided by the cluster."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any

from fastapi import APIRouter, Request
from pydantic import BaseModel, ConfigDict, Field
from starlette.responses import Response  # noqa: TC002 - FastAPI reads the annotation

from coordinator.edge.http.bodies import (
    Model,
    body_schema,
    check_fields,
    json_response,
    parse_object,
)
from coordinator.edge.http.field_types import Float

if TYPE_CHECKING:
    from coordinator.cluster.service_api import RevisionControl
    from coordinator.edge.http.bodies import BodyReader

MAX_REVISIONS = 64
Name = Annotated[str, Field(min_length=1, max_length=256)]
RevisionName = Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,31}$")]
Path = Annotated[str, Field(min_length=1, max_length=4096, pattern=r"^[^\x00]*$")]
Weight = Annotated[Float, Field(ge=0, le=1e6)]


class Named(BaseModel):
    """Which model, as clients call it."""

    model_config = ConfigDict(extra="forbid")

    model: Name


class StartRequest(Named):
    """A revision more: `source` is a directory, a .gguf file or a hub id, and left out for one that the server was started with;
    `weight` is its part of new conversations in per cent, once it is there."""

    revision: RevisionName
    source: Path | None = None
    weight: Annotated[Float, Field(ge=0, le=100)] = 0.0


class WeightsRequest(Named):
    """Of each revision its weight from now on; one that is not named gets nothing."""

    weights: Annotated[dict[RevisionName, Weight], Field(min_length=1, max_length=MAX_REVISIONS)]


class PromoteRequest(Named):
    """Which revision gets everything; left out, the one that serves beside the stable one."""

    revision: RevisionName | None = None


class RolloutRoutes:
    """What operators change, and see."""

    def __init__(self, revisions: RevisionControl, bodies: BodyReader) -> None:
        self._revisions, self._bodies = revisions, bodies

    def router(self) -> APIRouter:
        """Their routes."""
        router = APIRouter(prefix="/rollouts")
        for path, endpoint, model in (
            ("/start", self.start, StartRequest),
            ("/weights", self.weights, WeightsRequest),
            ("/promote", self.promote, PromoteRequest),
            ("/rollback", self.rollback, Named),
        ):
            router.add_api_route(
                path,
                endpoint,
                methods=["POST"],
                response_model=None,
                openapi_extra=body_schema(model),
            )
        router.add_api_route("", self.rollouts, methods=["GET"], response_model=None)
        return router

    async def start(self, request: Request) -> Response:
        """Load a revision beside those that serve; the answer comes when it is there."""
        asked = await self._read(request, StartRequest)
        await self._revisions.start(asked.model, asked.revision, asked.source, asked.weight)
        return self._shown(asked.model)

    async def weights(self, request: Request) -> Response:
        """Other weights, from the next conversation on."""
        asked = await self._read(request, WeightsRequest)
        self._revisions.weigh(asked.model, asked.weights)
        return self._shown(asked.model)

    async def promote(self, request: Request) -> Response:
        """Everything to one revision; the others go when nobody uses them."""
        asked = await self._read(request, PromoteRequest)
        self._revisions.promote(asked.model, asked.revision)
        return self._shown(asked.model)

    async def rollback(self, request: Request) -> Response:
        """Everything back to the revision that had it before."""
        asked = await self._read(request, Named)
        self._revisions.rollback(asked.model)
        return self._shown(asked.model)

    async def rollouts(self) -> Response:
        """Every model that has revisions."""
        return json_response({"object": "list", "data": self._revisions.view()})

    def _shown(self, name: str) -> Response:
        public = self._revisions.public_name(name)
        shown: dict[str, Any] = next(
            one for one in self._revisions.view() if public in one["names"]
        )
        return json_response(shown)

    async def _read(self, request: Request, model: type[Model]) -> Model:
        return await self._bodies.read(
            request, lambda body: check_fields(parse_object(body), model)
        )
