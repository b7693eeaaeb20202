"""What can happen next in the explored cluster. Owns the links and the faults; the parts are production code.

A state is (coordinator, P, D, links, faults left). Links deliver in order unless a fault says otherwise.
What only time ends (leases, waiting Attaches) ends when nothing else moves, or earlier as a fault.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import asdict, fields

from protocol.failures import ErrorKind
from protocol.roles import Role
from tests.model.configuration import Configuration, Faults
from tests.model.parts import DEAD, Event, Facts, Parts, Sent
from tests.model.surroundings import Violation

LINKS = ("C>P", "C>D", "P>C", "D>C", "P>D", "D>P")
"""The first four are the coordinator's."""
LINK_OF = {name: index for index, name in enumerate(LINKS)}
WORKERS = ("P", "D")
FAULTS = {field.name: index for index, field in enumerate(fields(Faults))}
Move = Callable[[], "World"]
Links = tuple[tuple[int, ...], ...]
World = tuple[int, int, int, int, int, int, int]
"""coordinator, P, D, P's last start, D's last start, links, faults left: numbers all."""


def read_events(
    name: str, facts: Facts, held_by: Callable[[tuple[str, str]], Facts | None]
) -> Iterator[tuple[str, Event]]:
    """How the reads of worker `name` go on: what they find at each source is what lies there then."""
    for index, (stage, source, lease_id, block_ids) in enumerate(facts.reads):
        if stage == 2:
            yield f"{name} hears of read {index}", ("end_read", index)
            continue
        held = held_by(source)
        if held is None:
            yield f"read {index} fails", ("fail_read", index, ErrorKind.PEER_LOST)
            continue
        data = tuple(held.blocks[block_id] for block_id in block_ids)
        middle = len(data[0]) // 2
        part_of = slice(0, middle) if stage == 0 else slice(middle, None)
        halves = tuple(content[part_of] for content in data)
        yield f"read {index}, half {stage}, lands", ("land", index, stage, halves)
        if stage == 0 and lease_id not in held.leases:
            yield f"read {index} is refused", ("fail_read", index, ErrorKind.LEASE_EXPIRED)


