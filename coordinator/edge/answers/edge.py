"""What every API is given. Owns the way from a neutral request to a response.

API: body ─► AnswerRequest ─► respond: ModelRules ─► Generation ─► GenerationRun ─► Response, in the API's Dialect
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

from coordinator.edge.answers.answer import Resumable
from coordinator.edge.answers.choice_text import TextOptions
from coordinator.edge.answers.generation_run import GenerationRun
from coordinator.edge.answers.responses import ResumableResponse, StreamResponse, WholeResponse
from coordinator.edge.answers.resumable import StreamGone
from coordinator.edge.http.request_ids import label_of
from coordinator.edge.telemetry.request_record import RequestFacts
from protocol.errors import InvalidRequest, ModelNotFound

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from fastapi import APIRouter
    from starlette.requests import Request
    from starlette.responses import Response

    from coordinator.edge.answers.answer import AnswerRequest, Dialect
    from coordinator.edge.answers.answer_forms import AnswerForms
    from coordinator.edge.answers.answer_parts import AnswerFormats
    from coordinator.edge.answers.generation_run import RunContext
    from coordinator.edge.answers.resumable import KeptStream, KeptStreams
    from coordinator.edge.answers.sampling import ModelRules, Vocabulary
    from coordinator.edge.http.auth import KeyGuard, Principal
    from coordinator.edge.http.bodies import BodyReader
    from coordinator.edge.http.error_replies import Failure
    from coordinator.edge.http.limits import EdgeLimits
    from coordinator.edge.http.side_work import SideWork
    from coordinator.edge.text.prompts import PromptReader
    from protocol.model_config import ModelConfig


MAX_DIGITS = 18
"""Of an event's number."""


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


@dataclass(frozen=True, slots=True)
class Edge:
    """One application's parts; made once by `create_app`. `guard` tells an endpoint who asks."""

    model: ServedModel
    context: RunContext
    reader: PromptReader
    limits: EdgeLimits
    rules: ModelRules
    vocabulary: Vocabulary
    forms: AnswerForms
    created: int
    guard: KeyGuard
    side: SideWork
    bodies: BodyReader
    formats: AnswerFormats
    streams: KeptStreams

    def model_for(self, principal: Principal, name: str | None) -> str:
        """The served name that a request means; no name means the first. Raises ModelNotFound, and Forbidden for one that
        its key does not allow; comes before anything is computed for the request."""
        if name is not None and name not in self.model.served_names:
            served = ", ".join(self.names_for(principal)) or "none that this API key may use"
            raise ModelNotFound(f"the model {name!r} is not served here; served: {served}", "model")
        principal.check_model(name or self.model.name)
        return name or self.model.name

    def begin(self, principal: Principal, name: str | None) -> str:
        """The same for what generates: raises LimitReached and LedgerUnavailable, too, where its key has nothing left, so
        that no prompt is read and no grammar is tried for it."""
        model = self.model_for(principal, name)
        self.guard.keys.check_room(principal, model)
        return model

    def names_for(self, principal: Principal) -> tuple[str, ...]:
        """The served names that a key allows."""
        return tuple(name for name in self.model.served_names if principal.may_use(name))

    async def respond(
        self, request: Request, principal: Principal, asked: AnswerRequest, dialect: Dialect
    ) -> Response:
        """The answer; sent, it submits its run. Raises InvalidRequest for what does not fit the model, and for a form that
        no answer can be kept to."""
        principal.check_model(asked.model)
        asked = await self.forms.kept(asked)
        salt = principal.salt(asked.cache_salt)
        generations = self.rules.generations(asked, salt, principal.tenant)
        sampling = generations[0].sampling
        tokenizer = self.context.tokenizer
        make_parts = self.formats.maker(asked, tokenizer, asked.prompts[0])
        text = TextOptions(
            stops=asked.stops,
            include_stop=asked.include_stop,
            skip_special_tokens=asked.skip_special_tokens,
            min_tokens=sampling.min_tokens,
            hidden_ids=frozenset(() if sampling.ignore_eos else sampling.eos_token_ids),
            prompt_scores=asked.prompt_scores,
            constraint_field=asked.wishes.constraint_field,
            marks={} if make_parts is None else self.formats.marks,
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
        booking = self.guard.keys.booking(principal)
        run = GenerationRun(generations, text, facts, self.context, make_parts, booking)
        if asked.is_stream and asked.resumable is not Resumable.NO:
            is_numbered = asked.resumable is Resumable.BY_ID
            kept = self.streams.begin(run, dialect, principal.tenant, numbered=is_numbered)
            return self._resumed(kept, 0, dialect.stream_headers)
        answer = StreamResponse if asked.is_stream else WholeResponse
        return answer(
            run, dialect, metrics=self.context.metrics, limits=self.limits, side=self.side
        )

    def resume(self, principal: Principal, event_id: str, headers: Mapping[str, str]) -> Response:
        """The rest of a stream after one of its events, named by the `id` it had; raises StreamGone or InvalidRequest."""
        stream_id, _, number = event_id.rpartition(":")
        if not stream_id or not number.isdecimal() or len(number) > MAX_DIGITS:
            raise InvalidRequest("it must be the id of an event of a stream", "Last-Event-ID")
        return self.resume_at(principal, stream_id, int(number) + 1, headers)

    def resume_at(
        self, principal: Principal, stream_id: str, number: int, headers: Mapping[str, str]
    ) -> Response:
        """A stream from that event on; raises StreamGone, also for one that it cannot have said."""
        kept = self.streams.find(stream_id, principal.tenant)
        if not kept.first <= number <= kept.end:
            told = f"stream {stream_id!r} has kept events {kept.first} to {kept.end - 1}"
            raise StreamGone(f"{told}, so none can follow {number - 1}", "Last-Event-ID")
        return self._resumed(kept, number, headers)

    def _resumed(self, kept: KeptStream, number: int, headers: Mapping[str, str]) -> Response:
        return ResumableResponse(self.streams, kept, number, headers, self.limits)


class Api(Protocol):
    """One dialect's endpoints: each folder under `coordinator/edge/apis/` has one, made for an `Edge`."""

    prefix: str
    """Below it failures are told in this API's way; "" for the one that also tells everybody else's."""
    header: str
    """Nor does it matter where, if a request has this header; "" for none."""

    def router(self) -> APIRouter:
        """Its routes; who mounts them asks for keys."""
        ...

    def failure(self, failure: Failure) -> bytes:
        """A JSON body instead of an answer."""
        ...
