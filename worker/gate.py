"""Orders whose answers have a grammar wait here until it is compiled. Owns who waits for which; does no IO.

Prefill, Decode ─► no constraint, or its grammar is known ─► role
               └─► waits ─► GrammarMade ─► role, with a guide that has seen what was emitted
                        └─► Abort, Fence, its deadline
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol, TypeVar

import msgspec

from protocol.failures import ErrorKind, Failure
from protocol.finish import FinishReason
from protocol.messages.reports import Output

if TYPE_CHECKING:
    from collections.abc import Callable

    from engine.context import WorkerContext
    from engine.grammar.guide import CompiledGrammar, Guide
    from protocol.constraints import Constraint
    from protocol.messages.orders import Decode, Prefill
    from protocol.sampling import SamplingParams
    from worker.outbox import Outbox

LegOrder = TypeVar("LegOrder", "Prefill", "Decode")
NO_GRAMMARS = Failure(ErrorKind.INTERNAL, "this worker's engine cannot keep to a grammar")
TOO_LATE = Failure(ErrorKind.DEADLINE_EXCEEDED, "the request's deadline passed before its grammar")


@dataclass(frozen=True, slots=True)
class GrammarMade:
    """A constraint's grammar, or why there is none."""

    key: str
    grammar: CompiledGrammar | None
    reason: str = ""


class Grammars(Protocol):
    """Compiles beside the loop, and knows what it has compiled."""

    def find(self, key: str) -> CompiledGrammar | None:
        """What is compiled already."""
        ...

    def start(self, constraint: Constraint) -> None:
        """Compile it; its GrammarMade comes later."""
        ...

    def keep(self, key: str, grammar: CompiledGrammar) -> None:
        """It came."""
        ...

    def guide(self, grammar: CompiledGrammar, sampling: SamplingParams) -> Guide:
        """At the beginning of an answer."""
        ...


@dataclass(frozen=True, slots=True)
class _Waiting:
    order: Prefill | Decode
    begin: Callable[[float, Guide], None]
    """Called with the seconds that it has waited."""
    since_s: float


class GrammarGate:
    """Invariant: a grammar that somebody waits for is being compiled."""

    def __init__(self, grammars: Grammars | None, outbox: Outbox, context: WorkerContext) -> None:
        self._grammars = grammars
        self._outbox = outbox
        self._context = context
        self._waiting: dict[str, list[_Waiting]] = {}

    @property
    def is_empty(self) -> bool:
        """Whether nobody waits."""
        return not self._waiting

    def keys(self) -> list[tuple[str, int]]:
        """(request, attempt) of everybody who waits."""
        return [(w.order.request_id, w.order.attempt) for w in self._all()]

    def _all(self) -> list[_Waiting]:
        return [waiting for some in self._waiting.values() for waiting in some]

    def admit(self, order: LegOrder, begin: Callable[[LegOrder, Guide | None], None]) -> None:
        """Begin now, or as soon as the order's grammar is here; a second order for the same changes nothing."""
        constraint = order.sampling.constraint
        if constraint is None:
            begin(order, None)
        elif self._grammars is None:
            self.refuse(order, NO_GRAMMARS)
        elif (grammar := self._grammars.find(constraint.key)) is not None:
            self._begin(self._waiter(order, begin), grammar)
        elif (order.request_id, order.attempt) not in self.keys():
            if constraint.key not in self._waiting:
                self._grammars.start(constraint)
            self._waiting.setdefault(constraint.key, []).append(self._waiter(order, begin))

    def _waiter(self, order: LegOrder, begin: Callable[[LegOrder, Guide | None], None]) -> _Waiting:
        def go(waited_s: float, guide: Guide) -> None:
            left_s = max(order.deadline_in_s - waited_s, 0.0)
            due_in_s = order.due_in_s - waited_s
            begin(msgspec.structs.replace(order, deadline_in_s=left_s, due_in_s=due_in_s), guide)

        return _Waiting(order, go, self._context.clock.now_s())

    def made(self, event: GrammarMade) -> None:
        """Whoever waited for it begins, or hears that there is none."""
        if event.grammar is not None and self._grammars is not None:
            self._grammars.keep(event.key, event.grammar)
        for waiting in self._waiting.pop(event.key, ()):
            if event.grammar is None:
                self.refuse(waiting.order, Failure(ErrorKind.INTERNAL, event.reason))
            else:
                self._begin(waiting, event.grammar)

    def _begin(self, waiting: _Waiting, grammar: CompiledGrammar) -> None:
        assert self._grammars is not None
        order = waiting.order
        guide = self._grammars.guide(grammar, order.sampling)
        guide.accept_all(order.token_ids[order.num_prompt_tokens :])
        if guide.failure is not None:
            self.refuse(order, Failure(ErrorKind.INTERNAL, guide.failure))
            return
        waiting.begin(self._context.clock.now_s() - waiting.since_s, guide)

    def end(self, key: tuple[str, int]) -> None:
        """Nobody wants it any more. Idempotent."""
        self._keep_those(lambda w: (w.order.request_id, w.order.attempt) != key)

    def expire(self) -> None:
        """End what outlived its deadline."""
        now_s = self._context.clock.now_s()
        late = [w for w in self._all() if now_s - w.since_s > w.order.deadline_in_s]
        for waiting in late:
            self.refuse(waiting.order, TOO_LATE)
        if late:
            self._keep_those(lambda w: w not in late)

    def _keep_those(self, wanted: Callable[[_Waiting], bool]) -> None:
        kept = {key: [w for w in some if wanted(w)] for key, some in self._waiting.items()}
        self._waiting = {key: some for key, some in kept.items() if some}

    def drop_all(self) -> None:
        """Fenced: forget everybody."""
        self._waiting.clear()

    def refuse(self, order: Prefill | Decode, failure: Failure) -> None:
        """Its end here: the coordinator hears why."""
        self._outbox.output(
            Output(
                incarnation=self._context.incarnation,
                request_id=order.request_id,
                attempt=order.attempt,
                index=len(order.token_ids) - order.num_prompt_tokens,
                tokens=[],
                finish_reason=FinishReason.ERROR,
                error=failure,
            )
        )
