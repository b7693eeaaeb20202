"""POST /v1/responses, and what can be done with a response that is kept. Writes no bytes of answers."""

from __future__ import annotations

from contextlib import suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Any, Final, Literal

import orjson
from fastapi import APIRouter, Depends, Query, Request
from starlette.responses import Response

from coordinator.edge.answers.affinity import affinity_of
from coordinator.edge.answers.answer import AnswerRequest, Resumable
from coordinator.edge.answers.resumable import StreamGone
from coordinator.edge.apis.openai.dialects.generation import STREAM_HEADERS
from coordinator.edge.apis.openai.responses.dialect import ResponseOptions, ResponsesDialect
from coordinator.edge.apis.openai.responses.requests import (
    conversation_of,
    ignored_types,
    offered,
    parse_response,
    turns_of,
    wishes_of,
)
from coordinator.edge.apis.openai.responses.types import ResponsesRequest
from coordinator.edge.apis.openai.responses.window import (
    KeptResponse,
    ResponseNotFound,
    ResponseWindow,
    written,
)
from coordinator.edge.http.auth import Principal  # noqa: TC001 - FastAPI reads the annotation
from coordinator.edge.http.bodies import body_schema, json_response
from coordinator.edge.http.limits import MAX_TOLD_BYTES
from coordinator.edge.http.pages import page_after
from protocol.clock import wall_time_s
from protocol.errors import InvalidRequest
from protocol.ids import new_request_id

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from coordinator.edge.answers.edge import Edge
    from coordinator.edge.answers.resumable import KeptStream
    from coordinator.edge.answers.tools import ToolUse
    from coordinator.edge.text.conversation import Turn

ONE = "/{response_id}"
IGNORED_TOOLS_HEADER = "X-Baton-Ignored-Tools"
MAX_IGNORED_TOLD = 32
LAST_FIRST: Final = "desc"
MAX_PAGE = 100


