"""Health, version, metrics and the view of the cluster. Owns which of them are open to everybody."""

from __future__ import annotations

from functools import cache, partial
from importlib import metadata
from typing import TYPE_CHECKING

import orjson
from fastapi import APIRouter
from starlette.responses import Response

from coordinator.edge.http.bodies import json_response
from coordinator.edge.operations.openapi import describe, docs_page

if TYPE_CHECKING:
    from collections.abc import Sequence

    from fastapi import FastAPI

    from coordinator.cluster.service_api import Service
    from coordinator.edge.answers.adapters import AdapterBook
    from coordinator.edge.telemetry.metrics import EdgeMetrics

EXPOSITION = "text/plain; version=0.0.4; charset=utf-8"


def version() -> str:
    """The installed distribution's version, or that of a source tree."""
    try:
        return metadata.version("baton-serve")
    except metadata.PackageNotFoundError:
        return "0+source"


class OpenRoutes:
    """What load balancers ask without a key; tells nothing but one bit."""

    def __init__(self, service: Service) -> None:
        self._service = service

    def router(self) -> APIRouter:
        """Their routes."""
        router = APIRouter()
        for path, endpoint in (("/health", self.health), ("/live", self.live)):
            router.add_api_route(path, endpoint, methods=["GET"], response_model=None)
        return router

    async def health(self) -> Response:
        """200 when a request sent now could be served, else 503."""
        return Response(status_code=200 if self._service.is_ready() else 503)

    async def live(self) -> Response:
        """200 as long as this process answers."""
        return Response(status_code=200)


class AdminRoutes:
    """What operators ask."""

    def __init__(
        self,
        service: Service,
        metrics: EdgeMetrics,
        front_door: Sequence[str],
        adapters: AdapterBook | None = None,
    ) -> None:
        self._service, self._adapters = service, adapters
        self._metrics = metrics
        self._front_door = list(front_door)

    def router(self) -> APIRouter:
        """Their routes."""
        router = APIRouter()
        for path, endpoint in (("/cluster", self.cluster), ("/cluster/audit", self.audit)):
            router.add_api_route(path, endpoint, methods=["GET"], response_model=None)
        router.add_api_route("/cluster/drain", self.drain, methods=["POST"], response_model=None)
        return router

    def metrics_router(self) -> APIRouter:
        """The one that scrapers ask, and need nothing else for."""
        router = APIRouter()
        router.add_api_route("/metrics", self.metrics, methods=["GET"], response_model=None)
        return router

    async def metrics(self) -> Response:
        """Prometheus' text format."""
        return Response(self._metrics.exposition(), headers={"content-type": EXPOSITION})

    async def cluster(self) -> Response:
        """Workers, blocks, live requests, the last two minutes, which of `/keys` and `/cluster/deployments` there are, and
        adapters where there may be some."""
        view = self._service.cluster()
        view |= {"recent": self._metrics.recent.view(), "front_door": self._front_door}
        if self._adapters is not None:
            view["adapters"] = self._adapters.view(view["workers"])
        return json_response(view)

    async def drain(self) -> Response:
        """Take no new request from now on: `/health` says 503, and what is here goes on until it has ended."""
        return json_response(self._service.drain())

    async def audit(self) -> Response:
        """Every account, and whether they add up."""
        return json_response(await self._service.audit())


def document(app: FastAPI, router: APIRouter, *, has_keys: bool) -> None:
    """`/version`, `/openapi.json` and `/docs` behind the same keys as the rest. Both are made once, by `state.write_documents`
    before anybody asks: that keeps the interpreter busy."""
    described = cache(partial(describe, app, has_keys=has_keys))
    spelled = cache(lambda: orjson.dumps(described()))
    written = cache(lambda: docs_page(described()))
    app.state.write_documents = lambda: (spelled(), written())

    async def tell_version() -> Response:
        return json_response({"version": version()})

    async def openapi() -> Response:
        return Response(spelled(), media_type="application/json")

    async def docs() -> Response:
        page, policy = written()
        headers = {"content-security-policy": policy, "x-content-type-options": "nosniff"}
        return Response(page, headers=headers, media_type="text/html")

    add = router.add_api_route
    add("/version", tell_version, methods=["GET"], response_model=None)
    add("/openapi.json", openapi, methods=["GET"], response_model=None, include_in_schema=False)
    add("/docs", docs, methods=["GET"], response_model=None, include_in_schema=False)
