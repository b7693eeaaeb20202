"""The life of one request, whatever happens to its workers. Owns phase, attempt and emitted tokens; pure.

    event                         QUEUED     PREFILL            DECODE             FINISHED
    dispatch(P, D)                PREFILL    -                  -                  -
    dispatch(None, D)             DECODE     -                  -                  -
    output from P                 -          tokens             tokens (repeat)    dropped
    output from D                 -          DECODE, tokens     tokens             dropped
    output with finish_reason     -          FINISHED           FINISHED           dropped
    output with error             -          FINISHED           FINISHED           dropped
    transfer failed               -          QUEUED (replay)    -                  dropped
    D hands over to E             -          -                  DECODE (E reads)   -
    P drained, grace over         -          QUEUED (replay)    -                  -
    D drained, grace over         -          QUEUED (replay)    QUEUED (replay)    -
    P lost                        -          QUEUED (replay)    -                  -
    D lost                        -          QUEUED (replay)    QUEUED (replay)    -
    cancel, deadline              FINISHED   FINISHED           FINISHED           -

A replay is a new attempt whose prompt is prompt plus emitted tokens; every message of an older
attempt is dropped. So is a handover, but that the older one goes on as its source until E speaks. `index` of an output makes tokens exactly-once: what is known is skipped, a gap
is a lost message and replays.

The scores of a prompt come from P in the same way, by `prompt_index`; so does its embedding, at once. What D says before they are all here is held, and
P is needed until then.
"""

from __future__ import annotations

import enum
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from coordinator.cluster.timeline import Timeline
from coordinator.planning.demand import FinishedRequest
from protocol.spans import Span

if TYPE_CHECKING:
    from coordinator.cluster.service_api import Generation
    from protocol.failures import Failure
    from protocol.finish import FinishReason
    from protocol.messages.reports import Output
    from protocol.sampling import SampledToken, ScoredToken

MAX_WORKER_DEATHS = 2
MAX_REPLAYS = 8


class Phase(enum.Enum):
    """Where a request is."""

    QUEUED = "queued"
    PREFILL = "prefill"
    DECODE = "decode"
    FINISHED = "finished"


class Verdict(enum.Enum):
    """What an event asks of the coordinator."""

    NOTHING = "nothing"
    REPLAY = "replay"
    POISON = "poison"


class Loss(enum.Enum):
    """How a worker was lost, and so whether a request that it held may be the reason."""

    ENDED = "ended"
    """Its process ended: three such deaths, and the request is taken for their cause."""
    STUCK = "stuck"
    """It computes and gets nowhere: an attempt that failed."""
    SILENT = "silent"
    """Nothing is heard of it: no request's fault."""


@dataclass(slots=True)
class Delivery:
    """New tokens for the client, in order, and whether they are the last."""

    tokens: list[SampledToken] = field(default_factory=list)
    finish_reason: FinishReason | None = None
    stop_token_id: int | None = None
    error: Failure | None = None
    has_gap: bool = False
    adopted: bool = False
    prompt_scores: list[ScoredToken] = field(default_factory=list)
    embedding: bytes = b""


