"""The HTTP application. Owns which routes there are and which keys they need; decides nothing else.

request ─► RequestIds ─► KeyGuard ─► apis/* ─► AnswerRequest ─► Edge.respond ─► GenerationRun ─► Service
                          Principal                                                  │
response ◄── responses ◄── Dialect (apis/*) ◄── Delta ◄── ChoiceText ◄── StreamEvent ─┘
"""

from __future__ import annotations

import asyncio
import gc
from contextlib import asynccontextmanager
from dataclasses import replace
from typing import TYPE_CHECKING

from fastapi import Depends, FastAPI
from starlette.middleware.cors import CORSMiddleware

from coordinator.edge.answers.affinity import REVISION_HEADER
from coordinator.edge.answers.answer_parts import Parsers
from coordinator.edge.answers.catalogue import Catalogue
from coordinator.edge.answers.edge import Edge
from coordinator.edge.answers.resumable import KeptStreams
from coordinator.edge.answers.sampling import SamplingDefaults
from coordinator.edge.answers.served import Offer, ServedModel, Shared, make_served
from coordinator.edge.apis.registry import APIS
from coordinator.edge.http import error_replies
from coordinator.edge.http.auth import KeyGuard, Keys, Scope
from coordinator.edge.http.below_path import BelowPath, check_prefix, prefix_text
from coordinator.edge.http.bodies import BodyReader
from coordinator.edge.http.error_replies import Spellers
from coordinator.edge.http.holds import Holds
from coordinator.edge.http.limits import EdgeLimits
from coordinator.edge.http.methods import Methods
from coordinator.edge.http.request_ids import RequestIds
from coordinator.edge.http.route_list import RouteList, joined
from coordinator.edge.http.side_work import SideWork
from coordinator.edge.http.sites import SiteGuard, Sites
from coordinator.edge.operations.routes_adapters import AdapterRoutes
from coordinator.edge.operations.routes_autoscale import AutoscaleRoutes
from coordinator.edge.operations.routes_deployments import DeploymentRoutes
from coordinator.edge.operations.routes_keys import KeyRoutes
from coordinator.edge.operations.routes_operations import AdminRoutes, OpenRoutes, document, version
from coordinator.edge.operations.routes_pools import PoolRoutes
from coordinator.edge.operations.routes_residents import ResidentRoutes
from coordinator.edge.operations.routes_rollouts import RolloutRoutes
from coordinator.edge.operations.routes_sleep import SleepRoutes
from coordinator.edge.operations.routes_ui import UiRoutes
from coordinator.edge.operations.routes_usage import UsageRoutes
from coordinator.edge.telemetry.http_metrics import HttpMetrics
from coordinator.edge.telemetry.ledger_metrics import LedgerCollector
from coordinator.edge.telemetry.loop_lag import LoopLag
from coordinator.edge.telemetry.metrics import EdgeMetrics
from coordinator.edge.telemetry.revision_metrics import RevisionCollector
from protocol.clock import SystemClock, wall_time_s

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Iterator, Sequence
    from contextlib import AbstractAsyncContextManager
    from pathlib import Path

    from fastapi import APIRouter

    from coordinator.accounts.accounts import Accounts
    from coordinator.cluster.service_api import (
        AutoscaleControl,
        ModelControl,
        PoolControl,
        RevisionControl,
        Service,
        SleepControl,
    )
    from coordinator.edge.answers.adapters import AdapterBook
    from coordinator.edge.answers.edge import Api, Groups
    from coordinator.edge.answers.grammar_check import Compiles
    from coordinator.edge.answers.served import Served
    from coordinator.edge.apis.registry import ApiFactory
    from coordinator.edge.telemetry.request_record import TraceSink
    from coordinator.upstreams.settings import RouterSettings
    from protocol.clock import Clock

FULL_COLLECTION_EVERY = 100
"""Collections of the middle generation; 10 is Python's own."""
__all__ = [
    "EdgeLimits",
    "Offer",
    "Parsers",
    "SamplingDefaults",
    "ServedModel",
    "Sites",
    "create_app",
]


