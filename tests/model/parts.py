"""States of one part and its steps, each computed once. Owns the numbers that stand for states and messages.

A part (coordinator, P or D) is production code; (state, event) decides what follows and what is sent,
so a pair is run once and then looked up. A state is kept as its frozen value, to compare, and as
bytes, to continue from.
"""

from __future__ import annotations

import pickle
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import msgspec

from tests.model.canonical import freeze
from tests.model.coordinator_side import CoordinatorSide
from tests.model.worker_side import WorkerSide

if TYPE_CHECKING:
    from tests.model.configuration import Configuration
    from tests.model.surroundings import Letter

DEAD = -1
Event = tuple[Any, ...]
Sent = tuple[tuple[str, int], ...]
"""(receiver, message number) in order."""


@dataclass(frozen=True, slots=True)
class Envelope:
    """A message on its way between two starts."""

    sender: str
    receiver: str
    kind: str
    receiver_start: str
    sender_start: str
    message: Any

    def __str__(self) -> str:
        return f"{self.sender}->{self.receiver} {type(self.message).__name__}"


@dataclass
class Facts:
    """What the search asks of a state, computed once."""

    leftovers: list[str]
    incarnation: str = ""
    live: tuple[tuple[str, int], ...] | None = None
    has_prefill: bool = False
    has_decode: bool = False
    leases: tuple[str, ...] = ()
    early: tuple[tuple[str, int], ...] = ()
    asking: tuple[tuple[str, int], ...] = ()
    renewable: tuple[tuple[str, int], ...] = ()
    reads: tuple[Any, ...] = ()
    blocks: tuple[bytes, ...] = ()
    is_registered: bool = False
    is_unsaid: bool = False
    may_leave: bool = False
    may_rest: bool = False
    has_left: bool = False
    late: tuple[tuple[str, int], ...] = ()
    starts: dict[str, str] = field(default_factory=dict)
    open: tuple[str, ...] = ()
    unsent: tuple[str, ...] = ()


class Parts:
    """Numbered local states, messages, and the memory of steps."""

    def __init__(self, configuration: Configuration) -> None:
        self.configuration = configuration
        self.steps: dict[tuple[int, Event], tuple[int, Sent]] = {}
        self.facts: list[Facts] = []
        self.envelopes: list[Envelope] = []
        self._numbers: dict[Any, int] = {}
        self._bytes: list[bytes] = []
        self._message_numbers: dict[Any, int] = {}

    def fresh_coordinator(self) -> int:
        return self._number("C", CoordinatorSide(self.configuration))

    def fresh_worker(self, worker_id: str, start: int) -> tuple[int, Sent]:
        side = WorkerSide(self.configuration, worker_id, start)
        side.hello()
        sent = self._take_sent(worker_id, side)
        return self._number(worker_id, side), sent

    def adopt(self, worker_id: str, side: WorkerSide) -> int:
        """A worker that something was done to before anything moves; what it said goes on to nobody."""
        side.sent.clear()
        return self._number(worker_id, side)

    def step(self, state: int, event: Event) -> tuple[int, Sent]:
        """What follows; raises Violation where a promise breaks."""
        found = self.steps.get((state, event))
        if found is None:
            found = self.steps[(state, event)] = self._run(state, event)
        return found

    def _run(self, state: int, event: Event) -> tuple[int, Sent]:
        side = self.revive(state)
        name, *arguments = event
        if name == "take":
            self._take(side, self.envelopes[arguments[0]])
        else:
            getattr(side, name)(*arguments)
        sender = side.worker_id if isinstance(side, WorkerSide) else "C"
        sent = self._take_sent(sender, side)
        state = DEAD if side.is_over else self._number(sender, side)
        return state, sent

    @staticmethod
    def _take(side: Any, envelope: Envelope) -> None:
        match envelope.kind:
            case "order":
                side.order(envelope.message)
            case "reader":
                side.reader(envelope.sender_start.encode(), envelope.message)
            case "source":
                side.source((envelope.sender, envelope.sender_start), envelope.message)
            case _:
                side.hear(envelope.sender, envelope.message)

    def revive(self, state: int) -> Any:
        """The part in that state, to look at or to go on with."""
        side = pickle.loads(self._bytes[state])  # noqa: S301 - bytes of our own, never from outside
        if isinstance(side, WorkerSide):
            side.pool._holds = {id(hold): hold for hold in side.pool._holds.values()}
        return side

    def _take_sent(self, sender: str, side: Any) -> Sent:
        sent, side.sent = side.sent, []
        return tuple((letter.receiver, self._post(sender, letter)) for letter in sent)

    def _post(self, sender: str, letter: Letter) -> int:
        key = (sender, *letter[:-1], msgspec.msgpack.encode(letter.message))
        number = self._message_numbers.get(key)
        if number is None:
            number = self._message_numbers[key] = len(self.envelopes)
            self.envelopes.append(Envelope(sender, *letter))
        return number

    def _number(self, name: str, side: Any) -> int:
        side.check()
        key = (name, freeze(side.roots(), {}))
        number = self._numbers.get(key)
        if number is None:
            number = self._numbers[key] = len(self._bytes)
            self._bytes.append(pickle.dumps(side, protocol=5))
            self.facts.append(self._facts(side))
        return number

    def _facts(self, side: Any) -> Facts:
        if isinstance(side, CoordinatorSide):
            is_busy = any(client.end is None for client in side.clients.values())
            unsent = [n for n in self.configuration.prompts if n not in side.clients]
            return Facts(
                leftovers=side.leftovers(),
                starts=side.known_starts(),
                open=tuple(name for name, client in side.clients.items() if client.end is None),
                unsent=() if is_busy and self.configuration.in_turn else tuple(unsent),
            )
        memory = side.memory
        return Facts(
            leftovers=side.leftovers(),
            incarnation=side.incarnation,
            live=side.live(),
            has_prefill=side.prefill.has_work,
            has_decode=side.decode.has_work,
            leases=tuple(side.leases._leases),
            early=tuple(side.prefill._early),
            asking=tuple(
                key
                for prefixes in (side.prefill.prefixes, side.decode.prefixes)
                for key, fetch in prefixes.fetches.items()
                if fetch.is_asking
            )
            + tuple(key for key, run in side.roles.keeper.runs.items() if not run.is_reading),
            renewable=tuple(
                key
                for key, fetch in side.decode.fetches.items()
                if fetch.is_last_announced and not fetch.is_over
            ),
            reads=tuple(
                (
                    read.stage,
                    (read.job.source.worker_id, read.job.source.incarnation),
                    read.job.lease_id,
                    tuple(read.job.source_ids),
                )
                for read in side.reads
            ),
            blocks=tuple(bytes(memory.block(i)) for i in range(side.num_blocks)),
            is_registered=side.loop.is_registered,
            is_unsaid=not side.outbox.is_empty,
            may_leave=side.may_leave,
            may_rest=side.loop.sleep.is_due and not side.loop.has_said_goodbye,
            has_left=side.loop.has_said_goodbye,
            late=side.late(),
        )
