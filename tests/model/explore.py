"""Every state of a small cluster, breadth first. Owns the search and what is asked of every state.

usage: python -m tests.model.explore [--states N] [--only NAME]

In every state: no wrong token, blocks conserved, every hold owned, every read into held blocks.
Where nothing moves: everything given back, every request over, and with the right end.
"""

from __future__ import annotations

import argparse
import logging
import sys
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import pairwise
from time import perf_counter
from typing import Any

import coordinator.cluster.ledger
from tests.model.configuration import BOUNDED, COMPLETE, Configuration
from tests.model.moves import Move, Moves, World
from tests.model.source_sides import ALONE, PAIRS, SHAPES, Sources
from tests.model.sources import SourceMoves
from tests.model.surroundings import Violation


@dataclass
class Found:
    """What one exploration showed."""

    name: str
    states: int = 0
    transitions: int = 0
    terminal: int = 0
    local_states: int = 0
    is_complete: bool = False
    seconds: float = 0.0
    violation: str | None = None
    trace: tuple[str, ...] = ()


class Explorer:
    """Breadth-first search over one configuration."""

    def __init__(self, configuration: Configuration) -> None:
        self.configuration = configuration
        self.moves: Any = (
            SourceMoves(configuration)
            if isinstance(configuration, Sources)
            else Moves(configuration)
        )

    def successors(self, world: World, found: Found) -> Iterator[tuple[str, World]]:
        """Every (label, next state) but those that change nothing; checks where nothing moves."""
        is_moving = False
        for label, move in self.moves.moves(world):
            following = _apply(label, move)
            if following != world:
                is_moving = True
                yield label, following
        if not is_moving:
            for label, move in self.moves.waits(world):
                following = _apply(label, move)
                if following != world:
                    is_moving = True
                    yield label, following
        if not is_moving:
            found.terminal += 1
            self._check_rest(world)
        for label, move in self.moves.faults(world):
            following = _apply(label, move)
            if following != world:
                yield label, following

    def _check_rest(self, world: World) -> None:
        left = self.moves.left(world)
        if left:
            raise Violation("nothing moves, and left are: " + ", ".join(left))

    def run(self, max_states: int) -> Found:
        """Search until everything, `max_states` states or one violation is found."""
        found, start_s = Found(self.configuration.name), perf_counter()
        with _headroom(self.configuration.headroom_tokens):
            first = self.moves.first()
            parents: dict[World, World | None] = {first: None}
            frontier = deque([first])
            while frontier and found.violation is None and len(parents) < max_states:
                self._expand(frontier.popleft(), parents, frontier, found)
            found.is_complete = not frontier and found.violation is None
        found.states = len(parents)
        found.local_states = len(self.moves.parts.facts)
        found.seconds = perf_counter() - start_s
        return found

    def _expand(
        self,
        world: World,
        parents: dict[World, World | None],
        frontier: deque[World],
        found: Found,
    ) -> None:
        try:
            for _, following in self.successors(world, found):
                found.transitions += 1
                if following not in parents:
                    parents[following] = world
                    frontier.append(following)
        except Violation as violation:
            found.violation = str(violation)
            found.trace = (*self._trace(world, parents), *getattr(violation, "__notes__", []))

    def _trace(self, world: World, parents: dict[World, World | None]) -> Iterator[str]:
        path = [world]
        while (before := parents[path[-1]]) is not None:
            path.append(before)
        path.reverse()
        for before, after in pairwise(path):
            found = Found("")
            labels = (label for label, w in self.successors(before, found) if w == after)
            yield next(labels)


def _apply(label: str, move: Move) -> World:
    try:
        return move()
    except Violation as violation:
        violation.add_note(label)
        raise


@contextmanager
def _headroom(tokens: int) -> Iterator[None]:
    """How much output the ledger reserves ahead: less makes workers run short, and preempt."""
    before = coordinator.cluster.ledger.HEADROOM_TOKENS
    coordinator.cluster.ledger.HEADROOM_TOKENS = tokens
    try:
        yield
    finally:
        coordinator.cluster.ledger.HEADROOM_TOKENS = before


def main() -> int:
    """Exit status 1 when any state breaks a promise."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--states", type=int, default=6_000_000, help="states in all")
    parser.add_argument("--only", help="one configuration by name")
    arguments = parser.parse_args()
    logging.disable(logging.CRITICAL)
    known = (*SHAPES, *ALONE, *PAIRS, *COMPLETE, *BOUNDED)
    chosen = [c for c in known if arguments.only in (None, c.name)]
    total, bad = 0, 0
    for index, configuration in enumerate(chosen):
        left = arguments.states - total
        if left <= 0:
            print(f"bound reached; not explored: {len(chosen) - index} configurations")
            break
        is_small = configuration not in BOUNDED
        found = Explorer(configuration).run(left if is_small else left // (len(chosen) - index))
        total += found.states
        bad += found.violation is not None
        print(
            f"{found.name:24} {found.states:9,} states  {found.transitions:10,} transitions  "
            f"{found.local_states:7,} of parts  {found.terminal:6,} at rest  {found.seconds:5.0f} s  "
            f"{'all of them' if found.is_complete else 'bound reached'}",
            flush=True,
        )
        if found.violation is not None:
            print(f"VIOLATION {found.violation}\n  " + "\n  ".join(found.trace))
    print(f"{total:,} states, {bad} configurations with a violation")
    return int(bad > 0)


if __name__ == "__main__":
    sys.exit(main())
