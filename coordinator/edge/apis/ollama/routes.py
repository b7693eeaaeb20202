"""POST /api/chat and /api/generate, and what Ollama tells of its models. Writes no bytes of answers."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

from fastapi import APIRouter, Depends, Request
from starlette.responses import Response  # noqa: TC002 - FastAPI reads the annotation

from coordinator.edge.answers.affinity import affinity_of
from coordinator.edge.answers.answer import AnswerRequest, RawPrompts
from coordinator.edge.answers.tools import NO_TOOLS
from coordinator.edge.apis.ollama.dialects import ChatDialect, GenerateDialect, now_told
from coordinator.edge.apis.ollama.loading import load_or_unload
from coordinator.edge.apis.ollama.requests import (
    model_of,
    parse_chat,
    parse_generate,
    stops_of,
    wishes_of,
)
from coordinator.edge.apis.ollama.types import ChatRequest, GenerateRequest, ModelRequest
from coordinator.edge.http.auth import Principal  # noqa: TC001 - FastAPI reads the annotation
from coordinator.edge.http.bodies import (
    body_schema,
    check_fields,
    error_schema,
    json_response,
    parse_object,
)
from protocol.clock import wall_time_s
from protocol.ids import new_request_id
from protocol.keep_alive import parse_keep_alive

if TYPE_CHECKING:
    from coordinator.edge.answers.answer import SamplingWishes
    from coordinator.edge.answers.edge import Edge
    from coordinator.edge.answers.served import ServedModel
    from coordinator.edge.answers.tools import ToolUse
    from coordinator.edge.apis.ollama.dialects import OllamaDialect
    from coordinator.edge.apis.ollama.types import AnswerBody
    from protocol.model_config import ModelConfig

NDJSON = "application/x-ndjson"
ERROR_REPLY = {
    "type": "object",
    "required": ["error"],
    "properties": {"error": {"type": "string"}},
}
NEVER = "9999-12-31T23:59:59Z"
"""When a model that stays is unloaded."""


class AnswerRoutes:
    """The two endpoints that generate."""

    def __init__(self, edge: Edge) -> None:
        self._edge = edge

    def router(self) -> APIRouter:
        """Their routes."""
        router, who = APIRouter(prefix="/api"), Depends(self._edge.guard)

        async def ollama_chat(request: Request, principal: Principal = who) -> Response:
            """Answer a conversation, line by line."""
            return await self.chat(request, principal)

        async def ollama_generate(request: Request, principal: Principal = who) -> Response:
            """Answer a text, line by line."""
            return await self.generate(request, principal)

        for path, endpoint, model in (
            ("/chat", ollama_chat, ChatRequest),
            ("/generate", ollama_generate, GenerateRequest),
        ):
            told = body_schema(model, NDJSON, ERROR_REPLY)
            router.add_api_route(
                path, endpoint, methods=["POST"], response_model=None, openapi_extra=told
            )
        return router

    async def chat(self, request: Request, principal: Principal) -> Response:
        """Read a conversation and answer it; one without messages loads the model."""
        edge = self._edge
        arrival_s = edge.clock.now_s()
        asked, conversation, tools = await edge.bodies.read(request, parse_chat)
        named = meant(edge, principal, asked)
        if not asked.messages:
            return await self._loaded(
                request, self._dialect(ChatDialect, asked, named, named), asked, named
            )
        alike = affinity_of(request, asked, conversation)
        model = edge.begin(principal, named, alike)
        dialect = self._dialect(ChatDialect, asked, named, model)
        wishes = wishes_of(asked)
        prompts = await edge.prompts_of(model, conversation)
        neutral = replace(
            self._neutral(asked, wishes, model, arrival_s, prompts, tools),
            conversation=conversation,
        )
        return await edge.respond(request, principal, neutral, dialect)

    async def generate(self, request: Request, principal: Principal) -> Response:
        """Read a text and answer it; an empty one loads the model."""
        edge = self._edge
        arrival_s = edge.clock.now_s()
        asked, conversation = await edge.bodies.read(request, parse_generate)
        named = meant(edge, principal, asked)
        if not asked.prompt:
            return await self._loaded(
                request, self._dialect(GenerateDialect, asked, named, named), asked, named
            )
        alike = affinity_of(request, asked, conversation)
        model = edge.begin(principal, named, alike)
        dialect = self._dialect(GenerateDialect, asked, named, model)
        wishes = wishes_of(asked)
        talk = None if asked.raw else conversation
        raw = RawPrompts([asked.prompt]) if asked.raw else None
        prompts = await (
            edge.prompts_of(model, conversation) if raw is None else edge.texts_of(model, raw)
        )
        neutral = replace(
            self._neutral(asked, wishes, model, arrival_s, prompts, NO_TOOLS),
            conversation=talk,
            raw=raw,
        )
        return await edge.respond(request, principal, neutral, dialect)

    def _dialect(
        self, kind: type[OllamaDialect], asked: AnswerBody, named: str, model: str
    ) -> OllamaDialect:
        """Of an answer by `model`, which the client calls as it did, or `named`."""
        tokenizer = self._edge.of(model).context.tokenizer
        return kind(called(asked, named), tokenizer, logprobs=bool(asked.logprobs))

    def _neutral(
        self,
        asked: AnswerBody,
        wishes: SamplingWishes,
        model: str,
        arrival_s: float,
        prompts: list[list[int]],
        tools: ToolUse,
    ) -> AnswerRequest:
        is_chat = isinstance(asked, ChatRequest)
        return AnswerRequest(
            arrival_s=arrival_s,
            operation="chat" if is_chat else "generate",
            reply_id=new_request_id(),
            model=model,
            prompts=prompts,
            prompt_field="messages" if is_chat else "prompt",
            wishes=wishes,
            default_max_tokens=self._edge.limits.default_max_tokens,
            stops=stops_of(asked),
            is_stream=asked.stream is not False,
            tools=tools,
            has_parts=is_chat or not getattr(asked, "raw", None),
            wants_timings=True,
            keep_alive_s=parse_keep_alive(asked.keep_alive, "keep_alive"),
        )

    async def _loaded(
        self, request: Request, dialect: OllamaDialect, asked: AnswerBody, model: str
    ) -> Response:
        """Bring the model in, or with a `keep_alive` of 0 send it away."""
        keep_alive_s = parse_keep_alive(asked.keep_alive, "keep_alive")
        reason = await load_or_unload(self._edge, request, model, keep_alive_s)
        return loaded(dialect, called(asked, model), reason)


def meant(edge: Edge, principal: Principal, asked: AnswerBody | ModelRequest) -> str:
    """The served name: what keys, prices and the ledger know, whatever the client calls it."""
    name = model_of(asked.model or asked.name, edge.names_for(principal))
    return edge.model_for(
        principal, name, among_groups=isinstance(asked, ChatRequest | GenerateRequest)
    )


def called(asked: AnswerBody, model: str) -> str:
    """What the answer calls its model: as the client did."""
    return asked.model or asked.name or model


def loaded(dialect: OllamaDialect, name: str, reason: str) -> Response:
    """Nothing was asked but that."""
    told = dialect.words("", "", [])
    head = {"model": name, "created_at": now_told()}
    return json_response(head | told | {"done": True, "done_reason": reason})


@dataclass(frozen=True, slots=True)
class Files:
    """What a model's files take, and what tells them from another's."""

    size_bytes: int
    digest: str

    @classmethod
    def of(cls, model: ServedModel) -> Files:
        """As they lie there now."""
        files = sorted(path for path in model.directory.iterdir() if path.is_file())
        sizes = [(path.name, path.stat().st_size) for path in files]
        digest = hashlib.sha256(repr((model.config, sizes)).encode()).hexdigest()
        return cls(sum(size for _, size in sizes), digest)


def _details(config: ModelConfig) -> dict[str, Any]:
    return {
        "parent_model": "",
        "format": "safetensors",
        "family": config.family,
        "families": [config.family],
        "parameter_size": "",
        "quantization_level": "",
    }


class ModelRoutes:
    """What is served, as Ollama's clients ask for it."""

    def __init__(self, edge: Edge) -> None:
        self._edge = edge
        self._files: dict[str, Files] = {}
        for served in edge.models:
            self._files_of(served.model)

    def router(self) -> APIRouter:
        """Their routes."""
        router, who = APIRouter(prefix="/api"), Depends(self._edge.guard)

        async def tags(principal: Principal = who) -> Response:
            """Every served name."""
            return json_response({"models": self._cards(principal)})

        async def ps(principal: Principal = who) -> Response:
            """Those that are in memory, and when they go."""
            return self.ps(principal)

        async def show(request: Request, principal: Principal = who) -> Response:
            """One model."""
            return await self.show(request, principal)

        told = error_schema(ERROR_REPLY)
        for path, get in (("/tags", tags), ("/ps", ps), ("/version", self.version)):
            router.add_api_route(
                path, get, methods=["GET"], response_model=None, openapi_extra=told
            )
        shown = body_schema(ModelRequest, error=ERROR_REPLY)
        router.add_api_route(
            "/show",
            show,
            methods=["POST"],
            response_model=None,
            openapi_extra=shown,
            operation_id="ollama_show",
        )
        return router

    def ps(self, principal: Principal) -> Response:
        """The cards of models that are in memory."""
        cards = []
        for name in self._edge.names_for(principal):
            model = self._edge.of(name).model
            expires_at = self._expires_at(model.name)
            if expires_at is None:
                continue
            told = {"size_vram": 0, "context_length": model.max_model_len}
            card = self._card(name) | told | {"expires_at": expires_at}
            del card["modified_at"]
            cards.append(card)
        return json_response({"models": cards})

    async def version(self, request: Request) -> Response:
        """Baton's own."""
        return json_response({"version": request.app.version})

    async def show(self, request: Request, principal: Principal) -> Response:
        """What is known of a model."""
        edge = self._edge
        own = edge.of(await self._read(request, principal))
        config, length = own.model.config, own.model.max_model_len
        known = {
            "general.architecture": config.family,
            f"{config.family}.context_length": length,
            f"{config.family}.embedding_length": config.hidden_size,
            f"{config.family}.block_count": config.num_layers,
            f"{config.family}.attention.head_count": config.num_heads,
            f"{config.family}.attention.head_count_kv": config.num_kv_heads,
        }
        tools = ["tools"] if own.formats.family is not None and own.reader.abilities.tools else []
        thinking = ["thinking"] if own.formats.thinks else []
        return json_response(
            {
                "modelfile": f"FROM {own.model.name}\n",
                "parameters": f"num_ctx {length}",
                "template": "",
                "details": _details(config),
                "model_info": known,
                "capabilities": ["completion", *tools, *thinking],
                "modified_at": self._modified(),
            }
        )

    async def _read(self, request: Request, principal: Principal) -> str:
        def parse(body: bytes) -> ModelRequest:
            return check_fields(parse_object(body), ModelRequest)

        asked = await self._edge.bodies.read(request, parse)
        return meant(self._edge, principal, asked)

    def _cards(self, principal: Principal) -> list[dict[str, Any]]:
        return [self._card(name) for name in self._edge.names_for(principal)]

    def _files_of(self, model: ServedModel) -> Files:
        """Looked at once: before anybody waits, but for models that come later."""
        key = str(model.directory)
        if key not in self._files:
            self._files[key] = Files.of(model)
        return self._files[key]

    def _card(self, name: str) -> dict[str, Any]:
        model = self._edge.of(name).model
        files = self._files_of(model)
        return {
            "name": name,
            "model": name,
            "modified_at": self._modified(),
            "size": files.size_bytes,
            "digest": files.digest,
            "details": _details(model.config),
        }

    def _expires_at(self, name: str) -> str | None:
        """When it goes unless it is used; None for one that is not here."""
        if self._edge.residents is None:
            return NEVER
        view = self._edge.residents.view(name)
        if view["state"] != "loaded":
            return None
        if view["expires_in_s"] is None:
            return NEVER
        in_s = view["keep_alive_s"] if view["users"] else view["expires_in_s"]
        at = datetime.fromtimestamp(wall_time_s() + in_s, UTC)
        return at.isoformat().replace("+00:00", "Z")

    def _modified(self) -> str:
        created = datetime.fromtimestamp(self._edge.created, UTC)
        return created.isoformat().replace("+00:00", "Z")
