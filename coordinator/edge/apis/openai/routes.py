"""POST /v1/chat/completions and /v1/completions. Owns the way from a body to a neutral request; writes no bytes."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from fastapi import APIRouter, Depends, Request
from starlette.responses import Response  # noqa: TC002 - FastAPI reads the annotation

from coordinator.edge.answers.answer import AnswerRequest, Resumable
from coordinator.edge.answers.tools import NO_TOOLS
from coordinator.edge.apis.openai.dialects.generation import (
    STREAM_HEADERS,
    ChatDialect,
    CompletionDialect,
    PromptEcho,
    ReplyOptions,
)
from coordinator.edge.apis.openai.dialects.prompt_scores import SpelledScores
from coordinator.edge.apis.openai.requests import (
    chat_wishes,
    check_scores,
    completion_wishes,
    parse_chat,
    parse_completion,
    prompts_of,
)
from coordinator.edge.apis.openai.types import ChatRequest, CompletionRequest
from coordinator.edge.http.auth import Principal  # noqa: TC001 - FastAPI reads the annotation
from coordinator.edge.http.bodies import MAX_IDS, body_schema
from coordinator.edge.http.field_errors import LONG_ARRAY, UNSUPPORTED_CODE
from coordinator.edge.http.limits import MAX_PROMPTS
from protocol.clock import wall_time_s
from protocol.errors import InvalidRequest
from protocol.ids import new_request_id

if TYPE_CHECKING:
    from collections.abc import Sequence

    from coordinator.edge.answers.answer import SamplingWishes
    from coordinator.edge.answers.edge import Edge
    from coordinator.edge.answers.served import Served
    from coordinator.edge.answers.tools import ToolUse
    from coordinator.edge.apis.openai.dialects.generation import OpenAiDialect
    from coordinator.edge.apis.openai.types import GenerationRequest
    from coordinator.edge.text.conversation import Conversation

TIMINGS_HEADER = "X-Baton-Timings"
RESUMABLE_HEADER = "X-Baton-Resumable"
LAST_EVENT_ID = "Last-Event-ID"


@dataclass(frozen=True, slots=True)
class Endpoint:
    """What sets the two apart once their bodies are read."""

    operation: str
    id_prefix: str
    prompt_field: str
    dialect: type[OpenAiDialect]


CHAT = Endpoint("chat", "chatcmpl-", "messages", ChatDialect)
COMPLETION = Endpoint("text_completion", "cmpl-", "prompt", CompletionDialect)


@dataclass(frozen=True, slots=True)
class Arrival:
    """An HTTP request, who sent it, and when it came."""

    request: Request
    principal: Principal
    at_s: float


def _check_can_go(asked: ChatRequest) -> None:
    """Raise InvalidRequest for what tells of a prompt, where each deployment makes its own."""
    for name in ("return_token_ids", "prompt_logprobs"):
        if getattr(asked, name) not in (None, False):
            told = f"{name} cannot be asked of a group of deployments"
            raise InvalidRequest(told, name, UNSUPPORTED_CODE)


@dataclass(frozen=True, slots=True)
class Talk:
    """What a chat's prompt is made of, and what its answer may call."""

    conversation: Conversation | None = None
    tools: ToolUse = NO_TOOLS


NO_TALK = Talk()


