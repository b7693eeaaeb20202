"""Scaling over HTTP. Owns the bodies of `/cluster/scale` and of a worker's drain and role; the deciding is the scaler's."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Literal

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
from coordinator.edge.http.field_types import Float  # noqa: TC001 - pydantic reads the annotation
from protocol.errors import InvalidRequest
from protocol.ids import MAX_WORKERS
from protocol.roles import Role  # noqa: TC001 - pydantic reads the annotation

if TYPE_CHECKING:
    from collections.abc import Callable

    from coordinator.cluster.service_api import PoolControl
    from coordinator.edge.http.bodies import BodyReader

Count = Annotated[int, Field(strict=True, ge=0, le=MAX_WORKERS)]


class ScaleRequest(BaseModel):
    """How many workers each pool should have; a pool that is not named stays as it is. `model` is for servers of several."""

    model_config = ConfigDict(
        extra="forbid",
        json_schema_extra={
            "anyOf": [
                {"required": [pool], "properties": {pool: {"type": "integer"}}}
                for pool in ("prefill", "decode", "store")
            ]
        },
    )

    prefill: Count | None = None
    decode: Count | None = None
    store: Count | None = None
    model: str | None = None


class RoleRequest(BaseModel):
    """What a worker should do from now on."""

    model_config = ConfigDict(extra="forbid")

    role: Literal[Role.PREFILL, Role.DECODE]


class DrainRequest(BaseModel):
    """How long a worker that leaves may take; without a limit `--drain-grace` for its answers."""

    model_config = ConfigDict(extra="forbid")

    within_s: Annotated[Float, Field(ge=0, le=86_400)] | None = None


class PoolRoutes:
    """What operators change. Every answer comes at once; `GET /cluster` shows how far it is."""

    def __init__(
        self,
        pools: PoolControl,
        bodies: BodyReader,
        pools_of: Callable[[str], PoolControl] | None = None,
    ) -> None:
        self._pools = pools
        self._pools_of = pools_of
        self._bodies = bodies

    def router(self) -> APIRouter:
        """Their routes."""
        router = APIRouter()
        for path, endpoint, model in (
            ("/cluster/scale", self.scale, ScaleRequest),
            ("/cluster/workers/{worker_id}/role", self.role, RoleRequest),
        ):
            extra = body_schema(model)
            router.add_api_route(
                path, endpoint, methods=["POST"], response_model=None, openapi_extra=extra
            )
        drain, extra = "/cluster/workers/{worker_id}/drain", body_schema(DrainRequest)
        extra["requestBody"]["required"] = False
        router.add_api_route(
            drain, self.drain, methods=["POST"], response_model=None, openapi_extra=extra
        )
        return router

    async def scale(self, request: Request) -> Response:
        """Start or drain workers to reach the numbers."""
        asked = await self._read(request, ScaleRequest)
        if asked.prefill is None and asked.decode is None and asked.store is None:
            raise InvalidRequest("give prefill, decode or store: how many workers", "prefill")
        pools = self._pools if asked.model is None else self._of(asked.model)
        return json_response(pools.scale(asked.prefill, asked.decode, asked.store))

    def _of(self, model: str) -> PoolControl:
        if self._pools_of is None:
            raise InvalidRequest("model: this server has one; leave it out", "model")
        return self._pools_of(model)

    async def drain(self, request: Request, worker_id: str) -> Response:
        """Let a worker finish what it has, and leave; with `within_s` it is gone by then."""
        asked = await self._bodies.read(
            request, lambda body: check_fields(parse_object(body or b"{}"), DrainRequest)
        )
        return json_response(self._pools.drain(worker_id, asked.within_s))

    async def role(self, request: Request, worker_id: str) -> Response:
        """Move a worker to the other pool; nothing it is at is interrupted."""
        asked = await self._read(request, RoleRequest)
        return json_response(self._pools.set_role(worker_id, asked.role))

    async def _read(self, request: Request, model: type[Model]) -> Model:
        return await self._bodies.read(
            request, lambda body: check_fields(parse_object(body), model)
        )
