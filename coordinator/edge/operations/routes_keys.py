"""Keys over HTTP, for operators. Owns the bodies of `/keys`, and what is shown of a key; never its secret but once."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any

import msgspec
from fastapi import APIRouter, Request
from pydantic import BaseModel, ConfigDict, Field
from starlette.responses import Response  # noqa: TC002 - FastAPI reads the annotation

from coordinator.accounts.terms import (
    MAX_MODEL_CHARACTERS,
    MAX_NAME_CHARACTERS,
    KeyTerms,
    ScopeName,
)
from coordinator.edge.http.bodies import (
    body_schema,
    check_fields,
    json_response,
    parse_object,
)
from coordinator.edge.http.field_types import Float
from coordinator.edge.http.query import check_names, choice, whole_number
from coordinator.edge.http.side_work import others_turn

if TYPE_CHECKING:
    from coordinator.accounts.accounts import Accounts
    from coordinator.accounts.terms import KeyRecord, NewKey
    from coordinator.edge.http.bodies import BodyReader

MAX_LIST = 64
KEYS_A_TURN = 256
"""Are told of before others have their turn: there may be as many keys as users."""
MAX_COUNT = 10**15
MAX_SECONDS = 10 * 366 * 86400
ORDERS = ("asc", "desc")
PAGING = {"after": "0", "limit": str(MAX_COUNT)}
PAGE: dict[str, dict[str, Any]] = {
    "order": {"type": "string", "enum": list(ORDERS)},
    **{name: {"type": "integer", "minimum": 0, "maximum": MAX_COUNT} for name in PAGING},
}
PAGED = {
    "parameters": [{"name": name, "in": "query", "schema": schema} for name, schema in PAGE.items()]
}
Name = Annotated[str, Field(strict=True, max_length=MAX_NAME_CHARACTERS)]
Model = Annotated[str, Field(strict=True, min_length=1, max_length=MAX_MODEL_CHARACTERS)]
Count = Annotated[int, Field(strict=True, ge=1, le=MAX_COUNT)]
Amount = Annotated[Float, Field(gt=0, le=1e9)]
Seconds = Annotated[Float, Field(gt=0, le=MAX_SECONDS)]


class KeyRequest(BaseModel):
    """What a new key allows; what is left out sets no limit."""

    model_config = ConfigDict(extra="forbid")

    tenant: Name = ""
    name: Name = ""
    scopes: Annotated[list[ScopeName], Field(min_length=1, max_length=3)] = ["inference"]
    models: Annotated[list[Model], Field(max_length=MAX_LIST)] = []
    expires_in_s: Seconds | None = None
    requests_per_minute: Count | None = None
    tokens_per_minute: Count | None = None
    parallel_requests: Count | None = None
    budget: Amount | None = None
    budget_tokens: Count | None = None
    budget_period_s: Seconds | None = None
    tags: Annotated[list[Name], Field(max_length=MAX_LIST)] = []
    weight: Annotated[Float, Field(gt=0, le=1000)] = 1.0
    priority: Annotated[int, Field(strict=True, ge=-100, le=100)] = 0
    shared_cache: Name = ""


class RotateRequest(BaseModel):
    """How long the former secret is good."""

    model_config = ConfigDict(extra="forbid")

    grace_s: Annotated[Float, Field(ge=0, le=MAX_SECONDS)] = 0.0


class KeyRoutes:
    """What operators do with keys."""

    def __init__(self, accounts: Accounts, bodies: BodyReader) -> None:
        self._accounts = accounts
        self._bodies = bodies

    def router(self) -> APIRouter:
        """Their routes."""
        router = APIRouter(prefix="/keys")
        add = router.add_api_route
        told = body_schema(KeyRequest)
        add("", self.create, methods=["POST"], response_model=None, openapi_extra=told)
        add("", self.list_keys, methods=["GET"], response_model=None, openapi_extra=PAGED)
        add("/{key_id}", self.show, methods=["GET"], response_model=None)
        add("/{key_id}", self.revoke, methods=["DELETE"], response_model=None)
        told = body_schema(RotateRequest)
        add(
            "/{key_id}/rotate",
            self.rotate,
            methods=["POST"],
            response_model=None,
            openapi_extra=told,
        )
        return router

    async def create(self, request: Request) -> Response:
        """Make a key; its secret is told here and never again."""
        asked = await self._bodies.read(
            request, lambda body: check_fields(parse_object(body), KeyRequest)
        )
        fields = asked.model_dump(exclude={"expires_in_s"})
        if asked.expires_in_s is not None:
            fields["expires_at"] = self._accounts.key_now_s() + asked.expires_in_s
        return self._told(await self._accounts.create(msgspec.convert(fields, KeyTerms)))

    async def list_keys(self, request: Request) -> Response:
        """Every key, without secrets, the oldest first (`order`), or `limit` of them `after` so many."""
        given = request.query_params
        check_names(given, tuple(PAGE))
        order = choice(given.get("order", ORDERS[0]), "order", ORDERS)
        after, limit = (
            whole_number(given.get(name, usual), name) for name, usual in PAGING.items()
        )
        records = [*self._accounts.book][:: 1 if order == ORDERS[0] else -1]
        told = []
        for number, record in enumerate(records[after : after + limit], start=1):
            told.append(self.view(record))
            if number % KEYS_A_TURN == 0:
                await others_turn()
        return json_response({"data": told, "total": len(records)})

    async def show(self, key_id: str) -> Response:
        """One key, and how much of its limits is used."""
        return json_response(self.view(self._accounts.book.get(key_id)))

    async def revoke(self, key_id: str) -> Response:
        """It opens nothing from now on; requests that run are answered."""
        return json_response(self.view(await self._accounts.revoke(key_id)))

    async def rotate(self, request: Request, key_id: str) -> Response:
        """Give a key another secret; its id, limits and usage stay."""
        asked = await self._bodies.read(
            request, lambda body: check_fields(parse_object(body or b"{}"), RotateRequest)
        )
        return self._told(await self._accounts.rotate(key_id, asked.grace_s))

    def view(self, record: KeyRecord) -> dict[str, Any]:
        """What may be shown of a key."""
        return key_view(record, self._accounts.key_now_s()) | {"used": used(self._accounts, record)}

    def _told(self, made: NewKey) -> Response:
        response = json_response({"key": made.secret} | self.view(made.record))
        response.headers["cache-control"] = "no-store"
        return response


def key_view(record: KeyRecord, now_s: float) -> dict[str, Any]:
    """A key without its secret, its digest and its usage."""
    trouble = record.trouble(now_s)
    state = "active"
    if trouble:
        state = "expired" if record.revoked_at is None else "revoked"
    return {
        "id": record.key_id,
        "masked": record.masked,
        "state": state,
        "created_at": record.created_at,
        "revoked_at": record.revoked_at,
        **msgspec.to_builtins(record.terms),
    }


def used(accounts: Accounts, record: KeyRecord) -> dict[str, Any]:
    """How much of a key's limits is in use now; budgets and windows only where there are some."""
    meter, now_s = accounts.meter(record), accounts.clock.now_s()
    wall_s = accounts.wall_s()
    told: dict[str, Any] = {"running": meter.running}
    if meter.requests is not None:
        told["requests_last_minute"] = meter.requests.used(now_s)
    if meter.tokens is not None:
        told["tokens_last_minute"] = meter.tokens.used(now_s)
    for name, budget in (("budget", meter.money), ("budget_tokens", meter.budget_tokens)):
        if budget is not None:
            reset_s = budget.reset_s(wall_s)
            told[f"{name}_spent"] = budget.spent / 1e9 if name == "budget" else budget.spent
            told[f"{name}_reset_s"] = None if reset_s == float("inf") else reset_s
    return told
