"""One answer that reads its prompt from several sources at once, in every state. Owns the moves and the links; what the sources are
and have is in `tests.model.source_sides`."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import asdict
from typing import NamedTuple

from protocol.messages.orders import Abort
from protocol.messages.records import PrefixRun
from protocol.messages.reports import Outputs
from tests.model.moves import read_events
from tests.model.parts import DEAD, Event, Facts, Parts, Sent
from tests.model.source_sides import (
    FAULTS,
    NAMES,
    READER,
    REQUEST,
    STORE,
    Sources,
    SourceSide,
    computed,
    order_of,
)
from tests.model.surroundings import Violation

LINKS = ("R>L", "R>S", "L>R", "S>R")
LINK_OF = {name: index for index, name in enumerate(LINKS)}
Move = Callable[[], "World"]
Links = tuple[tuple[int, ...], ...]
Said = tuple[tuple[int, ...], bool]


class World(NamedTuple):
    """`states` are R's, L's and S's; `said` is what R has said: tokens, and whether that is all."""

    states: tuple[int, ...]
    links: Links
    said: Said
    budget: tuple[int, ...]


class SourceMoves:
    """The moves of one configuration. A worker that died stays dead."""

    def __init__(self, configuration: Sources) -> None:
        self.configuration = configuration
        self.parts = Parts(configuration)
        self._loads: dict[int, tuple[int, int] | None] = {}

    def first(self) -> World:
        """The sources have what they have, and R has just been told."""
        configuration, content = self.configuration, computed(self.configuration)
        keys = list(content)
        sides = {name: SourceSide(configuration, name, 0) for name in NAMES}
        for name, blocks in configuration.has.items():
            for index in blocks:
                sides[name].plant(keys[index], content[keys[index]])
        below = sides[STORE].below
        assert below is not None
        below.content.update({keys[i]: content[keys[i]] for i in configuration.below})
        runs = [
            PrefixRun(
                source=sides[name].address(), begin_tokens=begin, end_tokens=end, is_open=is_open
            )
            for name, begin, end, is_open in configuration.runs
        ]
        reader = sides[READER]
        reader.order(order_of(configuration, reader, runs))
        states = tuple(self.parts.adopt(name, side) for name, side in sides.items())
        budget = tuple(asdict(configuration.budget).values())
        return World(states, ((),) * len(LINKS), ((), False), budget)

    # ---- one part moves

    def _advance(
        self,
        world: World,
        part: int,
        event: Event,
        links: Links | None = None,
        budget: tuple[int, ...] | None = None,
    ) -> World:
        state, sent = self.parts.step(world.states[part], event)
        return World(
            self._with(world.states, part, state),
            self._put(world.links if links is None else links, NAMES[part], sent),
            self._said(world.said, sent) if part == 0 else world.said,
            world.budget if budget is None else budget,
        )

    @staticmethod
    def _with(states: tuple[int, ...], part: int, state: int) -> tuple[int, ...]:
        return (*states[:part], state, *states[part + 1 :])

    @staticmethod
    def _without_first(links: Links, index: int) -> Links:
        return (*links[:index], links[index][1:], *links[index + 1 :])

    def _put(self, links: Links, sender: str, sent: Sent) -> Links:
        lists = list(links)
        for receiver, number in sent:
            if (index := LINK_OF.get(f"{sender}>{receiver}")) is not None:
                lists[index] = (*lists[index], number)
        return tuple(lists)

    def _said(self, said: Said, sent: Sent) -> Said:
        """What the coordinator has heard of the answer."""
        tokens, is_over = said
        for receiver, number in sent:
            message = self.parts.envelopes[number].message
            for output in message.outputs if isinstance(message, Outputs) else ():
                assert receiver == "C"
                if is_over:
                    raise Violation("an output after the last")
                tokens += tuple(token.token_id for token in output.tokens)
                is_over = output.finish_reason is not None
        return tokens, is_over

    # ---- what can happen

    def moves(self, world: World) -> Iterator[tuple[str, Move]]:
        """Everything that goes on by itself, but for what only time ends."""
        for index, queue in enumerate(world.links):
            if queue:
                yield self._delivery(world, index, queue[0])
        for part, name in self._alive(world):
            yield from self._worker_moves(world, part, name)

    @staticmethod
    def _alive(world: World) -> list[tuple[int, str]]:
        return [(part, name) for part, name in enumerate(NAMES) if world.states[part] != DEAD]

    def _delivery(self, world: World, index: int, number: int) -> tuple[str, Move]:
        rest = self._without_first(world.links, index)
        envelope = self.parts.envelopes[number]
        part = NAMES.index(envelope.receiver)
        if world.states[part] == DEAD:
            return f"lose {envelope}", lambda: world._replace(links=rest)
        return f"deliver {envelope}", lambda: self._advance(world, part, ("take", number), rest)

    def _worker_moves(self, world: World, part: int, name: str) -> Iterator[tuple[str, Move]]:
        facts = self.parts.facts[world.states[part]]

        def move(*event: object) -> Move:
            return lambda: self._advance(world, part, event)

        if facts.has_decode:
            yield f"{name} steps its sequences", move("step", "decode")
        for label, event in read_events(name, facts, lambda start: self._held(world, start)):
            yield label, move(*event)
        if (load := self._first_load(world.states[part])) is not None:
            yield f"{name} has loaded what is there", move("end_load", load[1])

    def _held(self, world: World, start: tuple[str, str]) -> Facts | None:
        state = world.states[NAMES.index(start[0])]
        return None if state == DEAD else self.parts.facts[state]

    def _first_load(self, state: int) -> tuple[int, int] | None:
        if state not in self._loads:
            self._loads[state] = self.parts.revive(state).first_load
        return self._loads[state]

    def waits(self, world: World) -> Iterator[tuple[str, Move]]:
        """What only time ends."""
        for part, name in self._alive(world):
            for label, event in self._timely(self.parts.facts[world.states[part]], name):
                yield label, lambda p=part, e=event: self._advance(world, p, e)  # type: ignore[misc]

    @staticmethod
    def _timely(facts: Facts, name: str) -> Iterator[tuple[str, Event]]:
        for lease_id in facts.leases:
            yield f"{lease_id} of {name} runs out", ("lease_over", lease_id)
        for key in facts.asking:
            yield f"{name} waited too long for a source", ("answer_over", key)

    def faults(self, world: World) -> Iterator[tuple[str, Move]]:
        """What the budget allows to go wrong."""
        if (left := self._spend(world, "drop")) is not None:
            for index, queue in enumerate(world.links):
                if queue:
                    lost = world._replace(
                        links=self._without_first(world.links, index), budget=left
                    )
                    yield f"lose {self.parts.envelopes[queue[0]]}", lambda w=lost: w  # type: ignore[misc]
        for part, name in self._alive(world):
            yield from self._worker_faults(world, part, name)

    def _worker_faults(self, world: World, part: int, name: str) -> Iterator[tuple[str, Move]]:
        for kind, label, event in self._fault_events(world, part, name):
            if (left := self._spend(world, kind)) is not None:
                yield (
                    label,
                    lambda e=event, s=left: self._advance(world, part, e, budget=s),  # type: ignore[misc]
                )
        if (left := self._spend(world, "crash")) is not None:
            yield f"{name} dies", lambda: self._crash(world, part, left)

    def _fault_events(self, world: World, part: int, name: str) -> Iterator[tuple[str, str, Event]]:
        """(kind of fault, label, event)."""
        facts = self.parts.facts[world.states[part]]
        if name == READER:
            if not world.said[1]:
                yield "cancel", "the client leaves", ("order", self._abort(facts))
            for key in facts.asking:
                yield "late", "R does not wait for its sources", ("answer_over", key)
            for index, (stage, *_) in enumerate(facts.reads):
                if stage == 1:
                    yield "flip", f"read {index} lands with a flipped bit", ("flip", index)
            return
        for lease_id in facts.leases:
            yield "lease", f"{lease_id} of {name} runs out early", ("lease_over", lease_id)
        yield "evict", f"{name} needs its room for others", ("evict",)
        if name == STORE:
            yield "lose", "S loses its tier", ("lose_tier",)
        load = self._first_load(world.states[part])
        for count in range(load[1] if load else 0):
            yield "tier", f"a load brings {count} blocks only", ("end_load", count)

    @staticmethod
    def _abort(facts: Facts) -> Abort:
        return Abort(incarnation=facts.incarnation, request_id=REQUEST, attempt=0)

    @staticmethod
    def _spend(world: World, kind: str) -> tuple[int, ...] | None:
        """The budget with one fault of that kind less; None when there is none left."""
        left, index = world.budget, FAULTS[kind]
        return (*left[:index], left[index] - 1, *left[index + 1 :]) if left[index] else None

    def _crash(self, world: World, part: int, left: tuple[int, ...]) -> World:
        """What was on its way to it is lost; what it sent may still arrive."""
        links = tuple(
            () if LINKS[index].endswith(NAMES[part]) else queue
            for index, queue in enumerate(world.links)
        )
        return World(self._with(world.states, part, DEAD), links, world.said, left)

    # ---- where nothing moves

    def left(self, world: World) -> list[str]:
        """What should not be there then: anything held, or an answer without its end."""
        alive = [self.parts.facts[state] for state in world.states if state != DEAD]
        found = [text for facts in alive for text in facts.leftovers]
        was_cancelled = world.budget[FAULTS["cancel"]] < self.configuration.budget.cancel
        tokens, is_over = world.said
        is_whole = is_over and list(tokens) == self.configuration.oracle(REQUEST)
        if world.states[0] != DEAD and not is_whole and not was_cancelled:
            found.append(f"R: the answer stopped after {len(tokens)} tokens")
        return found
