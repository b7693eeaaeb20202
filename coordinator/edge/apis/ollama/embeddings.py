"""POST /api/embed and /api/embeddings. Owns their bodies' meaning and their answers."""

from __future__ import annotations

from typing import TYPE_CHECKING

import orjson
from fastapi import APIRouter, Depends, Request
from starlette.responses import Response  # noqa: TC002 - FastAPI reads the annotation

from coordinator.edge.answers.affinity import affinity_of
from coordinator.edge.answers.answer import RawPrompts
from coordinator.edge.answers.embeddings import (
    EmbeddingEdge,
    Wanted,
    WholeDialect,
    numbers_of,
    spelled,
    vectors_of,
)
from coordinator.edge.apis.ollama.loading import load_or_unload
from coordinator.edge.apis.ollama.requests import model_of
from coordinator.edge.apis.ollama.types import EmbedRequest
from coordinator.edge.http import limits
from coordinator.edge.http.auth import Principal  # noqa: TC001 - FastAPI reads the annotation
from coordinator.edge.http.bodies import (
    body_schema,
    check_fields,
    json_response,
    parse_object,
)
from coordinator.edge.http.field_errors import LONG_ARRAY
from protocol.errors import InvalidRequest
from protocol.ids import new_request_id
from protocol.keep_alive import parse_keep_alive

if TYPE_CHECKING:
    from collections.abc import Sequence

    from coordinator.edge.answers.answer import Delta, Ending
    from coordinator.edge.answers.edge import Edge

NANOSECONDS = 1_000_000
ERROR_REPLY = {
    "type": "object",
    "required": ["error"],
    "properties": {"error": {"type": "string"}},
}


class EmbedDialect(WholeDialect):
    """Vectors of unit length, and what they took."""

    def __init__(self, model: str, dimensions: int | None) -> None:
        self._model = model
        self._dimensions = dimensions

    def whole(self, choices: Sequence[Delta], ending: Ending) -> bytes:
        """The answer."""
        total_ms = ending.timings.e2e_ms if ending.timings else 0.0
        return orjson.dumps(
            {
                "model": self._model,
                "embeddings": [spelled(it) for it in vectors_of(choices, self._dimensions)],
                "total_duration": int(total_ms * NANOSECONDS),
                "load_duration": 0,
                "prompt_eval_count": ending.usage.num_prompt_tokens,
            }
        )


class OldDialect(WholeDialect):
    """One vector, as long as it is."""

    def whole(self, choices: Sequence[Delta], ending: Ending) -> bytes:  # noqa: ARG002 - nothing is counted
        """The answer."""
        (delta,) = choices
        return orjson.dumps({"embedding": spelled(numbers_of(delta))})


class EmbeddingRoutes:
    """The two endpoints that embed."""

    def __init__(self, edge: Edge) -> None:
        self._edge = edge
        self._embeddings = EmbeddingEdge(edge)

    def router(self) -> APIRouter:
        """Their routes."""
        router, who = APIRouter(prefix="/api"), Depends(self._edge.guard)

        async def embed(request: Request, principal: Principal = who) -> Response:
            """Vectors of one or more texts."""
            return await self.embed(request, principal, is_old=False)

        async def embeddings(request: Request, principal: Principal = who) -> Response:
            """The vector of one text, as older clients ask for it."""
            return await self.embed(request, principal, is_old=True)

        for path, endpoint in (("/embed", embed), ("/embeddings", embeddings)):
            router.add_api_route(
                path,
                endpoint,
                methods=["POST"],
                response_model=None,
                openapi_extra=body_schema(EmbedRequest, error=ERROR_REPLY),
                operation_id=f"ollama_{path.strip('/')}",
            )
        return router

    async def embed(self, request: Request, principal: Principal, *, is_old: bool) -> Response:
        """Read the texts and embed each; no text loads the model."""
        edge, arrival_s = self._edge, self._edge.clock.now_s()
        asked = await edge.bodies.read(request, parse)
        served = model_of(asked.model or asked.name, edge.names_for(principal))
        called = asked.model or asked.name
        model = edge.model_for(principal, served, among_groups=True)
        field = "prompt" if is_old else "input"
        said = asked.prompt if is_old else asked.input
        texts = [said] if isinstance(said, str) else list(said or ())
        raw = RawPrompts(
            texts,
            is_embedded=True,
            dimensions=asked.dimensions,
            truncates=asked.truncate is not False,
        )
        self._embeddings.check(model, raw, field)
        keep_alive_s = parse_keep_alive(asked.keep_alive, "keep_alive")
        if not any(texts):
            await load_or_unload(edge, request, model, keep_alive_s)
            return json_response({"embedding": []} if is_old else _nothing(called or model))
        model = edge.begin(principal, model, affinity_of(request, asked, prompt=texts))
        wanted = Wanted(raw, field, model, new_request_id(), arrival_s, keep_alive_s=keep_alive_s)
        dialect = OldDialect() if is_old else EmbedDialect(called or model, asked.dimensions)
        neutral = await self._embeddings.asked(wanted)
        return await edge.respond(request, principal, neutral, dialect)


def _nothing(model: str) -> dict[str, object]:
    return {"model": model, "embeddings": [], "total_duration": 0, "load_duration": 0}


def parse(body: bytes) -> EmbedRequest:
    """Counted first: types are checked element by element."""
    fields = parse_object(body)
    said = fields.get("input")
    if isinstance(said, list) and len(said) > limits.MAX_EMBEDDED:
        told = f"input must have at most {limits.MAX_EMBEDDED} texts, but has {len(said)}"
        raise InvalidRequest(told, "input", LONG_ARRAY)
    return check_fields(fields, EmbedRequest)
