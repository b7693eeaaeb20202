"""The autoscaler's settings over HTTP. Owns the body of `/cluster/autoscale`; what it means is the policy's."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Literal

from fastapi import APIRouter, Request
from pydantic import BaseModel, ConfigDict, Field
from starlette.responses import Response  # noqa: TC002 - FastAPI reads the annotation

from coordinator.cluster.service_api import AutoscaleWish
from coordinator.edge.http.bodies import body_schema, check_fields, json_response, parse_object
from coordinator.edge.http.field_types import Float
from protocol.ids import MAX_WORKERS

if TYPE_CHECKING:
    from coordinator.cluster.service_api import AutoscaleControl
    from coordinator.edge.http.bodies import BodyReader

Milliseconds = Annotated[Float, Field(gt=0, le=86_400_000)]
Workers = Annotated[int, Field(strict=True, ge=1, le=MAX_WORKERS)]
Seconds = Annotated[Float, Field(ge=1, le=86_400)]
Bounds = Annotated[
    list[Annotated[int, Field(strict=True, ge=0, le=MAX_WORKERS)]],
    Field(min_length=2, max_length=2),
]
PATH = "/cluster/autoscale"


class AutoscaleRequest(BaseModel):
    """What is to be different; what is not named stays. Ranges are [least, most] workers."""

    model_config = ConfigDict(extra="forbid")

    mode: Literal["on", "off", "dry-run"] | None = None
    ttft_ms: Milliseconds | None = None
    tpot_ms: Milliseconds | None = None
    goal: Annotated[Float, Field(gt=0, lt=1)] | None = None
    prefill: Bounds | None = None
    decode: Bounds | None = None
    total: Workers | None = None
    idle_s: Seconds | None = None

    def wish(self) -> AutoscaleWish:
        """As the policy takes it."""
        return AutoscaleWish(
            mode=self.mode,
            ttft_ms=self.ttft_ms,
            tpot_ms=self.tpot_ms,
            goal=self.goal,
            prefill=_pair(self.prefill),
            decode=_pair(self.decode),
            total=self.total,
            idle_s=self.idle_s,
        )


def _pair(bounds: list[int] | None) -> tuple[int, int] | None:
    return None if bounds is None else (bounds[0], bounds[1])


class AutoscaleRoutes:
    """What operators read and change; both answer with the settings in force."""

    def __init__(self, policy: AutoscaleControl, bodies: BodyReader) -> None:
        self._policy = policy
        self._bodies = bodies

    def router(self) -> APIRouter:
        """Their routes."""
        router = APIRouter()
        router.add_api_route(PATH, self.show, methods=["GET"], response_model=None)
        extra = body_schema(AutoscaleRequest)
        router.add_api_route(
            PATH, self.change, methods=["POST"], response_model=None, openapi_extra=extra
        )
        return router

    async def show(self) -> Response:
        """SLO, ranges and mode."""
        return json_response(self._policy.settings())

    async def change(self, request: Request) -> Response:
        """Change them while the pools serve."""
        asked = await self._bodies.read(
            request, lambda body: check_fields(parse_object(body), AutoscaleRequest)
        )
        return json_response(self._policy.change(asked.wish()))