def create_app(  # noqa: PLR0913 - the one place where the edge's parts meet
    *,
    service: Service,
    model: ServedModel,
    api_keys: Sequence[str] = (),
    admin_keys: Sequence[str] = (),
    clock: Clock | None = None,
    limits: EdgeLimits | None = None,
    root_path: str = "",
    chat_template: Path | None = None,
    allow_special_tokens_in_content: bool = False,
    sampling_defaults: SamplingDefaults | None = None,
    traces: TraceSink | None = None,
    pools: PoolControl | None = None,
    policy: AutoscaleControl | None = None,
    apis: Sequence[ApiFactory] = APIS,
    sites: Sites | None = None,
    parsers: Parsers | None = None,
    grammars: Compiles | None = None,
    accounts: Accounts | None = None,
    router: RouterSettings | None = None,
    pools_of: Callable[[str], PoolControl] | None = None,
    others: Sequence[Offer] = (),
    operated: Service | None = None,
    residents: ModelControl | None = None,
    adapters: AdapterBook | None = None,
    revisions: RevisionControl | None = None,
    sleeping: SleepControl | None = None,
) -> FastAPI:
    """The application over `service`. Raises ConfigError for files that cannot be used.

    `admin_keys` open `/metrics` and `/cluster*`, where `api_keys` get a 403; without them and `accounts` `api_keys` do. `chat_template` and `sampling_defaults`
    are the operator's word over the model's files. Unless `allow_special_tokens_in_content`, messages cannot write control tokens. `traces` is told of every
    finished request; closing it is the caller's. Without `pools` their sizes cannot be changed, without `policy` not what sizes them. `apis` are what clients may
    speak; one of them has the prefix "". `sites` says which web pages may ask. `parsers` are the operator's word on how the model is told of tools, and writes
    calls and reasoning. `grammars` tries what answers shall be limited to; without it no answer is. `accounts` are keys, limits and ledger of a database; whoever
    made them ends them. `router` names groups of deployments that answer beside the model, or in its place. `others` are models beside `model`, `pools_of` has
    each one's pools, and `operated` is what operators see then: all of them together. `residents` has models that come and go; `adapters` are names that requests
    may have for a model with one of them; `revisions` says which models are revisions of another, and `state.offer` and `state.withdraw` add and take
    away such; `sleeping` has models whose workers can give memory back.
    """
    clock, keys = clock or SystemClock(), Keys(api_keys, admin_keys, accounts)
    word = (chat_template, allow_special_tokens_in_content, sampling_defaults)
    first = Offer(model, service, *word, parsers or Parsers(), grammars)
    metrics = EdgeMetrics(model.name, service.cluster, clock, version())
    shared = Shared(limits or EdgeLimits(), clock, SideWork(), traces, residents)
    edge = _make_edge([first, *others], KeyGuard(keys, Scope.INFERENCE), metrics, shared)
    edge = replace(edge, adapters=adapters, revisions=revisions, sleeping=sleeping)
    edge = replace(edge, groups=_groups(router, edge, clock))
    app, whole = _make_app(root_path, edge, shared), operated or service
    spoken, has_keys = [make(edge) for make in apis], bool(api_keys or accounts)
    spellers = _spellers(spoken)
    _add_middleware(app, metrics, sites or Sites(), None if has_keys else spellers)
    error_replies.install(app, metrics, spellers)
    app.include_router(OpenRoutes(whole).router())
    app.include_router(UiRoutes().router())
    app.include_router(_guarded(app, spoken, has_keys=has_keys), dependencies=[Depends(edge.guard)])
    for scope, own in _operated(whole, metrics, (pools, pools_of, policy), keys, edge):
        app.include_router(own, dependencies=[Depends(KeyGuard(keys, scope))])
    return _below_path(app)


def _below_path(app: FastAPI) -> FastAPI:
    """The last that is done: it sees a request before all others, and every route is there."""
    if prefix := app.state.prefix:
        check_prefix(prefix, (route.path for route in RouteList(app.routes)))
        app.add_middleware(BelowPath, prefix=prefix)
    return app


def _groups(router: RouterSettings | None, edge: Edge, clock: Clock) -> Groups | None:
    if router is None:
        return None
    from coordinator.edge.gateway.model_groups import ModelGroups  # noqa: PLC0415 - a client of HTTP only where it is used

    return ModelGroups(router, edge.own_names, clock, edge.metrics.registry)


def _operated(
    service: Service,
    metrics: EdgeMetrics,
    scaling: tuple[
        PoolControl | None, Callable[[str], PoolControl] | None, AutoscaleControl | None
    ],
    keys: Keys,
    edge: Edge,
) -> Iterator[tuple[Scope | None, APIRouter]]:
    """What operators ask, each with what it needs of a key; None where any good one does."""
    there = {"keys": keys.accounts, "deployments": edge.groups}
    names = [name for name, part in there.items() if part]
    routes = AdminRoutes(service, metrics, names, edge.adapters)
    yield Scope.METRICS, routes.metrics_router()
    yield Scope.ADMIN, routes.router()
    pools, pools_of, policy = scaling
    if pools is not None:
        yield Scope.ADMIN, PoolRoutes(pools, edge.bodies, pools_of).router()
    if edge.residents is not None:
        yield Scope.ADMIN, ResidentRoutes(edge, edge.residents).router()
    if edge.sleeping is not None:
        yield Scope.ADMIN, SleepRoutes(edge, edge.sleeping).router()
    if edge.revisions is not None:
        metrics.registry.register(RevisionCollector(edge.revisions.view))
        yield Scope.ADMIN, RolloutRoutes(edge.revisions, edge.bodies).router()
    if edge.groups is not None:
        yield Scope.ADMIN, DeploymentRoutes(edge.groups.view).router()
    if edge.adapters is not None:
        yield Scope.ADMIN, AdapterRoutes(edge.adapters, edge.bodies).router()
    if policy is not None:
        yield Scope.ADMIN, AutoscaleRoutes(policy, edge.bodies).router()
    if keys.accounts is not None:
        metrics.registry.register(LedgerCollector(keys.accounts))
        yield Scope.ADMIN, KeyRoutes(keys.accounts, edge.bodies).router()
        yield None, UsageRoutes(keys.accounts, KeyGuard(keys, None)).router()


