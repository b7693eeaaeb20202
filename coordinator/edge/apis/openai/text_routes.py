"""POST /tokenize and /detokenize, GET /tokenizer_info and /v1/models: what the edge answers alone."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from fastapi import APIRouter, Depends, Request
from starlette.responses import Response  # noqa: TC002 - FastAPI reads the annotation

from coordinator.edge.apis.openai.requests import parse_detokenize, parse_tokenize
from coordinator.edge.apis.openai.types import DetokenizeRequest, TokenizeRequest
from coordinator.edge.http.auth import Principal  # noqa: TC001 - FastAPI reads the annotation
from coordinator.edge.http.bodies import MAX_IDS, body_schema, json_response
from coordinator.edge.text.chat_template import SETTINGS, read_tokenizer_config

if TYPE_CHECKING:
    from coordinator.edge.answers.edge import Edge

INLINE_TOKENS = 1024
FAST_TOKENIZER = "PreTrainedTokenizerFast"
"""What transformers calls a tokenizer.json of no family of its own."""


class TextRoutes:
    """Endpoints that need the tokenizer and the model's card only."""

    def __init__(self, edge: Edge) -> None:
        self._edge = edge

    def router(self) -> APIRouter:
        """Their routes."""
        router, who = APIRouter(), Depends(self._edge.guard)

        async def tokenize(request: Request, principal: Principal = who) -> Response:
            """Token ids of a text or of a conversation."""
            return await self.tokenize(request, principal)

        async def detokenize(request: Request, principal: Principal = who) -> Response:
            """Text of token ids, special tokens included."""
            return await self.detokenize(request, principal)

        async def tokenizer_info(principal: Principal = who, model: str | None = None) -> Response:
            """What a client needs to tokenize and to render chats itself, in the form of tokenizer_config.json."""
            return self.tokenizer_info(principal, model)

        async def models(principal: Principal = who) -> Response:
            """A card for every served name."""
            return self.models(principal)

        async def model(model_id: str, principal: Principal = who) -> Response:
            """One card."""
            name = self._edge.model_for(principal, model_id, among_groups=True)
            return json_response(self._card(name))

        posts = ((tokenize, TokenizeRequest), (detokenize, DetokenizeRequest))
        add = router.add_api_route
        for endpoint, body in posts:
            told, path = body_schema(body), f"/{endpoint.__name__}"
            add(path, endpoint, methods=["POST"], response_model=None, openapi_extra=told)
        add("/tokenizer_info", tokenizer_info, methods=["GET"], response_model=None)
        add("/v1/models", models, methods=["GET"], response_model=None)
        add("/v1/models/{model_id:path}", model, methods=["GET"], response_model=None)
        return router

    async def tokenize(self, request: Request, principal: Principal) -> Response:
        """Ids, and their names for who asks."""
        edge = self._edge
        asked, conversation = await edge.bodies.read(request, parse_tokenize)
        own = edge.of(edge.model_for(principal, asked.model))
        if conversation is not None:
            tokens = await own.reader.chat(conversation)
        else:
            assert asked.prompt is not None, "parse_tokenize lets one of the two pass"
            special = asked.add_special_tokens is not False
            tokens = await own.reader.text(asked.prompt, add_special_tokens=special)
        names = None
        if asked.return_token_strs:
            name_of = own.context.tokenizer.token_name
            names = await edge.side.run(lambda: [name_of(token_id) for token_id in tokens])
        told = {"count": len(tokens), "max_model_len": own.model.max_model_len}
        return json_response(told | {"tokens": tokens, "token_strs": names})

    async def detokenize(self, request: Request, principal: Principal) -> Response:
        """A text."""
        edge = self._edge
        asked = await edge.bodies.read(request, parse_detokenize, MAX_IDS)
        own = edge.of(edge.model_for(principal, asked.model))

        def read() -> str:
            own.vocabulary.check(asked.tokens, "tokens")
            return own.context.tokenizer.decode_long(asked.tokens)

        is_small = len(asked.tokens) <= INLINE_TOKENS
        return json_response({"prompt": read() if is_small else await edge.side.run(read)})

    def tokenizer_info(self, principal: Principal, name: str | None) -> Response:
        """The tokenizer's settings, of the first model that the key allows where none is named."""
        edge = self._edge
        name = name or next(iter(edge.names_for(principal)), None)
        own = edge.of(edge.model_for(principal, name))
        config = read_tokenizer_config(own.model.directory / SETTINGS)
        known = {"tokenizer_class": FAST_TOKENIZER, "model_max_length": own.model.max_model_len}
        return json_response(known | config | own.reader.template.told())

    def models(self, principal: Principal) -> Response:
        """Those that its key allows."""
        cards = [self._card(name) for name in self._edge.names_for(principal)]
        return json_response({"object": "list", "data": cards})

    def _card(self, name: str) -> dict[str, Any]:
        model = self._edge.of(name).model
        adapters = self._edge.adapters
        adapter = None if adapters is None else adapters.find(name)
        state = self._edge.state_of(model.name)
        return ({} if state is None else {"status": {"value": state}}) | {
            "id": name,
            "object": "model",
            "created": self._edge.created if adapter is None else adapter.created,
            "owned_by": "baton",
            "root": model.name if adapter is None else adapter.path,
            "parent": None if adapter is None else model.name,
            "max_model_len": model.max_model_len,
            "permission": [],
        }
