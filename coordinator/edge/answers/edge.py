"""What every API is given. Owns the way from a neutral request to a response.

API: body ─► AnswerRequest ─► respond: ModelRules ─► Generation ─► GenerationRun ─► Response, in the API's Dialect
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Protocol

from coordinator.edge.answers.affinity import REVISION_HEADER, affinity_of
from coordinator.edge.answers.answer import Resumable
from coordinator.edge.answers.choice_text import TextOptions
from coordinator.edge.answers.generation_run import GenerationRun
from coordinator.edge.answers.own_deployment import asked_of, tokens_of
from coordinator.edge.answers.responses import ResumableResponse, StreamResponse, WholeResponse
from coordinator.edge.answers.resumable import StreamGone
from coordinator.edge.http.error_replies import Forbidden
from coordinator.edge.http.holds import keep
from coordinator.edge.http.request_ids import label_of
from coordinator.edge.telemetry.request_record import RequestFacts
from protocol.errors import InvalidRequest, ModelNotFound

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Mapping, Sequence

    from fastapi import APIRouter
    from starlette.requests import Request
    from starlette.responses import Response

    from coordinator.accounts.booking import Booking
    from coordinator.cluster.service_api import ModelControl, RevisionControl, SleepControl
    from coordinator.cluster.traffic_split import Affinity
    from coordinator.edge.answers.adapters import AdapterBook
    from coordinator.edge.answers.answer import AnswerRequest, Dialect, RawPrompts
    from coordinator.edge.answers.catalogue import Catalogue
    from coordinator.edge.answers.resumable import KeptStream, KeptStreams
    from coordinator.edge.answers.run import Run
    from coordinator.edge.answers.served import Served
    from coordinator.edge.http.auth import KeyGuard, Principal
    from coordinator.edge.http.bodies import BodyReader
    from coordinator.edge.http.error_replies import Failure
    from coordinator.edge.http.limits import EdgeLimits
    from coordinator.edge.http.side_work import SideWork
    from coordinator.edge.telemetry.metrics import EdgeMetrics
    from coordinator.edge.text.conversation import Conversation
    from protocol.adapters import AdapterRef
    from protocol.clock import Clock


MOST_LISTED = 20
"""Names that an error tells."""
MAX_DIGITS = 18
"""Of an event's number."""


class Groups(Protocol):
    """Model names that others may answer to, too; see `coordinator.edge.gateway`."""

    @property
    def names(self) -> tuple[str, ...]:
        """These names."""
        ...

    def own_model(self, name: str) -> str | None:
        """The model of ours that answers to one of them, the first if there are several."""
        ...

    def run(
        self,
        asked: AnswerRequest,
        facts: RequestFacts,
        booking: Booking | None,
        own_run: Callable[[str], Awaitable[GenerationRun]],
        may_use: Callable[[str], bool],
        salt: str = "",
    ) -> Run:
        """What answers a request to one of them."""
        ...

    def view(self) -> list[dict[str, Any]]:
        """How each place does that may answer, for operators."""
        ...

    async def close(self) -> None:
        """Hang up."""
        ...