class Moves:
    """The moves of one configuration; states, links and budgets are numbers."""

    def __init__(self, configuration: Configuration) -> None:
        self.configuration = configuration
        self.parts = Parts(configuration)
        self._links: list[Links] = []
        self._link_numbers: dict[Links, int] = {}
        self._faults: list[tuple[int, ...]] = []
        self._fault_numbers: dict[tuple[int, ...], int] = {}

    # ---- numbers for links and fault budgets

    def _number_links(self, links: Links) -> int:
        number = self._link_numbers.get(links)
        if number is None:
            number = self._link_numbers[links] = len(self._links)
            self._links.append(links)
        return number

    def _number_faults(self, left: tuple[int, ...]) -> int:
        number = self._fault_numbers.get(left)
        if number is None:
            number = self._fault_numbers[left] = len(self._faults)
            self._faults.append(left)
        return number

    def _spend(self, faults: int, name: str) -> int | None:
        """The budget with one fault of that kind less; None when there is none left."""
        left, index = self._faults[faults], FAULTS[name]
        if not left[index]:
            return None
        return self._number_faults((*left[:index], left[index] - 1, *left[index + 1 :]))

    # ---- the first state

    def first(self) -> World:
        """Both workers registered, nothing submitted."""
        parts = self.parts
        coordinator = parts.fresh_coordinator()
        states = []
        for name in WORKERS:
            state, sent = parts.fresh_worker(name, 0)
            states.append(state)
            coordinator, ((_, welcome),) = parts.step(coordinator, ("take", sent[0][1]))
            states[-1], sent = parts.step(state, ("take", welcome))
            assert not sent
        budget = tuple(asdict(self.configuration.faults).values())
        links = self._number_links(((),) * len(LINKS))
        return (coordinator, states[0], states[1], 0, 0, links, self._number_faults(budget))

    # ---- one part moves

    def _advance(
        self, world: World, part: int, event: Event, links: Links, faults: int | None = None
    ) -> World:
        """`part` (0 coordinator, 1 P, 2 D) takes `event`; what it sends goes onto the links."""
        state, sent = self.parts.step(world[part], event)
        parts = list(world[:5])
        parts[part] = state
        if part and state != DEAD:
            start = self.parts.facts[state].incarnation
            parts[part + 2] = int(start.split(".")[1])
        elif part:
            links = self._without(links, WORKERS[part - 1])
        links = self._put(links, "CPD"[part], sent)
        number = world[6] if faults is None else faults
        return (*parts, self._number_links(links), number)  # type: ignore[return-value]

    @staticmethod
    def _without(links: Links, name: str) -> Links:
        """What was on its way to a process that ended is lost."""
        return tuple(
            () if LINKS[index].endswith(name) else queue for index, queue in enumerate(links)
        )

    @staticmethod
    def _put(links: Links, sender: str, sent: Sent) -> Links:
        if not sent:
            return links
        lists = list(links)
        for receiver, number in sent:
            index = LINK_OF.get(f"{sender}>{receiver}")
            if index is not None:
                lists[index] = (*lists[index], number)
        return tuple(lists)

    # ---- what can happen

    def moves(self, world: World) -> Iterator[tuple[str, Move]]:
        """Everything that goes on by itself, but for what only time ends."""
        yield from self._deliveries(world)
        yield from self._coordinator_moves(world)
        for part, name in enumerate(WORKERS, start=1):
            if world[part] != DEAD:
                yield from self._worker_moves(world, part, name)
            else:
                yield f"{name} restarts", lambda p=part: self._restart(world, p)  # type: ignore[misc]

    def _deliveries(self, world: World) -> Iterator[tuple[str, Move]]:
        links = self._links[world[5]]
        for index, queue in enumerate(links):
            if queue:
                rest = (*links[:index], queue[1:], *links[index + 1 :])
                yield (
                    f"deliver {self.parts.envelopes[queue[0]]}",
                    lambda m=queue[0], r=rest: self._deliver(world, m, r),  # type: ignore[misc]
                )

    def _deliver(self, world: World, number: int, links: Links, faults: int | None = None) -> World:
        envelope = self.parts.envelopes[number]
        part = "CPD".index(envelope.receiver)
        state = world[part]
        is_current = state != DEAD and (
            not part or envelope.receiver_start == self.parts.facts[state].incarnation
        )
        if is_current:
            return self._advance(world, part, ("take", number), links, faults)
        left = world[6] if faults is None else faults
        return (*world[:5], self._number_links(links), left)

    def _coordinator_moves(self, world: World) -> Iterator[tuple[str, Move]]:
        links = self._links[world[5]]
        facts = self.parts.facts[world[0]]

        def move(*event: object) -> Move:
            return lambda: self._advance(world, 0, event, links)

        for request_id in facts.unsent[:1]:
            yield f"client submits {request_id}", move("submit", request_id)
        for part, name in enumerate(WORKERS, start=1):
            state = world[part]
            start = "" if state == DEAD else self.parts.facts[state].incarnation
            if facts.starts.get(name, start) != start:
                yield f"C sees that {name} died", move("lose", name)
            live = None if state == DEAD else self.parts.facts[state].live
            if live is not None and not any(links[:4]):
                yield f"heartbeats of {name}", move("heartbeat", name, start, live)

    def _worker_moves(self, world: World, part: int, name: str) -> Iterator[tuple[str, Move]]:
        links = self._links[world[5]]
        facts = self.parts.facts[world[part]]

        def move(*event: object) -> Move:
            return lambda: self._advance(world, part, event, links)

        if facts.is_unsaid:
            yield f"{name} says what it gathered", move("flush")
        if facts.may_rest:
            yield f"{name} falls asleep", move("rest")
        if facts.may_leave:
            yield f"{name} says Goodbye", move("leave")
        if facts.has_left and self._is_unknown(world, name, facts.incarnation):
            yield f"{name} is stopped", lambda: self._stop(world, part)
        if facts.has_prefill:
            yield f"{name} steps its prompts", move("step", "prefill")
        if facts.has_decode:
            yield f"{name} steps its sequences", move("step", "decode")
        for label, event in read_events(name, facts, lambda start: self._held(world, start)):
            yield label, move(*event)

    def _held(self, world: World, start: tuple[str, str]) -> Facts | None:
        """What that start of a worker is now; None when it is over."""
        holder = world["CPD".index(start[0])]
        held = None if holder == DEAD else self.parts.facts[holder]
        return held if held is not None and held.incarnation == start[1] else None

    def _is_unknown(self, world: World, name: str, start: str) -> bool:
        """Whether the coordinator has let this start go."""
        return self.parts.facts[world[0]].starts.get(name) != start

    def _stop(self, world: World, part: int) -> World:
        """The launcher ends a worker that said Goodbye: it must have nothing left."""
        if left := self.parts.facts[world[part]].leftovers:
            raise Violation("stopped with " + ", ".join(left))
        return self._crash(world, part, world[6])

    def _restart(self, world: World, part: int) -> World:
        name = WORKERS[part - 1]
        state, sent = self.parts.fresh_worker(name, world[part + 2] + 1)
        parts = list(world)
        parts[part] = state
        parts[part + 2] += 1
        parts[5] = self._number_links(self._put(self._links[world[5]], name, sent))
        return tuple(parts)  # type: ignore[return-value]

    def waits(self, world: World) -> Iterator[tuple[str, Move]]:
        """What only time ends."""
        links = self._links[world[5]]
        for part, name in enumerate(WORKERS, start=1):
            if world[part] == DEAD:
                continue
            facts = self.parts.facts[world[part]]

            def move(*event: object, part: int = part) -> Move:
                return lambda: self._advance(world, part, event, links)

            if not facts.is_registered and not facts.has_left:
                yield f"{name} says hello again", move("hello")
            if facts.has_left and not self._is_unknown(world, name, facts.incarnation):
                yield f"{name} says Goodbye again", move("leave")
                yield (
                    f"C hears no more of {name}",
                    lambda n=name: self._advance(world, 0, ("lose", n), links),  # type: ignore[misc]
                )
            for lease_id in facts.leases:
                yield f"{lease_id} of {name} runs out", move("lease_over", lease_id)
            for key in facts.early:
                yield f"an Attach at {name} waited too long", move("attach_over", key)
            for key in facts.asking:
                yield f"{name} waited too long for a prefix", move("answer_over", key)

    def left(self, world: World) -> list[str]:
        """What should not be there when nothing moves."""
        return [text for state in world[:3] for text in self.parts.facts[state].leftovers]

    def faults(self, world: World) -> Iterator[tuple[str, Move]]:
        """What the budget allows to go wrong."""
        links, left = self._links[world[5]], world[6]
        for index, queue in enumerate(links):
            if queue:
                yield from self._link_faults(world, index, queue)
        if (spent := self._spend(left, "cancel")) is not None:
            for request_id in self.parts.facts[world[0]].open:
                yield (
                    f"client cancels {request_id}",
                    lambda r=request_id, s=spent: self._advance(  # type: ignore[misc]
                        world, 0, ("cancel", r), links, s
                    ),
                )
        for part, name in enumerate(WORKERS, start=1):
            if world[part] != DEAD:
                yield from self._worker_faults(world, part, name)

    def _link_faults(
        self, world: World, index: int, queue: tuple[int, ...]
    ) -> Iterator[tuple[str, Move]]:
        links, left = self._links[world[5]], world[6]

        def with_queue(changed: tuple[int, ...]) -> Links:
            return (*links[:index], changed, *links[index + 1 :])

        head = self.parts.envelopes[queue[0]]
        if type(head.message).__name__ == "Hello":
            return  # said again until it is answered
        if (spent := self._spend(left, "drop")) is not None:
            dropped = self._number_links(with_queue(queue[1:]))
            yield f"lose {head}", lambda s=spent: (*world[:5], dropped, s)  # type: ignore[misc]
        if (spent := self._spend(left, "duplicate")) is not None:
            copied = with_queue((*queue[1:], queue[0]))
            yield (
                f"deliver {head}, and again later",
                lambda s=spent: self._deliver(world, queue[0], copied, s),  # type: ignore[misc]
            )
        if len(queue) > 1 and (spent := self._spend(left, "reorder")) is not None:
            later = with_queue((queue[0], *queue[2:]))
            yield (
                f"deliver {self.parts.envelopes[queue[1]]} out of order",
                lambda s=spent: self._deliver(world, queue[1], later, s),  # type: ignore[misc]
            )

    def _worker_faults(self, world: World, part: int, name: str) -> Iterator[tuple[str, Move]]:
        links, left = self._links[world[5]], world[6]
        for kind, label, taker, event in self._fault_events(world, part, name):
            if (spent := self._spend(left, kind)) is not None:
                yield (
                    label,
                    lambda t=taker, e=event, s=spent: self._advance(  # type: ignore[misc]
                        world, t, e, links, s
                    ),
                )
        if (spent := self._spend(left, "crash")) is not None:
            yield f"{name} dies", lambda s=spent: self._crash(world, part, s)  # type: ignore[misc]

    def _fault_events(
        self, world: World, part: int, name: str
    ) -> Iterator[tuple[str, str, int, Event]]:
        """(kind of fault, label, the part that takes it, event)."""
        links, facts = self._links[world[5]], self.parts.facts[world[part]]
        for key in facts.late:
            yield "late", f"{key[0]} is too late at {name}", part, ("deadline_over", key)
        if self.parts.facts[world[0]].starts.get(name) == facts.incarnation:
            yield from self._operators_orders(name)
            yield "fence", f"C gives {name} up", 0, ("lose", name)
        if facts.live is not None and any(links[:4]) and not links[LINK_OF[f"C>{name}"]]:
            beat = ("heartbeat", name, facts.incarnation, facts.live)
            yield "impatience", f"heartbeats of {name} overtake all else", 0, beat
        for key in facts.asking:
            yield "impatience", f"{name} does not wait for a prefix", part, ("answer_over", key)
        for lease_id in facts.leases:
            yield "lease", f"{lease_id} of {name} runs out early", part, ("lease_over", lease_id)
        for key in facts.renewable:
            yield "renew", f"{name} renews {key[0]}", part, ("renew", key)
        for index, (stage, *_) in enumerate(facts.reads):
            if stage < 2:
                broken = ("fail_read", index, ErrorKind.TRANSFER)
                yield "refuse", f"link of read {index} breaks", part, broken
            if stage == 1:
                yield "flip", f"read {index} lands with a flipped bit", part, ("flip", index)

    @staticmethod
    def _operators_orders(name: str) -> Iterator[tuple[str, str, int, Event]]:
        """Of a registered worker, for any reason and at any time."""
        other = {"P": "D", "D": "P"}[name]
        yield "drain", f"{name} is to leave", 0, ("drain", name)
        yield "audit", f"{name} is audited", 0, ("audit", name)
        yield "ping", f"C pings {name}", 0, ("ping", name)
        yield "forget", f"{name} is to forget {other}", 0, ("tell_to_forget", name, other)
        yield "reject", f"C refuses {name}", 0, ("reject", name)
        yield "keep", f"{name} is to keep what {other} has", 0, ("keep", name, other)
        yield "listing", f"{name} is to list its blocks", 0, ("ask_for_list", name)
        yield "sleep", f"{name} is to sleep", 0, ("put_to_sleep", name)
        yield "handover", f"{name} hands over what it writes", 0, ("hand_over", name)
        if name == "P":
            yield "role", "P becomes a decode worker", 0, ("flip", name, Role.DECODE)

    def _crash(self, world: World, part: int, faults: int) -> World:
        """Dead: what was on its way to it is lost; what it sent may still arrive."""
        name = WORKERS[part - 1]
        links = self._without(self._links[world[5]], name)
        parts = list(world)
        parts[part] = DEAD
        parts[5:] = [self._number_links(links), faults]
        return tuple(parts)  # type: ignore[return-value]
