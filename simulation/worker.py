"""One simulated worker: production messages in, production messages out, computing replaced by calibrated times.

A turn is one decode step of the whole batch and, beside it, one chunk of the prompt that is due first (a piece of it, if
it is long: `engine.pace`); orders are heard between turns, as in a real worker. Turns in which nothing begins or ends are taken together, because their length is a
quadratic in their number: a worker costs events by the request, not by the token.
"""

from __future__ import annotations

import heapq
from collections import OrderedDict
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import msgspec

from protocol.finish import FinishReason
from protocol.messages.orders import Abort, Decode, Drain, Prefill, Sleep
from protocol.messages.reports import Output
from protocol.sampling import SampledToken
from protocol.sleeping import Part
from protocol.spans import Span
from protocol.worker_load import BlockCounts, WorkerLoad
from simulation.prompt_queue import Key, Prompt, PromptQueue
from simulation.work import Sequence, emitted, scores_of

if TYPE_CHECKING:
    from protocol.spans import Spans
    from simulation.calibration import Hardware
    from simulation.surroundings import Surroundings

TOKEN = SampledToken(token_id=0)
REPORT_TOKENS = 64
"""Tokens of one sequence are told together after so many, which is where the ledger looks again."""


@dataclass
class SimWorker:
    """Invariant: between events `turns` whole turns are under way, which end at the event that is scheduled."""

    cluster: Surroundings
    worker_id: str
    incarnation: str
    hardware: Hardware
    draining: bool = False
    alive: bool = True
    away: list[Part] = field(default_factory=list)
    to_rest: list[Part] | None = None
    at_s: float = 0.0
    steps: int = 0
    turns: int = 0
    contexts: int = 0
    version: int = 0
    inbox: list[Prefill | Decode | Abort | tuple[Key, int, Spans]] = field(default_factory=list)
    prompts: PromptQueue = field(default_factory=PromptQueue)
    batch: dict[Key, Sequence] = field(default_factory=dict)
    marks: list[tuple[int, Key]] = field(default_factory=list)
    expected: dict[Key, Decode] = field(default_factory=dict)
    cache: OrderedDict[int, int] = field(default_factory=OrderedDict)
    in_turn: bool = False
    busy_s: float = 0.0
    prefill_tokens: int = 0
    decode_tokens: int = 0

    # ---- being told

    def hear(self, message: object) -> None:
        """An order, or KV that arrived; heard when the turn that is under way has ended."""
        if isinstance(message, Drain):
            self.draining = True
            self._leave_if_done()
            return
        if isinstance(message, Sleep):
            self.to_rest = message.parts
            self._rest_if_done()
            return
        if not isinstance(message, Prefill | Decode | Abort | tuple):
            return
        if isinstance(message, Prefill | Decode):
            self._wake()
        self.inbox.append(message)
        now_s = self.cluster.now_s
        if self.in_turn:
            return
        if not self._is_busy:
            self.at_s = now_s
            self._turn_over(0)
        elif self.turns > 1:
            self.turns = self._turns_until(now_s)
            self._schedule()

    @property
    def _is_busy(self) -> bool:
        return bool(self.batch) or self.prompts.current is not None

    @property
    def is_idle(self) -> bool:
        """Nothing here and nothing expected."""
        return not (self._is_busy or self.prompts.waiting or self.expected or self.inbox)

    def _leave_if_done(self) -> None:
        if self.draining and self.is_idle and self.alive:
            self.alive = False
            self.cluster.goodbye(self.worker_id, self.incarnation)

    def _rest_if_done(self) -> None:
        """What is wanted back comes at once, what is to go when nothing is here; a pool that went is empty when it comes."""
        if self.to_rest is None or not (self.is_idle or set(self.to_rest) <= set(self.away)):
            return
        self.away, self.to_rest = self.to_rest, None
        if Part.KV_CACHE in self.away:
            self.cache.clear()
        self.cluster.rests(self.worker_id, self.incarnation, self.away)

    def _wake(self) -> None:
        """There is work: nothing goes, and what is away comes."""
        self.to_rest = None
        if self.away:
            self.away = []
            self.cluster.rests(self.worker_id, self.incarnation, self.away)

    # ---- turns

    def _length_s(self, turns: int) -> float:
        """Seconds of the next `turns` turns."""
        seconds, hardware, batch = 0.0, self.hardware, len(self.batch)
        if batch:
            seconds = turns * hardware.step_s(batch, self.contexts)
            seconds += hardware.context_s * batch * turns * (turns - 1) / 2
        if (prompt := self.prompts.current) is not None:
            seconds += min(turns * prompt.chunk_s, prompt.left_s)
        return seconds

    def _turns_until(self, now_s: float) -> int:
        """The least number of turns that end no sooner than now."""
        low, high = 0, self.turns
        while high - low > 1:
            middle = (low + high) // 2
            low, high = (
                (low, middle) if self.at_s + self._length_s(middle) >= now_s else (middle, high)
            )
        return high

    def _schedule(self) -> None:
        self.version += 1
        self.cluster.at(self.at_s + self._length_s(self.turns), self._event, self.version)

    def _event(self, version: int) -> None:
        if version == self.version and self.alive:
            self._turn_over(self.turns)

    def _turn_over(self, turns: int) -> None:
        """`turns` turns ended at this instant: tell what they brought, hear what came, plan on."""
        length_s = self._length_s(turns)
        self.in_turn = True
        self.at_s += length_s
        self.busy_s += length_s
        finished = self._count(turns, length_s)
        outputs = self._due()
        if finished is not None:
            self._prompt_done(finished, outputs)
        if outputs:
            self.cluster.tell(self.worker_id, self.incarnation, outputs)
        self._take_inbox()
        self.in_turn = False
        self._plan()

    def _count(self, turns: int, length_s: float) -> Prompt | None:
        """Move every counter on; the prompt that is finished with these turns."""
        if self.batch:
            self.steps += turns
            self.contexts += turns * len(self.batch)
            self.decode_tokens += turns * len(self.batch)
        prompt = self.prompts.current
        if prompt is None or turns == 0:
            return None
        self.prefill_tokens += prompt.advance(turns, length_s)
        if not prompt.is_done:
            return None
        self.prompts.done()
        return prompt

    def _plan(self) -> None:
        """Up to the next turn at which something ends or is told."""
        prompt = self.prompts.choose()
        if prompt is not None and not prompt.is_begun:
            self._start(prompt)
        turns = 1 << 40
        while self.marks and self.marks[0][1] not in self.batch:
            heapq.heappop(self.marks)
        if self.batch and self.marks:
            turns = self.marks[0][0] - self.steps
        if prompt is not None:
            turns = min(turns, prompt.turns_left)
        if self._is_busy:
            self.turns = max(turns, 1)
            self._schedule()
        else:
            self.turns = 0
            self.version += 1
            self._rest_if_done()
            self._leave_if_done()

    # ---- prompts

    def _start(self, prompt: Prompt) -> None:
        request = self.cluster.request(prompt.key[0])
        chunks = request.chunks if request is not None else ()
        size = request.chunk_tokens if request is not None else 1
        hit = 0 if prompt.scores else self.cached(chunks) * size
        cached, fetch_s = min(hit, prompt.num_tokens - 1), 0.0
        there = self.cluster.cached_on(prompt.source, chunks) * size
        if self.cluster.is_written_by(prompt.source, prompt.key[0]):  # it is handed over
            there = prompt.num_tokens
        if (there := min(there, prompt.num_tokens - 1)) > cached:
            fetch_s = self.hardware.handoff_s + (there - cached) * self.hardware.transfer_token_s
            cached = there
        prompt.begin(self.hardware, cached, fetch_s)

    def _prompt_done(self, prompt: Prompt, outputs: list[Output]) -> None:
        """The first token; then the KV goes to the decode worker, or stays here."""
        spans = {
            Span.QUEUE: self.at_s - prompt.arrived_s - prompt.spent_s,
            Span.PREFILL: prompt.spent_s - prompt.fetch_s,
        }
        if prompt.fetch_s:
            spans[Span.PREFIX_FETCH] = prompt.fetch_s
        last, count = prompt.max_tokens <= 1, min(prompt.max_tokens, 1)
        reason = FinishReason.LENGTH if last else None
        first = self._output(prompt.key, prompt.index, count, spans, reason, prompt.cached)
        scored = {"prompt_index": prompt.prompt_index, "prompt_scores": prompt.scores}
        outputs.append(msgspec.structs.replace(first, **scored))
        self._remember(prompt.key[0])
        if last:
            return
        if prompt.decode_worker == self.worker_id:
            self._join(prompt.key, prompt.num_tokens, prompt.max_tokens, prompt.index, {})
            return
        tail = min(prompt.num_tokens, self.hardware.max_num_batched_tokens)
        transfer_s = self.hardware.handoff_s + tail * self.hardware.transfer_token_s
        landed = (prompt.key, prompt.num_tokens, {Span.EXPOSED_TRANSFER: transfer_s})
        self.cluster.at(self.at_s + transfer_s, self.cluster.land, (prompt.decode_worker, landed))

    # ---- the batch

    def _join(self, key: Key, context: int, max_tokens: int, index: int, spans: Spans) -> None:
        end = self.steps + max_tokens - 1
        self.batch[key] = Sequence(key, self.steps, end, self.steps, index + 1, context, spans)
        self.contexts += context + 1
        heapq.heappush(self.marks, (self.steps + 1, key))

    def _due(self) -> list[Output]:
        """Outputs of sequences that reached a mark: the first token here, every 64th, the last."""
        outputs: list[Output] = []
        while self.marks and self.marks[0][0] <= self.steps:
            mark, key = heapq.heappop(self.marks)
            sequence = self.batch.get(key)
            if sequence is None or mark <= sequence.told:
                continue
            count = self.steps - sequence.told
            is_over = self.steps >= sequence.end
            spans = {}
            if sequence.told == sequence.joined:
                spans = {**sequence.spans, Span.FIRST_STEP: 0.0}
            reason = FinishReason.LENGTH if is_over else None
            outputs.append(self._output(key, sequence.index, count, spans, reason))
            sequence.index += count
            sequence.told = self.steps
            if is_over:
                self._drop(key)
                self._remember(key[0])
            else:
                heapq.heappush(self.marks, (min(self.steps + REPORT_TOKENS, sequence.end), key))
        return outputs

    def _drop(self, key: Key) -> None:
        sequence = self.batch.pop(key, None)
        if sequence is not None:
            self.contexts -= sequence.context + 1 + self.steps - sequence.joined

    def _output(
        self,
        key: Key,
        index: int,
        count: int,
        spans: Spans,
        reason: FinishReason | None,
        cached: int = 0,
    ) -> Output:
        return Output(
            incarnation=self.incarnation,
            request_id=key[0],
            attempt=key[1],
            index=index,
            tokens=[TOKEN] * count,
            finish_reason=reason,
            num_cached_tokens=cached,
            spans=spans,
        )

    def _take_inbox(self) -> None:
        inbox, self.inbox = self.inbox, []
        for message in inbox:
            match message:
                case Prefill():
                    self.prompts.waiting.append(self._prompt(message, message.decode_worker))
                case Decode() if message.source is None:
                    self.prompts.waiting.append(self._prompt(message, self.worker_id))
                case Decode():
                    self.expected[(message.request_id, message.attempt)] = message
                case Abort():
                    self._abort((message.request_id, message.attempt))
                case (key, context, spans):
                    order = self.expected.pop(key, None)
                    if order is not None:
                        known = emitted(order)
                        self._join(key, context, order.sampling.max_tokens - known, known, spans)

    def _prompt(self, order: Prefill | Decode, decode_worker: str) -> Prompt:
        chunk = self.hardware.max_num_batched_tokens
        source = ""
        if isinstance(order, Decode):
            chunk = order.chunk_tokens or chunk
        if order.prefix_runs:
            source = order.prefix_runs[0].source.worker_id
        return Prompt(
            (order.request_id, order.attempt),
            len(order.token_ids),
            order.sampling.max_tokens - emitted(order),
            self.cluster.now_s,
            decode_worker,
            chunk,
            emitted(order),
            self.cluster.now_s + order.due_in_s,
            source,
            scores=scores_of(order),
            prompt_index=order.num_scored_tokens,
        )

    def _abort(self, key: Key) -> None:
        self.expected.pop(key, None)
        self._drop(key)
        self.prompts.drop(key)

    # ---- the prefix cache: chunk ids, least recently used first out

    def cached(self, chunks: tuple[int, ...]) -> int:
        """How many of them, from the first on, are here."""
        count = 0
        for chunk in chunks:
            if chunk not in self.cache:
                break
            count += 1
        return count

    def _remember(self, request_id: str) -> None:
        request = self.cluster.request(request_id)
        if request is None:
            return
        for chunk in request.chunks:
            self.cache[chunk] = request.chunk_tokens
            self.cache.move_to_end(chunk)
        room = max(self.hardware.kv_tokens - self.contexts, 0) // max(request.chunk_tokens, 1)
        while len(self.cache) > room:
            self.cache.popitem(last=False)

    def writes(self, request_id: str) -> bool:
        """Whether some attempt of it is in the batch."""
        return any(key[0] == request_id for key in self.batch)

    def load(self) -> WorkerLoad:
        """What a heartbeat tells. Steps of a prefill worker are its chunks, so that only their time matters."""
        total = self.hardware.kv_tokens // self.hardware.block_size
        held = min(self.contexts // self.hardware.block_size, total)
        return WorkerLoad(
            blocks=BlockCounts(total=total, free=total - held, cached=0, held=held),
            waiting=len(self.prompts.waiting),
            running=len(self.batch),
            transferring=len(self.expected),
            prefill_tokens=self.prefill_tokens,
            decode_tokens=self.decode_tokens,
            steps=self.steps,
            step_s=self.busy_s,
        )