@dataclass(slots=True)
class RequestLife:
    """Invariant: `emitted` is exactly what the client has been given, in order. `is_tied`: meant for one route, as a
    probe is, so that the loss of that is its end. `due_s` orders prompts: at once, until its cost is known. `predecessor`
    is the worker and the attempt whose KV the current attempt reads: it goes on, unheard, until this one speaks."""

    generation: Generation
    arrival_s: float
    deadline_s: float
    phase: Phase = Phase.QUEUED
    attempt: int = 0
    prefill_worker: str | None = None
    decode_worker: str | None = None
    emitted: list[int] = field(default_factory=list)
    num_scored_tokens: int = 1
    is_embedded: bool = False
    held: list[Output] = field(default_factory=list)
    worker_deaths: int = 0
    replays: int = 0
    cached_tokens: int | None = None
    order_seqs: dict[str, int] = field(default_factory=dict)
    strikes: dict[str, int] = field(default_factory=dict)
    is_tied: bool = False
    work_tokens: int = 0
    predecessor: tuple[str, int] | None = None
    due_s: float = field(init=False)
    timeline: Timeline = field(init=False)

    def __post_init__(self) -> None:
        self.due_s = self.arrival_s
        self.timeline = Timeline(self.arrival_s)

    @property
    def request_id(self) -> str:
        """The server's id of the request."""
        return self.generation.request_id

    @property
    def token_ids(self) -> list[int]:
        """What a replay computes: the prompt and everything emitted. Not to be changed."""
        prompt = self.generation.prompt_token_ids
        return prompt + self.emitted if self.emitted else prompt

    @property
    def num_tokens(self) -> int:
        """How many those are."""
        return len(self.generation.prompt_token_ids) + len(self.emitted)

    @property
    def num_cached_tokens(self) -> int:
        """Of the prompt, what the first attempt did not compute, as the worker that computed the rest says; 0 until
        it does. What later attempts find are traces of this one."""
        return self.cached_tokens or 0

    @property
    def _computing(self) -> str | None:
        """Which worker computes the prompt in the current attempt."""
        return self.prefill_worker or self.decode_worker

    @property
    def max_new_tokens(self) -> int:
        """Tokens that may still come."""
        return self.generation.sampling.max_tokens - len(self.emitted)

    @property
    def lacks_scores(self) -> bool:
        """Whether the client is still to be told how likely some of its prompt is: a cache does not help there."""
        is_scored = self.generation.sampling.prompt_logprobs is not None
        return is_scored and self.num_scored_tokens < len(self.generation.prompt_token_ids)

    @property
    def needs_prompt(self) -> bool:
        """Whether the client is still to be told what only computing the prompt tells: scores, or its embedding."""
        lacks_embedding = self.generation.sampling.pooling is not None and not self.is_embedded
        return self.lacks_scores or lacks_embedding

    @property
    def helping_salt(self) -> str | None:
        """Which cached prefixes spare computing; None where none does."""
        return None if self.needs_prompt else self.generation.content_salt

    @property
    def is_finished(self) -> bool:
        """Whether nothing more will happen."""
        return self.phase is Phase.FINISHED

    def may_hand_over(self, worker_id: str) -> bool:
        """Whether it is being written there, and nothing of it moves already."""
        is_there = self.phase is Phase.DECODE and self.decode_worker == worker_id
        return is_there and bool(self.emitted) and self.predecessor is None and not self.is_tied

    def weigh(self, work_tokens: int, due_s: float) -> None:
        """What its prompt costs is known, and so when it is due."""
        self.work_tokens, self.due_s = work_tokens, due_s

    def take_predecessor(self) -> tuple[str, int] | None:
        """The source of the current attempt, which is needed no more."""
        left, self.predecessor = self.predecessor, None
        return left

    def lose_predecessor(self, worker_id: str) -> None:
        """That worker is gone, and with it what the current attempt reads there."""
        if self.predecessor is not None and self.predecessor[0] == worker_id:
            self.predecessor = None

    def is_left_to(self, worker_id: str, attempt: int) -> bool:
        """Whether that attempt is the source of the current one."""
        return self.predecessor == (worker_id, attempt)

    def hand_over(self) -> None:
        """The current attempt is the source of the next one, which follows at once."""
        assert self.phase is Phase.DECODE
        assert self.decode_worker is not None
        self.predecessor = (self.decode_worker, self.attempt)
        self.phase = Phase.QUEUED

    def dispatch(self, prefill_worker: str | None, decode_worker: str) -> int:
        """Sent to a pair; returns the attempt's number."""
        self.attempt += 1
        self.prefill_worker, self.decode_worker = prefill_worker, decode_worker
        self.phase = Phase.DECODE if prefill_worker is None else Phase.PREFILL
        self.order_seqs.clear()
        self.strikes.clear()
        return self.attempt

    def is_current(self, attempt: int) -> bool:
        """Whether a message of that attempt still means something."""
        return attempt == self.attempt and self.phase in (Phase.PREFILL, Phase.DECODE)

    def deliver(self, output: Output, worker_id: str) -> Delivery:
        """Take an output of the current attempt."""
        delivery = Delivery()
        if output.error is not None:
            self.phase = Phase.FINISHED
            delivery.error = output.error
            return delivery
        if worker_id == self.decode_worker and self.phase is Phase.PREFILL:
            self.phase = Phase.DECODE
            delivery.adopted = True
        if self.needs_prompt and worker_id != self._computing:
            self.held.append(output)
            return delivery
        self._count_cached(output, worker_id)
        self._take(output, delivery)
        while self.held and not self.needs_prompt:
            self._take(self.held.pop(0), delivery)
        return delivery

    def _count_cached(self, output: Output, worker_id: str) -> None:
        is_known = self.cached_tokens is not None or not (
            output.tokens or output.finish_reason is not None
        )
        if not is_known and self.attempt == 1 and worker_id == self._computing:
            self.cached_tokens = min(
                output.num_cached_tokens, len(self.generation.prompt_token_ids)
            )

    def _take(self, output: Output, delivery: Delivery) -> None:
        """What is new in it goes into `delivery`; nothing where something before it is missing."""
        scores = output.prompt_scores[max(self.num_scored_tokens - output.prompt_index, 0) :]
        has_come = output.prompt_index <= self.num_scored_tokens
        if not has_come or output.index > len(self.emitted):
            delivery.has_gap = True
            return
        self.num_scored_tokens += len(scores)
        delivery.prompt_scores += scores
        if output.embedding and not self.is_embedded:
            self.is_embedded, delivery.embedding = True, output.embedding
        if self.needs_prompt and (output.tokens or output.finish_reason is not None):
            delivery.has_gap = True
            return
        tokens = output.tokens[len(self.emitted) - output.index :]
        self.emitted.extend(token.token_id for token in tokens)
        delivery.tokens += tokens
        if output.finish_reason is not None:
            self.phase = Phase.FINISHED
            delivery.finish_reason = output.finish_reason
            delivery.stop_token_id = output.stop_token_id

    def is_missed_by(self, worker_id: str, heard: int) -> bool:
        """Whether a worker that obeyed order `heard`, and does not have this request, should have it."""
        leg = self.decode_worker
        is_computing = self.phase is Phase.PREFILL or self.needs_prompt
        if is_computing and worker_id == self.prefill_worker:
            leg = worker_id
        seq = self.order_seqs.get(worker_id)
        in_flight = self.phase in (Phase.PREFILL, Phase.DECODE)
        return in_flight and worker_id == leg and seq is not None and seq <= heard

    def ordered(self, worker_id: str, seq: int) -> None:
        """The current attempt's order to a worker left under that number."""
        self.order_seqs[worker_id] = seq

    def forgive(self, worker_id: str) -> None:
        """That worker has the request, or need not."""
        self.strikes.pop(worker_id, None)

    def strike(self, worker_id: str) -> int:
        """That worker's heartbeat missed the request once more: how many in a row have."""
        self.strikes[worker_id] = self.strikes.get(worker_id, 0) + 1
        return self.strikes[worker_id]

    def requeue(self, *, is_failure: bool = True) -> Verdict:
        """The attempt ended without anybody dying: replay, within reason when it failed."""
        if self.phase in (Phase.QUEUED, Phase.FINISHED):
            return Verdict.NOTHING
        self.replays += is_failure
        self.phase = Phase.QUEUED
        self.prefill_worker = self.decode_worker = None
        self.held.clear()
        return Verdict.POISON if self.is_tied or self.replays > MAX_REPLAYS else Verdict.REPLAY

    def needs(self, worker_id: str) -> bool:
        """Whether the request cannot go on without that worker."""
        if self.phase is Phase.PREFILL:
            return worker_id in (self.prefill_worker, self.decode_worker)
        is_computing = self.needs_prompt and worker_id == self.prefill_worker
        return self.phase is Phase.DECODE and (worker_id == self.decode_worker or is_computing)

    def lose_worker(self, worker_id: str, loss: Loss = Loss.ENDED) -> Verdict:
        """A worker is gone."""
        if not self.needs(worker_id):
            return Verdict.NOTHING
        self.worker_deaths += loss is Loss.ENDED
        verdict = self.requeue(is_failure=loss is not Loss.SILENT)
        return Verdict.POISON if self.worker_deaths > MAX_WORKER_DEATHS else verdict

    @property
    def _is_told_of_prompt(self) -> bool:
        sampling = self.generation.sampling
        return sampling.prompt_logprobs is not None or sampling.pooling is not None

    def end(self) -> None:
        """Cancelled, out of time, or refused."""
        self.phase = Phase.FINISHED

    def summary(self) -> FinishedRequest:
        """What planning learns of a request that ended well."""
        timeline, attempt = self.timeline, self.timeline.opening
        worker = attempt.prefill_worker or attempt.decode_worker
        told = attempt.reports.get(worker, {})
        return FinishedRequest(
            worker=worker,
            is_prefilled_apart=attempt.prefill_worker is not None,
            num_prompt_tokens=len(self.generation.prompt_token_ids),
            num_output_tokens=len(self.emitted),
            submitted_s=timeline.submitted_s,
            dispatched_s=attempt.dispatched_s,
            first_s=attempt.first_s,
            last_s=max((a.last_s for a in timeline.attempts if a.last_s is not None), default=None),
            prefill_s=told.get(Span.PREFILL),
            prefix_fetch_s=told.get(Span.PREFIX_FETCH, 0.0),
            replays=timeline.replays,
            num_cached_tokens=self.num_cached_tokens,
            is_scored=self._is_told_of_prompt,
        )
