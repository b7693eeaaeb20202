"""POST /v1/chat/completions and /v1/completions. Owns the way from a body to a neutral request; writes no bytes."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from fastapi import APIRouter, Depends, Request
from starlette.responses import Response  # noqa: TC002 - FastAPI reads the annotation

from coordinator.edge.answers.affinity import affinity_of
from coordinator.edge.answers.answer import AnswerRequest, RawPrompts, Resumable
from coordinator.edge.answers.own_deployment import tokens_of
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


def _check_can_go(asked: GenerationRequest, *others: str) -> None:
    """Raise InvalidRequest for what tells of a prompt's tokens, where each deployment makes its own; so do `others`."""
    if fields := (*_telling(asked), *others):
        told = f"{fields[0]} cannot be asked of a group of deployments"
        raise InvalidRequest(told, fields[0], UNSUPPORTED_CODE)


def _telling(asked: GenerationRequest) -> list[str]:
    names = ("return_token_ids", "prompt_logprobs")
    return [name for name in names if getattr(asked, name) not in (None, False)]


def _echoed(asked: CompletionRequest, raw: RawPrompts) -> list[str]:
    """A prompt is echoed without its tokens as the text that it was."""
    return ["echo"] if asked.echo and (raw.has_ids or asked.logprobs is not None) else []


@dataclass(frozen=True, slots=True)
class Talk:
    """Which model answers, what a chat's prompt is made of, and what its answer may call; `raw` are the prompts of completions
    for a group."""

    model: str
    conversation: Conversation | None = None
    tools: ToolUse = NO_TOOLS
    raw: RawPrompts | None = None


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
        alike = affinity_of(arrival.request, asked, conversation)
        model = edge.begin(arrival.principal, asked.model, alike)
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
        talk = Talk(model, conversation, tools)
        return await self._respond(CHAT, arrival, asked, wishes, echoes, talk)

    async def complete(self, arrival: Arrival) -> Response:
        """Read the prompts and continue each."""
        edge = self._edge
        if (rest := await self._rest(arrival)) is not None:
            return rest
        longest = edge.longest
        asked = await edge.bodies.read(
            arrival.request, lambda body: parse_completion(body, longest), MAX_IDS
        )
        alike = affinity_of(arrival.request, asked, prompt=asked.prompt)
        model = edge.begin(arrival.principal, asked.model, alike)
        wishes = completion_wishes(asked)
        raw = RawPrompts(prompts_of(asked), asked.add_special_tokens is not False)
        num_choices = len(raw.said) * (asked.n or 1)
        if num_choices > MAX_PROMPTS:
            message = f"prompts times n must be at most {MAX_PROMPTS}, but is {num_choices}"
            raise InvalidRequest(message, "prompt", LONG_ARRAY)
        if self._is_for_group(model, asked, raw):
            _check_can_go(asked, *_echoed(asked, raw))
            said = [it if isinstance(it, str) and asked.echo else "" for it in raw.said]
            echoes = [PromptEcho([], text) for text in said]
            talk = Talk(model, raw=raw)
            return await self._respond(COMPLETION, arrival, asked, wishes, echoes, talk)
        echoes = await self._read(edge.of(model), asked, wishes, raw)
        return await self._respond(COMPLETION, arrival, asked, wishes, echoes, Talk(model))

    def _is_for_group(self, model: str, asked: CompletionRequest, raw: RawPrompts) -> bool:
        """A name that is a model's too means the model, where only a model can tell what is asked."""
        edge = self._edge
        if edge.group_of(model) is None:
            return False
        tells = raw.has_ids or _telling(asked) or _echoed(asked, raw)
        return not (tells and model in edge.own_names)

    async def _read(
        self, own: Served, asked: CompletionRequest, wishes: SamplingWishes, raw: RawPrompts
    ) -> list[PromptEcho]:
        """The prompts in a model's tokens, and what the answer tells of them."""
        prompts = await tokens_of(own, raw, "prompt")
        for prompt in prompts:
            own.vocabulary.check(prompt, "prompt")
        check_scores(prompts, wishes.prompt_logprobs, asked.n or 1)
        told = [""] * len(prompts)
        if asked.echo:
            lists = [prompt for prompt in raw.said if not isinstance(prompt, str)]
            told = [prompt for prompt in raw.said if isinstance(prompt, str)]
            told += await self._edge.side.tokenize(lambda: _decoded(own, lists))
        return [
            self._prompt_echo(own, asked, text, prompt)
            for text, prompt in zip(told, prompts, strict=True)
        ]

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
        talk: Talk,
    ) -> Response:
        edge, choices, model = self._edge, asked.n or 1, talk.model
        options = ReplyOptions(
            reply_id=endpoint.id_prefix + new_request_id(),
            created=int(wall_time_s()),
            model=asked.model or edge.default_name,
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
            prompts=[] if talk.raw else [prompt.token_ids for prompt in prompts],
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
            raw=talk.raw,
            keeps_thoughts=True,
        )
        dialect = endpoint.dialect(options, edge.of(model).context.tokenizer)
        return await edge.respond(arrival.request, arrival.principal, neutral, dialect)


def _decoded(own: Served, prompts: Sequence[list[int]]) -> list[str]:
    decode = own.context.tokenizer.decode
    return [decode(prompt, skip_special_tokens=False) for prompt in prompts]
