"""What every API is given. Owns the way from a neutral request to a response, and the checks that need a model.

API: body ─► AnswerRequest ─► respond: sampling ─► Generation ─► GenerationRun ─► Response, in the API's Dialect
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import product
from typing import TYPE_CHECKING, Protocol, TypeVar

import msgspec

from coordinator.cluster.service_api import Generation
from coordinator.edge.answers.choice_text import TextOptions
from coordinator.edge.answers.generation_run import GenerationRun
from coordinator.edge.answers.responses import StreamResponse, WholeResponse
from coordinator.edge.answers.sampling import (
    SEED_SPACE,
    check_prompt_length,
    resolve_max_tokens,
    resolve_sampling,
)
from coordinator.edge.http.body_shape import check_shape
from coordinator.edge.http.request_body import read_body
from coordinator.edge.http.request_ids import label_of
from coordinator.edge.telemetry.request_record import RequestFacts
from protocol.errors import ModelNotFound
from protocol.ids import new_request_id

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from pathlib import Path

    from fastapi import APIRouter
    from starlette.requests import Request
    from starlette.responses import Response

    from coordinator.edge.answers.answer import Dialect
    from coordinator.edge.answers.generation_run import RunContext
    from coordinator.edge.answers.sampling import SamplingDefaults, SamplingWishes, Vocabulary
    from coordinator.edge.http.auth import KeyGuard, Principal
    from coordinator.edge.http.error_replies import Failure
    from coordinator.edge.http.limits import EdgeLimits
    from coordinator.edge.http.request_body import BodyRoom
    from coordinator.edge.http.side_work import SideWork
    from coordinator.edge.text.prompts import PromptReader
    from protocol.model_config import ModelConfig
    from protocol.sampling import SamplingParams

Parsed = TypeVar("Parsed")
INLINE_BODY_BYTES = 16 * 1024


@dataclass(frozen=True, slots=True)
class ServedModel:
    """A model made ready in `directory`; the first of `served_names` is what answers call it."""

    served_names: tuple[str, ...]
    directory: Path
    config: ModelConfig
    max_model_len: int

    @property
    def name(self) -> str:
        """The name in answers."""
        return self.served_names[0]


@dataclass(frozen=True, slots=True, kw_only=True)
class AnswerRequest:
    """What a client wants, in nobody's dialect: each of `prompts`, continued `choices_per_prompt` times.

    `prompt_field` is what the client calls its prompt, for errors. `default_max_tokens` holds when the
    wishes name none. `operation`, `reply_id` and `model` are what traces call it.
    """

    arrival_s: float
    operation: str
    reply_id: str
    model: str
    prompts: Sequence[list[int]]
    prompt_field: str
    wishes: SamplingWishes
    default_max_tokens: int
    choices_per_prompt: int = 1
    stops: tuple[str, ...] = ()
    include_stop: bool = False
    skip_special_tokens: bool = True
    cache_salt: str = ""
    is_stream: bool = False
    wants_timings: bool = False


@dataclass(frozen=True, slots=True)
class Edge:
    """One application's parts; made once by `create_app`. `guard` tells an endpoint who asks."""

    model: ServedModel
    context: RunContext
    reader: PromptReader
    limits: EdgeLimits
    defaults: SamplingDefaults
    vocabulary: Vocabulary
    created: int
    guard: KeyGuard
    side: SideWork
    bodies: BodyRoom

    def check_model(self, name: str | None) -> None:
        """Raise ModelNotFound for a name that is not served; no name means the served model."""
        if name is not None and name not in self.model.served_names:
            served = ", ".join(self.model.served_names)
            raise ModelNotFound(f"the model {name!r} is not served here; served: {served}", "model")

    async def read(self, request: Request, parse: Callable[[bytes], Parsed]) -> Parsed:
        """The parsed body; large ones are parsed off the event loop, and none that is all brackets."""
        with self.bodies.hold() as take:
            body = await read_body(request, self.limits, take)

            def checked() -> Parsed:
                check_shape(body)
                return parse(body)

            if len(body) <= INLINE_BODY_BYTES:
                return checked()
            return await self.side.run(checked)

    def respond(
        self, request: Request, principal: Principal, asked: AnswerRequest, dialect: Dialect
    ) -> Response:
        """The answer; sent, it submits its run. Raises InvalidRequest for what does not fit the model."""
        generations = self._generations(asked, principal.salt(asked.cache_salt))
        sampling = generations[0].sampling
        text = TextOptions(
            stops=asked.stops,
            include_stop=asked.include_stop,
            skip_special_tokens=asked.skip_special_tokens,
            min_tokens=sampling.min_tokens,
            hidden_ids=frozenset(() if sampling.ignore_eos else sampling.eos_token_ids),
        )
        facts = RequestFacts(
            arrival_s=asked.arrival_s,
            operation=asked.operation,
            reply_id=asked.reply_id,
            label=label_of(request),
            model=asked.model,
            response_model=self.model.name,
            is_stream=asked.is_stream,
            wants_timings=asked.wants_timings,
            choices_per_prompt=asked.choices_per_prompt,
            headers=request.headers,
        )
        run = GenerationRun(generations, text, facts, self.context)
        answer = StreamResponse if asked.is_stream else WholeResponse
        return answer(run, dialect, metrics=self.context.metrics, limits=self.limits)

    def _generations(self, asked: AnswerRequest, salt: str) -> list[Generation]:
        """Every choice of every prompt; choice i of a prompt draws from seed + i."""
        resolved = [(prompt, self._sampling(asked, prompt)) for prompt in asked.prompts]
        return [
            Generation(
                request_id=new_request_id(),
                prompt_token_ids=prompt,
                sampling=msgspec.structs.replace(
                    sampling, seed=(sampling.seed + choice) % SEED_SPACE
                ),
                deadline_in_s=self.limits.request_deadline_s,
                cache_salt=salt,
            )
            for (prompt, sampling), choice in product(resolved, range(asked.choices_per_prompt))
        ]

    def _sampling(self, asked: AnswerRequest, prompt: list[int]) -> SamplingParams:
        max_model_len, num_prompt_tokens = self.model.max_model_len, len(prompt)
        self.vocabulary.check(prompt, asked.prompt_field)
        check_prompt_length(num_prompt_tokens, max_model_len, asked.prompt_field)
        max_tokens = resolve_max_tokens(
            asked.wishes.max_tokens,
            param=asked.wishes.max_tokens_field,
            default=asked.default_max_tokens,
            num_prompt_tokens=num_prompt_tokens,
            max_model_len=max_model_len,
        )
        return resolve_sampling(
            asked.wishes,
            defaults=self.defaults,
            vocabulary=self.vocabulary,
            max_tokens=max_tokens,
        )


class Api(Protocol):
    """One dialect's endpoints: each folder under `coordinator/edge/apis/` has one, made for an `Edge`."""

    prefix: str
    """Below it failures are told in this API's way; "" for the one that also tells everybody else's."""

    def router(self) -> APIRouter:
        """Its routes; who mounts them asks for keys."""
        ...

    def failure(self, failure: Failure) -> bytes:
        """A JSON body instead of an answer."""
        ...