@dataclass(frozen=True, slots=True)
class Edge:
    """One application's parts; made once by `create_app`. `guard` tells an endpoint who asks. The first of `models`
    answers who names none, and no name is two models'. Of a model that has `revisions` one is chosen for each request, by `begin`."""

    catalogue: Catalogue
    clock: Clock
    metrics: EdgeMetrics
    limits: EdgeLimits
    created: int
    guard: KeyGuard
    side: SideWork
    bodies: BodyReader
    streams: KeptStreams
    groups: Groups | None = None
    residents: ModelControl | None = None
    adapters: AdapterBook | None = None
    revisions: RevisionControl | None = None
    sleeping: SleepControl | None = None

    @property
    def models(self) -> tuple[Served, ...]:
        """All that are served now."""
        return self.catalogue.models

    @property
    def default_name(self) -> str:
        """Of the model that answers who names none."""
        return self._public(self.models[0].model.name)

    @property
    def own_names(self) -> tuple[str, ...]:
        """The names of all models, and of their adapters, without those of groups."""
        adapters = () if self.adapters is None else self.adapters.names
        return (*self.served_names, *adapters)

    @property
    def served_names(self) -> tuple[str, ...]:
        """The names of the models themselves."""
        names = (name for served in self.models for name in self._names_of(served))
        return tuple(dict.fromkeys(names))

    def _names_of(self, served: Served) -> Sequence[str]:
        found = None if self.revisions is None else self.revisions.names(served.model.name)
        return served.model.served_names if found is None else found

    @property
    def longest(self) -> int:
        """Tokens that the longest context of any model holds."""
        return max(served.model.max_model_len for served in self.models)

    def of(self, name: str | None) -> Served:
        """The model that has this name, or the adapter of this name; for a group's the first of its own deployments'; the first
        for any other. Of one with revisions the heaviest."""
        adapter = None if self.adapters is None or name is None else self.adapters.find(name)
        names = [name if adapter is None else adapter.model]
        if name is not None and (groups := self.group_of(name)) is not None:
            names.append(groups.own_model(name))
        if self.revisions is not None:
            names = [each and (self.revisions.model_of(each) or each) for each in names]
        for meant in names:
            for served in self.models:
                if meant in served.model.served_names:
                    return served
        return self.models[0]

    def model_for(
        self, principal: Principal, name: str | None, *, among_groups: bool = False
    ) -> str:
        """The served name that a request means; no name means the first. Raises ModelNotFound, and Forbidden for one that
        its key does not allow; comes before anything is computed for the request."""
        known = self.own_names if not among_groups else self.all_names()
        if name is not None and name not in known:
            principal.check_model(name)  # whether it is there is nobody's who may not use it
            if self.group_of(name) is not None:
                told = f"{name!r} is a group of deployments; this can be asked of a model only"
                raise ModelNotFound(told, "model")
            served = _listed(self.names_for(principal)) or "none that this API key may use"
            raise ModelNotFound(f"the model {name!r} is not served here; served: {served}", "model")
        if name is None and not principal.may_use(self.default_name):
            told = "this request names no model, and this API key may not use the first one: name another"
            raise Forbidden(told, "model_not_allowed")
        meant = name or self.default_name
        self._check_allowed(principal, meant)
        return meant

    def begin(self, principal: Principal, name: str | None, asked: Affinity) -> str:
        """The same for what generates: raises LimitReached and LedgerUnavailable, too, where its key has nothing left, so
        that no prompt is read and no grammar is tried for it. Of a model with revisions it is the name of the one that was chosen,
        which is kept until the request has been answered."""
        model = self.model_for(principal, name, among_groups=True)
        self.guard.keys.check_room(principal, self._public(model))
        return model if self.group_of(model) is not None else self._chosen(model, asked)

    def _chosen(self, model: str, asked: Affinity) -> str:
        chosen = None if self.revisions is None else self.revisions.choose(model, asked)
        if chosen is None:
            return model
        keep(chosen.end)
        return chosen.name

    def _public(self, name: str) -> str:
        """What keys, prices and the ledger call it."""
        return name if self.revisions is None else self.revisions.public_name(name)

    def _check_allowed(self, principal: Principal, name: str) -> None:
        """Raise Forbidden; who may use a model may use each of its revisions."""
        if not principal.may_use(self._public(name)):
            principal.check_model(name)

    def names_for(self, principal: Principal) -> tuple[str, ...]:
        """The served names and groups that a key allows."""
        return tuple(
            name
            for name in self.all_names()
            if principal.may_use(name) or principal.may_use(self._public(name))
        )

    def adapter_of(self, model: str) -> AdapterRef | None:
        """The adapter that a name means now, None for the model itself; raises ModelNotFound for one that has left meanwhile."""
        found = None if self.adapters is None else self.adapters.find(model)
        if self.revisions is not None and self.revisions.model_of(model) is not None:
            return None
        if found is None and model not in self.served_names and self.group_of(model) is None:
            raise ModelNotFound(f"the model {model!r} is not served here any more", "model")
        return None if found is None else found.ref

    def all_names(self) -> tuple[str, ...]:
        """The served names, adapters and groups."""
        groups = () if self.groups is None else self.groups.names
        return tuple(dict.fromkeys((*self.own_names, *groups)))

    def state_of(self, model: str) -> str | None:
        """How that cluster's model is, in llama.cpp's words; None where models stay and are awake."""
        if self.residents is not None:
            return str(self.residents.view(model)["state"])
        is_asleep = self.sleeping is not None and self.sleeping.is_asleep(model)
        return "sleeping" if is_asleep else None

    def group_of(self, model: str) -> Groups | None:
        """The groups, if that is one of them."""
        return self.groups if self.groups is not None and model in self.groups.names else None

    async def prompts_of(
        self, model: str, conversation: Conversation, *, keeps_thoughts: bool = False
    ) -> list[list[int]]:
        """The one prompt of a conversation; none for a group, each of whose deployments makes its own."""
        if self.group_of(model) is not None:
            return []
        reader = self.of(model).reader
        return [await (reader.chat if keeps_thoughts else reader.turns)(conversation)]

    async def texts_of(self, model: str, raw: RawPrompts, param: str = "prompt") -> list[list[int]]:
        """The same of prompts as they are written."""
        if self.group_of(model) is not None:
            return []
        return await tokens_of(self.of(model), raw, param)

    async def respond(
        self, request: Request, principal: Principal, asked: AnswerRequest, dialect: Dialect
    ) -> Response:
        """The answer; sent, it submits its run. Raises InvalidRequest for what does not fit the model, and for a form that
        no answer can be kept to."""
        self._check_allowed(principal, asked.model)
        facts = self._facts(request, asked)
        booking = self.guard.keys.booking(principal)
        groups = self.group_of(asked.model)
        if groups is None or asked.prompts:
            own = self.of(asked.model)
            run: Run = await self._own_run(own, principal, asked, facts, booking)
        else:
            run = groups.run(
                asked,
                facts,
                booking,
                lambda name: self._own_of_group(request, principal, asked, facts, name),
                principal.may_use,
                principal.salt(asked.cache_salt),
            )
        return self._sent(run, principal, asked, dialect)

    async def _own_of_group(
        self,
        request: Request,
        principal: Principal,
        asked: AnswerRequest,
        facts: RequestFacts,
        name: str,
    ) -> GenerationRun:
        """Booked by whoever asks us."""
        chosen = self._chosen(name, affinity_of(request, None, asked.conversation))
        own = self.of(chosen)
        facts = replace(facts, response_model=own.model.name)
        here = await asked_of(own, asked, spells=own is self.of(asked.model))
        if chosen != name:
            here = replace(here, model=chosen)
        return await self._own_run(own, principal, here, facts, None)

    async def _own_run(
        self,
        own: Served,
        principal: Principal,
        asked: AnswerRequest,
        facts: RequestFacts,
        booking: Booking | None,
    ) -> GenerationRun:
        asked = await own.forms.of(principal.tenant).kept(asked)
        salt = principal.salt(asked.cache_salt)
        asked = replace(asked, priority=asked.priority + principal.priority)
        generations = await own.rules.generations(
            asked,
            salt,
            principal.tenant,
            principal.weight,
            self.adapter_of(asked.model),
            turns=self.side.turns,
        )
        sampling = generations[0].sampling
        tokenizer = own.context.tokenizer
        make_parts = own.formats.maker(asked, tokenizer, asked.prompts[0])
        text = TextOptions(
            stops=asked.stops,
            include_stop=asked.include_stop,
            skip_special_tokens=asked.skip_special_tokens,
            min_tokens=sampling.min_tokens,
            hidden_ids=frozenset(() if sampling.ignore_eos else sampling.eos_token_ids),
            prompt_scores=asked.prompt_scores,
            constraint_field=asked.wishes.constraint_field,
            marks={} if make_parts is None else own.formats.marks,
        )
        run = GenerationRun(
            generations, text, facts, own.context, make_parts, booking, asked.keep_alive_s
        )
        public, _, revision = asked.model.rpartition("@")
        if public and self._public(asked.model) == public:
            run.headers[REVISION_HEADER] = revision
        return run

    def _facts(self, request: Request, asked: AnswerRequest) -> RequestFacts:
        is_adapter = self.adapters is not None and self.adapters.find(asked.model) is not None
        adapter = asked.model if is_adapter else ""
        return RequestFacts(
            arrival_s=asked.arrival_s,
            operation=asked.operation,
            reply_id=asked.reply_id,
            label=label_of(request),
            model=self._public(asked.model),
            response_model=self.of(asked.model).model.name,
            adapter=adapter,
            is_stream=asked.is_stream,
            wants_timings=asked.wants_timings,
            choices_per_prompt=asked.choices_per_prompt,
            headers=request.headers,
        )

    def _sent(
        self, run: Run, principal: Principal, asked: AnswerRequest, dialect: Dialect
    ) -> Response:
        if asked.is_stream and asked.resumable is not Resumable.NO:
            is_numbered = asked.resumable is Resumable.BY_ID
            kept = self.streams.begin(run, dialect, principal.tenant, numbered=is_numbered)
            return self._resumed(kept, 0, dialect.stream_headers)
        answer = StreamResponse if asked.is_stream else WholeResponse
        metrics = self.of(asked.model).context.metrics
        return answer(run, dialect, metrics=metrics, limits=self.limits, side=self.side)

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


def _listed(names: Sequence[str]) -> str:
    more = ", …" if len(names) > MOST_LISTED else ""
    return ", ".join(names[:MOST_LISTED]) + more


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
