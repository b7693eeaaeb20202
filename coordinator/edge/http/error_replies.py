"""Every exception that can leave a route, as a client may be told it. Owns statuses, headers and what stays secret.

How a body says it is the asked API's own: `install` is given who spells failures below which path.
"""

from __future__ import annotations

import logging
import math
from dataclasses import dataclass, field
from http import HTTPStatus
from typing import TYPE_CHECKING, Any

import orjson
from fastapi.exceptions import RequestValidationError
from starlette.exceptions import HTTPException
from starlette.responses import Response

from coordinator.edge.http.field_errors import refusal
from coordinator.edge.http.route_list import RouteList
from protocol.errors import (
    BatonError,
    InternalError,
    InvalidRequest,
    LedgerUnavailable,
    LimitReached,
    Overloaded,
    WorkerLost,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Container, Mapping

    from fastapi import FastAPI
    from starlette.requests import Request

    from coordinator.edge.telemetry.metrics import EdgeMetrics

    Spell = Callable[["Failure"], bytes]

log = logging.getLogger(__name__)
CLIENT_CLOSED_REQUEST = 499
GENERIC_MESSAGE = "internal error; the server's log has the details under this X-Request-Id"
MAX_TOLD_CHARACTERS = 800
CODES = {404: "unknown_url", 405: "method_not_allowed"}
NO_RETRY = {"x-should-retry": "false"}
"""OpenAI's clients come back by themselves unless they are told not to."""
KINDS = {401: "AuthenticationError", 404: "NotFoundError"}


class Unauthorized(BatonError):
    """No key, or not one that this route takes."""

    http_status = 401
    error_type = "AuthenticationError"
    code: str | None = "invalid_api_key"


class Forbidden(BatonError):
    """A valid key, but not for this route."""

    http_status = 403
    error_type = "PermissionDeniedError"
    code: str | None = "insufficient_permissions"

    def __init__(self, message: str, code: str | None = None) -> None:
        super().__init__(message)
        self.code = code or type(self).code


class ForeignHost(BatonError):
    """The request means another server."""

    http_status = 421
    error_type = "MisdirectedRequestError"
    code: str | None = "foreign_host"


class ForeignOrigin(BatonError):
    """A web page of another site asks through somebody's browser."""

    http_status = 403
    error_type = "PermissionDeniedError"
    code: str | None = "foreign_origin"


class BodyTooLarge(InvalidRequest):
    """The body is over the limit; the rest of it was not read."""

    http_status = 413


class BodyEncoded(InvalidRequest):
    """The body is compressed: it would have to be bounded a second time."""

    http_status = 415
    code: str | None = "unsupported_encoding"


class BodyTooSlow(InvalidRequest):
    """The body did not arrive in time."""

    http_status = 408


class ClientLeft(BatonError):
    """The client went away while it still sent its request, or waited for a model: nobody reads what is answered."""

    http_status = CLIENT_CLOSED_REQUEST
    error_type = "client_disconnected"


@dataclass(frozen=True, slots=True)
class Failure:
    """What any client may know of an error. `kind` is the error's type, `param` the field that is wrong, `code` OpenAI's."""

    status: int
    kind: str
    message: str
    param: str | None = None
    code: str | None = None


def http_status(error: BatonError) -> int:
    """A client that is still here to read 499 did not close the request: we did, so 503."""
    if error.http_status == CLIENT_CLOSED_REQUEST:
        return int(HTTPStatus.SERVICE_UNAVAILABLE)
    return error.http_status


def failure_of(error: BatonError) -> Failure:
    """A bug's own words are for the log only."""
    message = GENERIC_MESSAGE if isinstance(error, InternalError) else str(error)
    param = error.param if isinstance(error, InvalidRequest) else None
    return Failure(
        http_status(error), error.error_type, clipped(message), param and clipped(param), error.code
    )


def error_fields(message: str, kind: str) -> bytes:
    """The JSON of an error for a client whose API is not known yet."""
    told = {"message": clipped(message), "type": kind, "param": None, "code": None}
    return orjson.dumps({"error": told})


def clipped(told: str) -> str:
    """`told` without its middle when it is long: what a client sent is not sent back to it in full."""
    if len(told) <= MAX_TOLD_CHARACTERS:
        return told
    half = MAX_TOLD_CHARACTERS // 2
    return f"{told[:half]} … {told[-half:]}"


def failure_headers(error: BatonError) -> dict[str, str]:
    """When to come back, or what to show."""
    if isinstance(error, LimitReached):
        return error.headers | _patience(error) | ({} if error.may_retry else NO_RETRY)
    if isinstance(error, Overloaded):
        return _patience(error)
    if isinstance(error, WorkerLost | LedgerUnavailable):  # both are tried again each second
        return {"Retry-After": "1"}
    if isinstance(error, Unauthorized):
        return {"WWW-Authenticate": "Bearer"}
    return {}


def _patience(error: Overloaded) -> dict[str, str]:
    if math.isinf(error.retry_after_s):
        return {}
    return {
        "Retry-After": str(max(1, math.ceil(error.retry_after_s))),
        "retry-after-ms": str(math.ceil(error.retry_after_s * 1000)),
    }


@dataclass(frozen=True, slots=True)
class Spellers:
    """Who spells failures: below which paths, one of them "" and everybody's, and for which request headers."""

    by_prefix: Mapping[str, Spell]
    by_header: Mapping[str, Spell] = field(default_factory=dict)

    def of(self, path: str, headers: Container[str]) -> Spell:
        """The longest prefix decides, but the empty one does only without a header that some speller knows."""
        begin = max((begin for begin in self.by_prefix if path.startswith(begin)), key=len)
        named = next((name for name in self.by_header if not begin and name in headers), None)
        return self.by_prefix[begin] if named is None else self.by_header[named]


def install(app: FastAPI, metrics: EdgeMetrics, spellers: Spellers) -> None:
    """Map every exception that can leave a route."""

    def tell(
        request: Request, failure: Failure, headers: Mapping[str, str] | None = None
    ) -> Response:
        metrics.rejected(failure.status, failure.kind)
        body = spellers.of(request.url.path, request.headers)(failure)
        return Response(body, failure.status, headers, media_type="application/json")

    async def baton_error(request: Request, error: Any) -> Response:
        if isinstance(error, InternalError):
            log.error("internal error", exc_info=error)
        return tell(request, failure_of(error), failure_headers(error))

    async def client_left(_: Request, error: Any) -> Response:
        metrics.disconnected()
        metrics.rejected(CLIENT_CLOSED_REQUEST, error.error_type)
        log.debug("%s", error)
        return Response(status_code=CLIENT_CLOSED_REQUEST)

    routes = RouteList(app.routes)

    async def http_error(request: Request, error: Any) -> Response:
        status = error.status_code
        kind = KINDS.get(status, "BadRequestError")
        told = str(error.detail)
        if status == HTTPStatus.NOT_FOUND:
            told = routes.advice(clipped(request.url.path))
        failure = Failure(status, kind, told, code=CODES.get(status))
        return tell(request, failure, error.headers)

    async def validation_error(request: Request, error: Any) -> Response:
        first = error.errors()[0]
        param = ".".join(str(part) for part in first["loc"][1:])
        return tell(request, failure_of(refusal(first, param)))

    async def unexpected(request: Request, error: Exception) -> Response:
        log.error("a request failed unexpectedly", exc_info=error)
        return tell(request, failure_of(InternalError(str(error))))

    app.add_exception_handler(BatonError, baton_error)
    app.add_exception_handler(ClientLeft, client_left)
    app.add_exception_handler(HTTPException, http_error)
    app.add_exception_handler(RequestValidationError, validation_error)
    app.add_exception_handler(Exception, unexpected)
