"""Every failure in OpenAI's shape. Owns `{"error": {message, type, param, code}}` and its headers."""

from __future__ import annotations

import logging
import math
from http import HTTPStatus
from typing import TYPE_CHECKING, Any

import orjson
from fastapi.exceptions import RequestValidationError
from starlette.exceptions import HTTPException
from starlette.responses import Response

from protocol.errors import BatonError, InternalError, InvalidRequest, Overloaded, WorkerLost

if TYPE_CHECKING:
    from fastapi import FastAPI
    from starlette.requests import Request

    from coordinator.edge.telemetry.metrics import EdgeMetrics

log = logging.getLogger(__name__)
CLIENT_CLOSED_REQUEST = 499
GENERIC_MESSAGE = "internal error; the server's log has the details under this X-Request-Id"
TYPES = {401: "AuthenticationError", 404: "NotFoundError"}


class Unauthorized(BatonError):
    """No key, or not one that this route takes."""

    http_status = 401
    error_type = "AuthenticationError"


class BodyTooLarge(InvalidRequest):
    """The body is over the limit; the rest of it was not read."""

    http_status = 413


class BodyTooSlow(InvalidRequest):
    """The body did not arrive in time."""

    http_status = 408


def http_status(error: BatonError) -> int:
    """A client that is still here to read 499 did not close the request: we did, so 503."""
    if error.http_status == CLIENT_CLOSED_REQUEST:
        return int(HTTPStatus.SERVICE_UNAVAILABLE)
    return error.http_status


def error_body(error: BatonError) -> bytes:
    """The JSON that a client sees, in a response or in a stream."""
    message = GENERIC_MESSAGE if isinstance(error, InternalError) else str(error)
    param = error.param if isinstance(error, InvalidRequest) else None
    return _body(message, error.error_type, param, http_status(error))


def error_response(error: BatonError) -> Response:
    """The whole HTTP answer."""
    headers = {}
    if isinstance(error, Overloaded):
        headers["Retry-After"] = str(max(1, math.ceil(error.retry_after_s)))
    elif isinstance(error, WorkerLost):
        headers["Retry-After"] = "1"
    elif isinstance(error, Unauthorized):
        headers["WWW-Authenticate"] = "Bearer"
    return _response(error_body(error), http_status(error), headers)


def _body(message: str, kind: str, param: str | None, code: int) -> bytes:
    fields = {"message": message, "type": kind, "param": param, "code": code}
    return orjson.dumps({"error": fields})


def _response(body: bytes, status: int, headers: dict[str, str] | None = None) -> Response:
    return Response(body, status, headers, media_type="application/json")


def install(app: FastAPI, metrics: EdgeMetrics) -> None:
    """Map every exception that can leave a route."""

    async def baton_error(_: Request, error: Any) -> Response:
        metrics.rejected(http_status(error), error.error_type)
        if isinstance(error, InternalError):
            log.error("internal error", exc_info=error)
        return error_response(error)

    async def http_error(_: Request, error: Any) -> Response:
        kind = TYPES.get(error.status_code, "BadRequestError")
        metrics.rejected(error.status_code, kind)
        body = _body(str(error.detail), kind, None, error.status_code)
        return _response(body, error.status_code, error.headers)

    async def validation_error(_: Request, error: Any) -> Response:
        first = error.errors()[0]
        param = ".".join(str(part) for part in first["loc"][1:])
        metrics.rejected(InvalidRequest.http_status, InvalidRequest.error_type)
        return error_response(InvalidRequest(str(first["msg"]), param))

    async def unexpected(_: Request, error: Exception) -> Response:
        metrics.rejected(500, InternalError.error_type)
        log.error("a request failed unexpectedly", exc_info=error)
        return error_response(InternalError(str(error)))

    app.add_exception_handler(BatonError, baton_error)
    app.add_exception_handler(HTTPException, http_error)
    app.add_exception_handler(RequestValidationError, validation_error)
    app.add_exception_handler(Exception, unexpected)
