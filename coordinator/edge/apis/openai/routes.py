"""POST /v1/chat/completions and /v1/completions. Owns the way from a request to a run; writes no bytes."""

from __future__ import annotations

from itertools import product
from typing import TYPE_CHECKING, Any

import msgspec
from fastapi import APIRouter, Request
from starlette.responses import Response  # noqa: TC002 - FastAPI reads the annotation

from coordinator.cluster.service_api import Generation
from coordinator.edge.answers.generation_run import GenerationRun
from coordinator.edge.answers.request_record import RequestFacts
from coordinator.edge.answers.sampling_defaults import (
    SEED_SPACE,
    check_prompt_length,
    resolve_max_tokens,
    resolve_sampling,
)
from coordinator.edge.apis.openai.reply_format import ChatFormat, CompletionFormat, ReplyOptions
from coordinator.edge.apis.openai.sse import StreamResponse, WholeResponse
from coordinator.edge.apis.openai.types import ChatRequest, CompletionRequest
from coordinator.edge.apis.openai.validation import parse_chat, parse_completion
from coordinator.edge.http.limits import MAX_PROMPTS
from coordinator.edge.text.choice_text import TextOptions
from coordinator.edge.text.prompts import prompts_of
from protocol.clock import wall_time_s
from protocol.errors import InvalidRequest
from protocol.ids import new_request_id

if TYPE_CHECKING:
    from collections.abc import Sequence

    from pydantic import BaseModel

    from coordinator.edge.apis.openai.reply_format import ReplyFormat
    from coordinator.edge.apis.openai.types import GenerationRequest
    from coordinator.edge.served_model import Edge
    from protocol.sampling import SamplingParams


TIMINGS_HEADER = "X-Baton-Timings"


def body_schema(model: type[BaseModel]) -> dict[str, Any]:
    """What OpenAPI says of a body that the route parses itself, to bound it first."""
    schema = model.model_json_schema(ref_template="#/components/schemas/{model}")
    schema.pop("$defs", None)
    return {"requestBody": {"required": True, "content": {"application/json": {"schema": schema}}}}