class ResponseRoutes:
    """Makes responses, and keeps them for a while."""

    def __init__(self, edge: Edge) -> None:
        self._edge = edge
        self._window = ResponseWindow()

    def router(self) -> APIRouter:
        """Its routes."""
        router, who = APIRouter(prefix="/v1/responses"), Depends(self._edge.guard)

        async def create_response(request: Request, principal: Principal = who) -> Response:
            """Answer an input, item by item."""
            return await self.create(request, principal)

        async def get_response(
            response_id: str,
            principal: Principal = who,
            stream: bool = False,  # noqa: FBT001, FBT002 - FastAPI reads it
            starting_after: Annotated[int, Query(ge=0, le=2**53)] | None = None,
        ) -> Response:
            """A response that is still kept; with `stream` what one in the background says after an event."""
            if stream:
                number = 0 if starting_after is None else starting_after + 1
                edge = self._edge
                return edge.resume_at(principal, response_id, number, STREAM_HEADERS)
            return self._kept(response_id, principal)

        async def delete_response(response_id: str, principal: Principal = who) -> Response:
            """Forget a response, and its stream; one that is still written is ended."""
            self._forget(response_id, principal.tenant)
            return json_response({"id": response_id, "object": "response", "deleted": True})

        async def list_input_items(
            response_id: str,
            principal: Principal = who,
            limit: Annotated[int, Query(ge=1, le=MAX_PAGE)] | None = None,
            after: str | None = None,
            order: Literal["asc", "desc"] = LAST_FIRST,
        ) -> Response:
            """What a response answered, the last first unless it is asked otherwise."""
            items = self._window.find(response_id, principal.tenant).items
            if (limit, after, order) != (None, None, LAST_FIRST):
                items = await self._edge.side.run(lambda: part_of(items, limit, after, order))
            return Response(items, media_type="application/json")

        async def cancel_response(response_id: str, principal: Principal = who) -> Response:
            """End one in the background; whoever asked for another cancels it by leaving."""
            return self._cancelled(response_id, principal)

        told = body_schema(ResponsesRequest, "text/event-stream")
        add = router.add_api_route
        add("", create_response, methods=["POST"], response_model=None, openapi_extra=told)
        add(ONE, get_response, methods=["GET"], response_model=None)
        add(ONE, delete_response, methods=["DELETE"], response_model=None)
        add(f"{ONE}/input_items", list_input_items, methods=["GET"], response_model=None)
        add(f"{ONE}/cancel", cancel_response, methods=["POST"], response_model=None)
        return router

    async def create(self, request: Request, principal: Principal) -> Response:
        """Read an input and answer it."""
        edge = self._edge
        arrival_s = edge.clock.now_s()
        read = await edge.bodies.read(request, read_response)
        asked = read.asked
        edge.model_for(principal, asked.model, among_groups=True)
        wishes = wishes_of(asked)
        earlier = self._window.turns_before(asked.previous_response_id, principal.tenant)
        conversation = conversation_of(asked, earlier, read.turns, read.tools)
        alike = affinity_of(request, asked, conversation)
        model, told = edge.begin(principal, asked.model, alike), asked.model or edge.default_name
        prompts = await edge.prompts_of(model, conversation)
        options = ResponseOptions(
            response_id=f"resp_{new_request_id()}",
            created=int(wall_time_s()),
            model=told,
            echoed=self._echoed(model, read),
            logprobs=wishes.logprobs is not None,
        )
        neutral = AnswerRequest(
            arrival_s=arrival_s,
            operation="chat",
            reply_id=options.response_id,
            model=model,
            prompts=prompts,
            conversation=conversation,
            prompt_field="input",
            wishes=wishes,
            default_max_tokens=edge.limits.default_max_tokens,
            priority=asked.priority or 0,
            is_stream=bool(asked.stream),
            resumable=Resumable.BY_NUMBER if asked.background else Resumable.NO,
            tools=read.tools,
            has_parts=True,
        )
        keep = self._keeper(options.response_id, principal, read, [*earlier, *read.turns])
        dialect = ResponsesDialect(options, edge.of(model).context.tokenizer, keep)
        response = await edge.respond(request, principal, neutral, dialect)
        if ignored := ignored_types(asked):
            response.headers[IGNORED_TOOLS_HEADER] = ", ".join(ignored[:MAX_IGNORED_TOLD])
        return response

    def _keeper(
        self, response_id: str, principal: Principal, read: ReadResponse, turns: list[Turn]
    ) -> Callable[[bytes, Sequence[dict[str, Any]]], None]:
        """What takes the response when it has ended, unless its client wants it kept nowhere."""
        if read.asked.store is False:
            return lambda _told, _output: None

        def keep(told: bytes, output: Sequence[dict[str, Any]]) -> None:
            answered = written([*turns, *answer_turn(output)])
            kept = KeptResponse(principal.tenant, told, read.items, answered)
            self._window.keep(response_id, kept)

        return keep

    def _forget(self, response_id: str, tenant: str) -> None:
        """Raises ResponseNotFound where neither is here."""
        try:
            kept = self._edge.streams.find(response_id, tenant)
        except StreamGone:
            self._window.drop(response_id, tenant)
            return
        self._edge.streams.forget(kept)
        with suppress(ResponseNotFound):  # it is being written, or was not to be stored
            self._window.drop(response_id, tenant)

    def _cancelled(self, response_id: str, principal: Principal) -> Response:
        streams = self._edge.streams
        try:
            kept = streams.find(response_id, principal.tenant)
        except StreamGone:
            self._window.find(response_id, principal.tenant)
            told = "only responses in the background are cancelled"
            raise InvalidRequest(told, "response_id") from None
        if kept.is_over:
            return self._kept(response_id, principal)
        as_begun = begun(kept)
        streams.forget(kept)
        return json_response(as_begun | {"status": "cancelled"})

    def _kept(self, response_id: str, principal: Principal) -> Response:
        """As it ended, or, of one in the background that is being written, as it began."""
        try:
            told = self._window.find(response_id, principal.tenant).told
        except ResponseNotFound:
            with suppress(StreamGone):
                kept = self._edge.streams.find(response_id, principal.tenant)
                if not kept.is_over:
                    return json_response(begun(kept))
            raise
        return Response(told, media_type="application/json")

    def _echoed(self, model: str, read: ReadResponse) -> dict[str, Any]:
        """What a response repeats of its request, and the defaults that held."""
        asked = read.asked
        defaults, reasoning = self._edge.of(model).rules.defaults, asked.reasoning
        temperature, top_p = asked.temperature, asked.top_p
        return {
            "background": bool(asked.background),
            "instructions": asked.instructions,
            "max_output_tokens": asked.max_output_tokens,
            "max_tool_calls": asked.max_tool_calls,
            "metadata": asked.metadata or {},
            "parallel_tool_calls": asked.parallel_tool_calls is not False,
            "previous_response_id": asked.previous_response_id,
            "prompt_cache_key": asked.prompt_cache_key,
            "reasoning": {
                "effort": reasoning.effort if reasoning else None,
                "summary": reasoning.summary if reasoning else None,
            },
            "safety_identifier": asked.safety_identifier,
            "service_tier": "default",
            "store": asked.store is not False,
            "temperature": defaults.temperature if temperature is None else temperature,
            **read.told,
            "top_logprobs": asked.top_logprobs or 0,
            "top_p": defaults.top_p if top_p is None else top_p,
            "truncation": "disabled",
            "user": asked.user,
        }


