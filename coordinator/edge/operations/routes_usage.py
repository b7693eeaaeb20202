"""`GET /usage`: what was used, by whom, as JSON or CSV. Owns its parameters, and that a client sees its own key's only."""

from __future__ import annotations

import csv
import io
import math
from datetime import datetime
from typing import TYPE_CHECKING, Any

from fastapi import APIRouter, Depends, Request
from starlette.responses import Response

from coordinator.accounts.usage import BY_MODEL, MAX_ROWS, UsageQuery, read_usage
from coordinator.edge.http.auth import Principal, Scope
from coordinator.edge.http.bodies import json_response
from coordinator.edge.http.query import check_names, choice, whole_number
from protocol.errors import InvalidRequest

if TYPE_CHECKING:
    from coordinator.accounts.accounts import Accounts
    from coordinator.accounts.usage import UsagePage
    from coordinator.edge.http.auth import KeyGuard

PARAMETERS = ("from", "to", "group_by", "key", "tenant", "model", "after", "limit", "format")
CSV = "text/csv"
FORMATS = ("json", "csv")
UNSEEN = ("\t", "\r", "\n")
FORMULAS = ("=", "+", "-", "@", "\uff1d", "\uff0b", "\uff0d", "\uff20")
"""How a cell begins that is no text to a spreadsheet."""
SCHEMAS: dict[str, dict[str, Any]] = {
    "after": {"type": "integer", "minimum": 0, "maximum": 10**18 - 1},
    "limit": {"type": "integer", "minimum": 1, "maximum": MAX_ROWS},
    "format": {"type": "string", "enum": list(FORMATS)},
}
"""Of parameters that are not any text."""


class UsageRoutes:
    """One route. Whoever has a good key may ask: an admin of all, others of themselves."""

    def __init__(self, accounts: Accounts, guard: KeyGuard) -> None:
        self._accounts = accounts
        self._guard = guard

    def router(self) -> APIRouter:
        """The route, which is not open to a key of no use."""
        router, who = APIRouter(), Depends(self._guard)

        async def usage(request: Request, principal: Principal = who) -> Response:
            """Requests, tokens and costs: by key, tenant, model, day or request."""
            return await self.usage(request, principal)

        parameters = [
            {"name": name, "in": "query", "schema": SCHEMAS.get(name, {"type": "string"})}
            for name in PARAMETERS
        ]
        told = {"parameters": parameters}
        router.add_api_route(
            "/usage", usage, methods=["GET"], response_model=None, openapi_extra=told
        )
        return router

    async def usage(self, request: Request, principal: Principal) -> Response:
        """The ledger's rows, read and spelled beside the loop; what is on its way to the disk is written before."""
        query, is_csv = _asked(request, principal)
        spell = _csv if is_csv else self._json
        return await self._accounts.read(
            principal.key_id, lambda database: spell(read_usage(database, query))
        )

    def _json(self, page: UsagePage) -> Response:
        state = self._accounts.state()
        ledger: dict[str, Any] = {"ok": not state.reason, "reason": state.reason or None}
        ledger |= {"waiting": state.waiting, "lost": state.lost}
        return json_response({"data": page.rows, "next_after": page.next_after, "ledger": ledger})


def _asked(request: Request, principal: Principal) -> tuple[UsageQuery, bool]:
    given = request.query_params
    check_names(given, PARAMETERS)
    usual = "csv" if CSV in request.headers.get("accept", "") else "json"
    told = choice(given.get("format", usual), "format", FORMATS)
    groups = given.get("group_by")
    query = UsageQuery(
        group_by=tuple(groups.split(",")) if groups is not None else BY_MODEL,
        since=_instant(given.get("from"), "from"),
        until=_instant(given.get("to"), "to"),
        key_id=given.get("key"),
        tenant=given.get("tenant"),
        model=given.get("model"),
        after=whole_number(given.get("after", "0"), "after"),
        limit=whole_number(given.get("limit", "1000"), "limit"),
    )
    query.check()
    return _own(query, principal), told == "csv"


def _own(query: UsageQuery, principal: Principal) -> UsageQuery:
    """An admin asks of everybody; what others ask of someone else is what they ask of nobody."""
    if Scope.ADMIN in principal.scopes:
        return query
    if query.key_id not in (None, principal.key_id):
        raise InvalidRequest("this API key sees its own usage only", "key")
    return UsageQuery(
        group_by=query.group_by,
        since=query.since,
        until=query.until,
        key_id=principal.key_id,
        tenant=query.tenant,
        model=query.model,
        after=query.after,
        limit=query.limit,
    )


def _instant(told: str | None, name: str) -> float | None:
    """Seconds since the epoch, or a date of ISO 8601."""
    if told is None:
        return None
    try:
        found = float(told)
    except ValueError:
        found = _date(told, name)
    if not math.isfinite(found):
        raise InvalidRequest(f"{name} is no instant", name)
    return found


def _date(told: str, name: str) -> float:
    try:
        found = datetime.fromisoformat(told)
        return (found if found.tzinfo else found.astimezone()).timestamp()
    except (ValueError, OverflowError):  # also of a date that is none in another zone
        message = f"{name} is seconds since 1970, or a date such as 2026-11-29T00:00:00Z"
        raise InvalidRequest(message, name) from None


def _csv(page: UsagePage) -> Response:
    told = io.StringIO()
    lines = csv.DictWriter(told, page.fields, lineterminator="\r\n")
    lines.writeheader()
    lines.writerows({name: _plain(value) for name, value in row.items()} for row in page.rows)
    response = Response(told.getvalue(), media_type=CSV)
    if page.next_after is not None:
        response.headers["x-next-after"] = str(page.next_after)
    return response


def _plain(value: Any) -> Any:
    """A spreadsheet takes a text that begins like a formula for one, some also after spaces, or in letters of full width."""
    if not isinstance(value, str):
        return value
    is_formula = value[:1] in UNSEEN or value.lstrip()[:1] in FORMULAS
    return f"'{value}" if value and is_formula else value