class GenerationRoutes:
    """The two endpoints that generate."""

    def __init__(self, edge: Edge) -> None:
        self._edge = edge

    def router(self) -> APIRouter:
        """Their routes."""
        router = APIRouter(prefix="/v1")
        for path, endpoint, model in (
            ("/chat/completions", self.chat, ChatRequest),
            ("/completions", self.complete, CompletionRequest),
        ):
            router.add_api_route(
                path,
                endpoint,
                methods=["POST"],
                response_model=None,
                openapi_extra=body_schema(model),
            )
        return router

    async def chat(self, request: Request) -> Response:
        """Answer a conversation."""
        edge = self._edge
        arrival_s = edge.context.clock.now_s()
        asked = await edge.read(request, parse_chat)
        edge.check_model(asked.model)
        prompt = await edge.reader.chat(asked)
        logprobs = (asked.top_logprobs or 0) if asked.logprobs else None
        sampling = self._chat_sampling(asked, prompt, logprobs)
        runs = self._generations(request, asked, [prompt], [sampling])
        options = self._options(asked, "chatcmpl-", [prompt], logprobs=logprobs is not None)
        facts = self._facts(request, asked, options, "chat", arrival_s)
        return self._respond(asked, runs, facts, ChatFormat(options, edge.context.tokenizer))

    async def complete(self, request: Request) -> Response:
        """Continue one or more prompts."""
        edge = self._edge
        arrival_s = edge.context.clock.now_s()
        asked = await edge.read(request, parse_completion)
        edge.check_model(asked.model)
        num_choices = len(prompts_of(asked)) * (asked.n or 1)
        if num_choices > MAX_PROMPTS:
            message = f"prompts times n is {num_choices}, more than {MAX_PROMPTS}"
            raise InvalidRequest(message, "prompt")
        prompts = await edge.reader.completion(asked)
        for prompt in prompts:
            edge.vocabulary.check(prompt, "prompt")
        samplings = [self._completion_sampling(asked, prompt) for prompt in prompts]
        runs = self._generations(request, asked, prompts, samplings)
        options = self._options(
            asked,
            "cmpl-",
            prompts,
            logprobs=asked.logprobs is not None,
            echoes=self._echoes(asked, prompts),
        )
        facts = self._facts(request, asked, options, "text_completion", arrival_s)
        return self._respond(asked, runs, facts, CompletionFormat(options, edge.context.tokenizer))

    def _chat_sampling(
        self, asked: ChatRequest, prompt: list[int], logprobs: int | None
    ) -> SamplingParams:
        param = "max_tokens" if asked.max_completion_tokens is None else "max_completion_tokens"
        limit = asked.max_completion_tokens or asked.max_tokens
        default = self._edge.limits.default_max_tokens
        max_tokens = self._max_tokens(prompt, "messages", limit, param, default)
        return self._sampling(asked, max_tokens, logprobs)

    def _completion_sampling(self, asked: CompletionRequest, prompt: list[int]) -> SamplingParams:
        default = self._edge.limits.completions_max_tokens
        max_tokens = self._max_tokens(prompt, "prompt", asked.max_tokens, "max_tokens", default)
        return self._sampling(asked, max_tokens, asked.logprobs)

    def _max_tokens(
        self, prompt: list[int], source: str, limit: int | None, param: str, default: int
    ) -> int:
        max_model_len = self._edge.model.max_model_len
        check_prompt_length(len(prompt), max_model_len, source)
        return resolve_max_tokens(
            limit,
            param=param,
            default=default,
            num_prompt_tokens=len(prompt),
            max_model_len=max_model_len,
        )

    def _sampling(
        self, asked: GenerationRequest, max_tokens: int, logprobs: int | None
    ) -> SamplingParams:
        return resolve_sampling(
            asked,
            defaults=self._edge.defaults,
            vocabulary=self._edge.vocabulary,
            max_tokens=max_tokens,
            logprobs=logprobs,
        )

    def _generations(
        self,
        request: Request,
        asked: GenerationRequest,
        prompts: Sequence[list[int]],
        samplings: Sequence[SamplingParams],
    ) -> list[Generation]:
        """Every choice of every prompt; choice i of a prompt draws from seed + i."""
        tenant = getattr(request.state, "tenant", "")
        salt = f"{tenant}/{asked.cache_salt or ''}" if tenant else asked.cache_salt or ""
        return [
            Generation(
                request_id=new_request_id(),
                prompt_token_ids=prompt,
                sampling=msgspec.structs.replace(
                    sampling, seed=(sampling.seed + choice) % SEED_SPACE
                ),
                deadline_in_s=self._edge.limits.request_deadline_s,
                cache_salt=salt,
            )
            for (prompt, sampling), choice in product(
                zip(prompts, samplings, strict=True), range(asked.n or 1)
            )
        ]

    def _options(
        self,
        asked: GenerationRequest,
        prefix: str,
        prompts: list[list[int]],
        *,
        logprobs: bool,
        echoes: list[str] | None = None,
    ) -> ReplyOptions:
        return ReplyOptions(
            reply_id=prefix + new_request_id(),
            created=int(wall_time_s()),
            model=asked.model or self._edge.model.name,
            logprobs=logprobs,
            include_usage=asked.wants_usage,
            continuous_usage=asked.wants_continuous_usage,
            return_token_ids=bool(asked.return_token_ids),
            prompt_token_ids=prompts,
            echoes=echoes or [],
            choices_per_prompt=asked.n or 1,
        )

    def _echoes(self, asked: CompletionRequest, prompts: list[list[int]]) -> list[str]:
        if not asked.echo:
            return []
        tokenizer = self._edge.context.tokenizer
        return [
            said if isinstance(said, str) else tokenizer.decode(ids, skip_special_tokens=False)
            for said, ids in zip(prompts_of(asked), prompts, strict=True)
        ]

    def _facts(
        self,
        request: Request,
        asked: GenerationRequest,
        options: ReplyOptions,
        operation: str,
        arrival_s: float,
    ) -> RequestFacts:
        return RequestFacts(
            arrival_s=arrival_s,
            operation=operation,
            reply_id=options.reply_id,
            label=getattr(request.state, "request_label", ""),
            model=options.model,
            response_model=self._edge.model.name,
            is_stream=bool(asked.stream),
            wants_timings=asked.return_timings or request.headers.get(TIMINGS_HEADER) == "1",
            choices_per_prompt=options.choices_per_prompt,
            headers=request.headers,
        )

    def _respond(
        self,
        asked: GenerationRequest,
        generations: list[Generation],
        facts: RequestFacts,
        form: ReplyFormat,
    ) -> Response:
        edge = self._edge
        sampling = generations[0].sampling
        text = TextOptions(
            stops=(asked.stop,) if isinstance(asked.stop, str) else tuple(asked.stop or ()),
            include_stop=bool(asked.include_stop_str_in_output),
            skip_special_tokens=asked.skip_special_tokens is not False,
            min_tokens=sampling.min_tokens,
            hidden_ids=frozenset(() if sampling.ignore_eos else sampling.eos_token_ids),
        )
        run = GenerationRun(generations, text, facts, edge.context)
        answer = StreamResponse if asked.stream else WholeResponse
        return answer(run, form, metrics=edge.context.metrics, limits=edge.limits)
