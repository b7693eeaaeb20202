"""POST /v1/embeddings. Owns its body and its answer."""

from __future__ import annotations

import base64
from typing import TYPE_CHECKING, Annotated, Any, Literal

import orjson
from fastapi import APIRouter, Depends, Request
from pydantic import Field
from starlette.responses import Response  # noqa: TC002 - FastAPI reads the annotation

from coordinator.edge.answers.affinity import affinity_of
from coordinator.edge.answers.answer import RawPrompts
from coordinator.edge.answers.embeddings import (
    EmbeddingEdge,
    Wanted,
    WholeDialect,
    spelled,
    vectors_of,
)
from coordinator.edge.apis.openai.requests import check_sizes, refuse_unsupported
from coordinator.edge.http import limits
from coordinator.edge.http.auth import Principal  # noqa: TC001 - FastAPI reads the annotation
from coordinator.edge.http.bodies import MAX_IDS, body_schema, check_fields, parse_object
from coordinator.edge.http.field_types import Bool, Int, Lenient, Texts, TokenIds
from protocol.errors import InvalidRequest
from protocol.ids import new_request_id

if TYPE_CHECKING:
    from array import array
    from collections.abc import Sequence

    from coordinator.edge.answers.answer import Delta, Ending
    from coordinator.edge.answers.edge import Edge


class EmbeddingRequest(Lenient):
    """POST /v1/embeddings."""

    model: str | None = None
    input: str | TokenIds | Texts | Annotated[list[TokenIds], Field(fail_fast=True)]
    encoding_format: Literal["float", "base64"] | None = None
    dimensions: Annotated[Int, Field(ge=1)] | None = None
    add_special_tokens: Bool | None = None
    priority: Annotated[Int, Field(ge=-limits.MOST_PRIORITY, le=limits.MOST_PRIORITY)] | None = None


class EmbeddingDialect(WholeDialect):
    """A list of vectors."""

    def __init__(self, model: str, asked: EmbeddingRequest) -> None:
        self._model = model
        self._dimensions = asked.dimensions
        self._is_base64 = asked.encoding_format == "base64"

    def whole(self, choices: Sequence[Delta], ending: Ending) -> bytes:
        """The answer."""
        count = ending.usage.num_prompt_tokens
        vectors = vectors_of(choices, self._dimensions)
        told = [
            {"object": "embedding", "index": index, "embedding": self._spelled(vector)}
            for index, vector in enumerate(vectors)
        ]
        usage = {"prompt_tokens": count, "total_tokens": count}
        reply = {"object": "list", "data": told, "model": self._model, "usage": usage}
        return orjson.dumps(reply)

    def _spelled(self, vector: array[float]) -> Any:
        if self._is_base64:
            return base64.b64encode(vector.tobytes()).decode()
        return spelled(vector)


class EmbeddingRoutes:
    """The endpoint that embeds."""

    def __init__(self, edge: Edge) -> None:
        self._edge = edge
        self._embeddings = EmbeddingEdge(edge)

    def router(self) -> APIRouter:
        """Its route."""
        router, who = APIRouter(prefix="/v1"), Depends(self._edge.guard)

        async def embeddings(request: Request, principal: Principal = who) -> Response:
            """Vectors of one or more texts."""
            return await self.embed(request, principal)

        router.add_api_route(
            "/embeddings",
            embeddings,
            methods=["POST"],
            response_model=None,
            openapi_extra=body_schema(EmbeddingRequest),
        )
        return router

    async def embed(self, request: Request, principal: Principal) -> Response:
        """Read the texts, or their token ids, and embed each."""
        edge, arrival_s = self._edge, self._edge.clock.now_s()
        most = edge.longest
        asked = await edge.bodies.read(request, lambda body: parse(body, most), MAX_IDS)
        alike = affinity_of(request, asked, prompt=asked.input)
        model, told = edge.begin(principal, asked.model, alike), asked.model or edge.default_name
        special = asked.add_special_tokens is not False
        raw = RawPrompts(inputs_of(asked), special, is_embedded=True, dimensions=asked.dimensions)
        self._embeddings.check(model, raw, "input")
        wanted = Wanted(
            raw, "input", model, f"embd-{new_request_id()}", arrival_s, asked.priority or 0
        )
        neutral = await self._embeddings.asked(wanted)
        return await edge.respond(request, principal, neutral, EmbeddingDialect(told, asked))


def parse(body: bytes, max_model_len: int) -> EmbeddingRequest:
    """Everything checked that needs no model."""
    fields = parse_object(body)
    refuse_unsupported(fields)
    check_sizes(fields.get("input"), max_model_len, "input", limits.MAX_EMBEDDED)
    return check_fields(fields, EmbeddingRequest)


def inputs_of(asked: EmbeddingRequest) -> list[str | list[int]]:
    """What is to be embedded, one after another: texts, or token ids."""
    said = asked.input
    if isinstance(said, str):
        return [said]
    if not said:
        raise InvalidRequest("the input is empty", "input")
    many: list[str] = [item for item in said if isinstance(item, str)]
    lists: list[list[int]] = [item for item in said if isinstance(item, list)]
    return [*many, *lists] or [[item for item in said if isinstance(item, int)]]