def begun(kept: KeptStream) -> dict[str, Any]:
    """The response of a stream as its first event has it; where that is not kept any more, its name."""
    if kept.first or not kept.events:
        return {"id": kept.stream_id, "object": "response", "status": "in_progress"}
    response: dict[str, Any] = orjson.loads(kept.events[0].partition(b"data: ")[2])["response"]
    return response


@dataclass(frozen=True, slots=True)
class ReadResponse:
    """A body with everything made of it that takes as long as the body is large: the turns of its own input, and that
    input as a page of items; what the response `told` says again."""

    asked: ResponsesRequest
    turns: list[Turn]
    tools: ToolUse
    items: bytes
    told: dict[str, Any]


def read_response(body: bytes) -> ReadResponse:
    """As `parse_response`, for answers that are kept and say their request again."""
    asked, turns, tools = parse_response(body)
    items = b"" if asked.store is False else page_of(input_items(asked))
    return ReadResponse(asked, turns, tools, items, told_of(asked))


def told_of(asked: ResponsesRequest) -> dict[str, Any]:
    """What of a request has any form, and is said again with every response; raises InvalidRequest for too much."""
    form = asked.text.format if asked.text is not None else None
    told: dict[str, Any] = {
        "text": {"format": form or {"type": "text"}},
        "tool_choice": asked.tool_choice or "auto",
        "tools": [tool.model_dump(exclude_unset=True) for tool in offered(asked)],
    }
    for name, value in told.items():
        if len(orjson.dumps(value)) > MAX_TOLD_BYTES:
            raise InvalidRequest(f"{name} must take at most {MAX_TOLD_BYTES} bytes", name)
    return told


def page_of(items: Sequence[dict[str, Any]]) -> bytes:
    """All items on one page, the last first."""
    return _page(items[::-1], has_more=False)


def part_of(items: bytes, limit: int | None, after: str | None, order: str) -> bytes:
    """Of that page `limit` items, or all, from the first in this order or from behind the item `after`. Raises
    InvalidRequest where there is no such item."""
    data = orjson.loads(items)["data"]
    if order != LAST_FIRST:
        data.reverse()
    ids = [item["id"] for item in data]
    place, has_more = page_after(ids, limit or len(ids), after, "after")
    return _page(data[place], has_more=has_more)


def _page(data: Sequence[dict[str, Any]], *, has_more: bool) -> bytes:
    ends = {"first_id": data[0]["id"], "last_id": data[-1]["id"]} if data else {}
    told = {"object": "list", "data": data, "has_more": has_more}
    return orjson.dumps(told | {"first_id": None, "last_id": None} | ends)


def input_items(asked: ResponsesRequest) -> list[dict[str, Any]]:
    """The input as items, each with an id."""
    if isinstance(asked.input, str):
        content = [{"type": "input_text", "text": asked.input}]
        said = {"id": f"msg_{new_request_id()}", "type": "message", "role": "user"}
        return [said | {"content": content}] if asked.input else []
    return [
        {"id": f"msg_{new_request_id()}", "type": "message"} | item.model_dump(exclude_unset=True)
        for item in asked.input
    ]


def answer_turn(output: Sequence[dict[str, Any]]) -> list[Turn]:
    """The output as the one turn, if it says anything, that a later request goes on with."""
    return turns_of(ResponsesRequest.model_validate({"input": output}))