def _spellers(apis: Sequence[Api]) -> Spellers:
    return Spellers(
        {api.prefix: api.failure for api in apis},
        {api.header: api.failure for api in apis if api.header},
    )


def _make_app(root_path: str, edge: Edge, shared: Shared) -> FastAPI:
    """Without FastAPI's own pages; `state.refused` counts what a server refuses before it is a request, `state.streams`
    are those that can be gone on with, `state.start_threads` starts what else would start when it is needed, `state.prefix`
    is the path that it is below."""
    app = FastAPI(
        title="Baton",
        version=version(),
        docs_url=None,
        redoc_url=None,
        openapi_url=None,
        lifespan=_probing(LoopLag(edge.metrics.registry), edge.groups),
    )
    app.state.refused, app.state.streams = edge.metrics.rejected, edge.streams
    app.state.start_threads, app.state.prefix = shared.side.start, prefix_text(root_path)
    _open_catalogue(app, edge, shared)
    return app


def _add_middleware(
    app: FastAPI, metrics: EdgeMetrics, sites: Sites, spellers: Spellers | None
) -> None:
    """The last added sees a request first. Without `spellers` keys decide which sites may ask."""
    app.add_middleware(Methods, routes=RouteList(app.routes))
    if sites.origins:
        app.add_middleware(
            CORSMiddleware,
            allow_origins=sites.origins,
            allow_methods=sites.methods,
            allow_headers=sites.headers,
            allow_credentials=sites.credentials,
            expose_headers=["X-Request-Id", REVISION_HEADER],
        )
    if spellers is not None:
        refused = metrics.rejected
        app.add_middleware(SiteGuard, sites=sites, spellers=spellers, refused=refused)
    template_of = RouteList(app.routes).template_of
    app.add_middleware(Holds)
    app.add_middleware(HttpMetrics, template_of=template_of, registry=metrics.registry)
    app.add_middleware(RequestIds)


def _probing(
    lag: LoopLag, groups: Groups | None
) -> Callable[[FastAPI], AbstractAsyncContextManager[None]]:
    """The loop's lag is measured as long as the application serves. What is there by now stays to the end: the
    garbage collector, which stops the loop, need not look at it again. It looks through all that came since ten times
    as rarely as Python would have it: every live stream is 250 objects, and what is over frees itself."""

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        app.state.write_documents()
        gc.collect()
        gc.freeze()
        gc.enable()  # a process holds it off while it starts
        before = gc.get_threshold()
        gc.set_threshold(*before[:2], FULL_COLLECTION_EVERY)
        lag.start()
        try:
            yield
        finally:
            lag.close()
            gc.set_threshold(*before)
            if groups is not None:
                await groups.close()

    return lifespan


def _guarded(app: FastAPI, apis: Sequence[Api], *, has_keys: bool) -> APIRouter:
    router = joined(api.router() for api in apis)
    document(app, router, has_keys=has_keys)
    return router


def _made(offer: Offer, metrics: EdgeMetrics, shared: Shared) -> Served:
    """A model beside the first, which is counted in the same families."""
    name, cluster = offer.model.name, offer.service.cluster
    counted = EdgeMetrics(name, cluster, shared.clock, families=metrics.families)
    return make_served(offer, counted, shared)


def _open_catalogue(app: FastAPI, edge: Edge, shared: Shared) -> None:
    """Models come while it serves, and go when their workers are gone."""
    metrics = edge.metrics

    def withdraw(name: str) -> None:
        edge.catalogue.withdraw(name)
        metrics.families.cluster.remove(name)

    async def offer(one: Offer) -> None:
        edge.catalogue.add(await asyncio.to_thread(_made, one, metrics, shared))

    app.state.offer = offer
    app.state.withdraw = withdraw


def _make_edge(
    offers: Sequence[Offer], guard: KeyGuard, metrics: EdgeMetrics, shared: Shared
) -> Edge:
    first, *others = offers
    models = [make_served(first, metrics, shared)]
    models += [_made(offer, metrics, shared) for offer in others]
    return Edge(
        catalogue=Catalogue(models),
        clock=shared.clock,
        metrics=metrics,
        limits=shared.limits,
        created=int(wall_time_s()),
        guard=guard,
        side=shared.side,
        bodies=BodyReader(shared.limits, shared.side),
        streams=KeptStreams(metrics, shared.side),
        residents=shared.residents,
    )
