"""POST /v1/messages and /v1/messages/count_tokens, and GET /v1/models for who names Anthropic's version. Writes no bytes of answers."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import TYPE_CHECKING, Annotated, Any

from fastapi import APIRouter, Depends, Query, Request
from fastapi.routing import APIRoute
from starlette.responses import Response  # noqa: TC002 - FastAPI reads the annotation
from starlette.routing import Match

from coordinator.edge.answers.affinity import affinity_of
from coordinator.edge.answers.answer import AnswerRequest
from coordinator.edge.apis.anthropic.dialect import MessagesDialect
from coordinator.edge.apis.anthropic.replies import ERROR_REPLY
from coordinator.edge.apis.anthropic.requests import parse_count, parse_messages, wishes_of
from coordinator.edge.apis.anthropic.types import CountRequest, MessagesRequest
from coordinator.edge.http.auth import Principal  # noqa: TC001 - FastAPI reads the annotation
from coordinator.edge.http.bodies import body_schema, json_response
from coordinator.edge.http.pages import page_after, page_before
from protocol.errors import InvalidRequest
from protocol.ids import new_request_id

if TYPE_CHECKING:
    from starlette.types import Scope

    from coordinator.edge.answers.edge import Edge

VERSION_HEADER = "anthropic-version"
MAX_PAGE = 1000
"""Of their API, and here also what a page has that asks for no number: most servers' names fit on it."""


class VersionedRoute(APIRoute):
    """Is there only for requests with Anthropic's header, so that another API may have the same path."""

    def matches(self, scope: Scope) -> tuple[Match, Scope]:
        """As any route, but none without the header."""
        if not any(name == VERSION_HEADER.encode() for name, _ in scope["headers"]):
            return Match.NONE, {}
        return super().matches(scope)


class MessageRoutes:
    """Conversations: answered, or counted."""

    def __init__(self, edge: Edge) -> None:
        self._edge = edge

    def router(self) -> APIRouter:
        """Their routes."""
        router, who = APIRouter(prefix="/v1/messages"), Depends(self._edge.guard)

        async def create_message(request: Request, principal: Principal = who) -> Response:
            """Answer a conversation, in Anthropic's form."""
            return await self.message(request, principal)

        async def count_message_tokens(request: Request, principal: Principal = who) -> Response:
            """How many tokens a conversation has."""
            return await self.count(request, principal)

        for path, endpoint, told in (
            ("", create_message, body_schema(MessagesRequest, "text/event-stream", ERROR_REPLY)),
            ("/count_tokens", count_message_tokens, body_schema(CountRequest, error=ERROR_REPLY)),
        ):
            router.add_api_route(
                path, endpoint, methods=["POST"], response_model=None, openapi_extra=told
            )
        return router

    async def message(self, request: Request, principal: Principal) -> Response:
        """Read a conversation and answer it."""
        edge = self._edge
        arrival_s = edge.clock.now_s()
        asked, conversation, tools = await edge.bodies.read(request, parse_messages)
        alike = affinity_of(request, asked, conversation)
        model, told = edge.begin(principal, asked.model, alike), asked.model or edge.default_name
        wishes = wishes_of(asked)
        prompts = await edge.prompts_of(model, conversation)
        reply_id = f"msg_{new_request_id()}"
        neutral = AnswerRequest(
            arrival_s=arrival_s,
            operation="chat",
            reply_id=reply_id,
            model=model,
            prompts=prompts,
            conversation=conversation,
            prompt_field="messages",
            wishes=wishes,
            default_max_tokens=edge.limits.default_max_tokens,
            stops=tuple(asked.stop_sequences or ()),
            is_stream=bool(asked.stream),
            tools=tools,
            has_parts=True,
        )
        return await edge.respond(request, principal, neutral, MessagesDialect(reply_id, told))

    async def count(self, request: Request, principal: Principal) -> Response:
        """Read a conversation and count it."""
        edge = self._edge
        asked, conversation = await edge.bodies.read(request, parse_count)
        model = edge.model_for(principal, asked.model)
        prompt = await edge.of(model).reader.turns(conversation)
        return json_response({"input_tokens": len(prompt)})


class ModelRoutes:
    """Cards as Anthropic's clients read them."""

    def __init__(self, edge: Edge) -> None:
        self._edge = edge

    def router(self) -> APIRouter:
        """Their routes; `/openapi.json` has these paths already."""
        router = APIRouter(prefix="/v1/models", route_class=VersionedRoute)
        who = Depends(self._edge.guard)

        async def models(
            principal: Principal = who,
            limit: Annotated[int, Query(ge=1, le=MAX_PAGE)] = MAX_PAGE,
            after_id: str | None = None,
            before_id: str | None = None,
        ) -> Response:
            return self.models(principal, limit, after_id, before_id)

        async def model(model_id: str, principal: Principal = who) -> Response:
            name = self._edge.model_for(principal, model_id, among_groups=True)
            return json_response(self._card(name))

        for path, endpoint in (("", models), ("/{model_id:path}", model)):
            router.add_api_route(
                path, endpoint, methods=["GET"], response_model=None, include_in_schema=False
            )
        return router

    def models(
        self, principal: Principal, limit: int, after_id: str | None, before_id: str | None
    ) -> Response:
        """Cards for the served names that its key allows: the first page, or the one behind or before a name."""
        if after_id is not None and before_id is not None:
            raise InvalidRequest("after_id and before_id exclude each other", "before_id")
        names = self._edge.names_for(principal)
        if before_id is None:
            place, has_more = page_after(names, limit, after_id, "after_id")
        else:
            place, has_more = page_before(names, limit, before_id, "before_id")
        cards = [self._card(name) for name in names[place]]
        first, last = (cards[0]["id"], cards[-1]["id"]) if cards else (None, None)
        page = {"has_more": has_more, "first_id": first, "last_id": last}
        return json_response({"data": cards} | page)

    def _card(self, name: str) -> dict[str, Any]:
        edge = self._edge
        created, length = (
            datetime.fromtimestamp(edge.created, UTC),
            edge.of(name).model.max_model_len,
        )
        return {
            "type": "model",
            "id": name,
            "display_name": name,
            "created_at": created.isoformat().replace("+00:00", "Z"),
            "lifecycle": "active",
            "max_input_tokens": length,
            "max_tokens": length,
        }