class GenerationRoutes:
    """The two endpoints that generate."""

    def __init__(self, edge: Edge) -> None:
        self._edge = edge

    def router(self) -> APIRouter:
        """Their routes."""
        router, who = APIRouter(prefix="/v1"), Depends(self._edge.guard)
        clock = self._edge.clock

        async def chat(request: Request, principal: Principal = who) -> Response:
            """Answer a conversation."""
            return await self.chat(Arrival(request, principal, clock.now_s()))

        async def complete(request: Request, principal: Principal = who) -> Response:
            """Continue one or more prompts."""
            return await self.complete(Arrival(request, principal, clock.now_s()))

        for path, endpoint, model in (
            ("/chat/completions", chat, ChatRequest),
            ("/completions", complete, CompletionRequest),
        ):
            router.add_api_route(
                path,
                endpoint,
                methods=["POST"],
                response_model=None,
                openapi_extra=body_schema(model, "text/event-stream"),
            )
        return router

    async def chat(self, arrival: Arrival) -> Response:
        """Read a conversation and answer it."""
        edge = self._edge
        if (rest := await self._rest(arrival)) is not None:
            return rest
        asked, conversation, tools = await edge.bodies.read(arrival.request, parse_chat)
        model = edge.begin(arrival.principal, asked.model)
        wishes = chat_wishes(asked)
        prompts = await edge.prompts_of(model, conversation, keeps_thoughts=True)
        if not prompts:
            _check_can_go(asked)
        check_scores(prompts, wishes.prompt_logprobs, 1)
        own = edge.of(model)
        echoes = [
            PromptEcho(prompt, scores=self._scores(own, prompt, "", None, asked.prompt_logprobs))
            for prompt in prompts
        ]
        return await self._respond(CHAT, arrival, asked, wishes, echoes, Talk(conversation, tools))

    async def complete(self, arrival: Arrival) -> Response:
        """Read the prompts and continue each."""
        edge = self._edge
        if (rest := await self._rest(arrival)) is not None:
            return rest
        longest = edge.longest
        asked = await edge.bodies.read(
            arrival.request, lambda body: parse_completion(body, longest), MAX_IDS
        )
        own = edge.of(edge.begin(arrival.principal, asked.model))
        wishes = completion_wishes(asked)
        said = prompts_of(asked)
        num_choices = len(said) * (asked.n or 1)
        if num_choices > MAX_PROMPTS:
            message = f"prompts times n must be at most {MAX_PROMPTS}, but is {num_choices}"
            raise InvalidRequest(message, "prompt", LONG_ARRAY)
        special = asked.add_special_tokens is not False
        texts = [prompt for prompt in said if isinstance(prompt, str)]
        lists = [prompt for prompt in said if not isinstance(prompt, str)]
        prompts = await own.reader.texts(texts, add_special_tokens=special) + lists
        for prompt in prompts:
            own.vocabulary.check(prompt, "prompt")
        check_scores(prompts, wishes.prompt_logprobs, asked.n or 1)
        told = [""] * len(prompts)
        if asked.echo:
            told = texts + await edge.side.tokenize(lambda: _decoded(own, lists))
        echoes = [
            self._prompt_echo(own, asked, text, prompt)
            for text, prompt in zip(told, prompts, strict=True)
        ]
        return await self._respond(COMPLETION, arrival, asked, wishes, echoes)

    async def _rest(self, arrival: Arrival) -> Response | None:
        """What is left of the stream that the request goes on with, if it does; its body says nothing then."""
        event_id = arrival.request.headers.get(LAST_EVENT_ID)
        if not event_id:
            return None
        await self._edge.bodies.read(arrival.request, len)
        return self._edge.resume(arrival.principal, event_id, STREAM_HEADERS)

    def _prompt_echo(
        self, own: Served, asked: CompletionRequest, text: str, prompt: list[int]
    ) -> PromptEcho:
        """`text` is what it says, where that is echoed."""
        echo_top = asked.logprobs if asked.echo else None
        scores = self._scores(own, prompt, text, echo_top, asked.prompt_logprobs)
        return PromptEcho(prompt, text, scores)

    @staticmethod
    def _scores(
        own: Served, prompt: list[int], text: str, echo_top: int | None, told_top: int | None
    ) -> SpelledScores | None:
        """What takes the prompt's log-probabilities, if they are asked for."""
        if (echo_top is None and told_top is None) or not prompt:
            return None
        return SpelledScores(prompt, own.context.tokenizer, text, echo_top, told_top)

    async def _respond(
        self,
        endpoint: Endpoint,
        arrival: Arrival,
        asked: GenerationRequest,
        wishes: SamplingWishes,
        prompts: Sequence[PromptEcho],
        talk: Talk = NO_TALK,
    ) -> Response:
        edge, choices = self._edge, asked.n or 1
        model = asked.model or edge.models[0].model.name
        options = ReplyOptions(
            reply_id=endpoint.id_prefix + new_request_id(),
            created=int(wall_time_s()),
            model=model,
            prompts=prompts,
            logprobs=wishes.logprobs is not None,
            include_usage=asked.wants_usage,
            continuous_usage=asked.wants_continuous_usage,
            return_token_ids=bool(asked.return_token_ids),
            choices_per_prompt=choices,
        )
        wants_timings = asked.return_timings or arrival.request.headers.get(TIMINGS_HEADER) == "1"
        may_resume = arrival.request.headers.get(RESUMABLE_HEADER) == "1"
        is_chat = endpoint is CHAT
        limits = edge.limits
        neutral = AnswerRequest(
            arrival_s=arrival.at_s,
            operation=endpoint.operation,
            reply_id=options.reply_id,
            model=model,
            prompts=[prompt.token_ids for prompt in prompts],
            prompt_field=endpoint.prompt_field,
            wishes=wishes,
            default_max_tokens=limits.default_max_tokens
            if is_chat
            else limits.completions_max_tokens,
            choices_per_prompt=choices,
            stops=(asked.stop,) if isinstance(asked.stop, str) else tuple(asked.stop or ()),
            include_stop=bool(asked.include_stop_str_in_output),
            skip_special_tokens=asked.skip_special_tokens is not False,
            cache_salt=asked.cache_salt or "",
            priority=asked.priority or 0,
            is_stream=bool(asked.stream),
            resumable=Resumable.BY_ID if may_resume else Resumable.NO,
            wants_timings=bool(wants_timings),
            tools=talk.tools,
            has_parts=is_chat,
            prompt_scores=[prompt.scores for prompt in prompts if prompt.scores is not None],
            conversation=talk.conversation,
            keeps_thoughts=True,
        )
        dialect = endpoint.dialect(options, edge.of(model).context.tokenizer)
        return await edge.respond(arrival.request, arrival.principal, neutral, dialect)


def _decoded(own: Served, prompts: Sequence[list[int]]) -> list[str]:
    decode = own.context.tokenizer.decode
    return [decode(prompt, skip_special_tokens=False) for prompt in prompts]
