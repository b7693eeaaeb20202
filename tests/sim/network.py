"""Links between simulated processes. Owns delay, loss, duplication and partition of messages; seeded.

A link delivers in order unless told to reorder; a message to or from a dead incarnation is lost.
"""

from __future__ import annotations

import random
from collections import defaultdict
from collections.abc import Callable
from dataclasses import dataclass, field

import msgspec

from protocol import wire
from tests.sim.virtual_loop import VirtualLoop


@dataclass
class Faults:
    """Probabilities per message, and the delay's range in seconds."""

    delay_s: tuple[float, float] = (0.0001, 0.001)
    lose: float = 0.0
    duplicate: float = 0.0
    reorder: float = 0.0


@dataclass
class Network:
    """Messages between named ends; every delivery is written to `trace`."""

    loop: VirtualLoop
    rng: random.Random
    faults: Faults = field(default_factory=Faults)
    counts: dict[str, int] = field(default_factory=lambda: defaultdict(int))
    cut: set[frozenset[str]] = field(default_factory=set)
    _last_s: dict[tuple[str, str], float] = field(default_factory=dict)
    _held_s: dict[tuple[str, str], float] = field(default_factory=dict)
    _lose_next: set[tuple[str, str]] = field(default_factory=set)

    def lose_next(self, sender: str, receiver: str) -> None:
        """The next message that is not a Ping on this link vanishes."""
        self._lose_next.add((sender, receiver))

    def hold_back(self, sender: str, receiver: str, seconds: float) -> None:
        """What is sent on this link from now on arrives so much later, in order."""
        self._held_s[(sender, receiver)] = seconds

    def send(
        self,
        sender: str,
        receiver: str,
        message: msgspec.Struct,
        deliver: Callable[[bytes], None],
    ) -> None:
        """Deliver the message's bytes later, perhaps twice, perhaps never."""
        link = (sender, receiver)
        name = type(message).__name__
        if self._is_lost(link, name):
            self.counts["lost"] += 1
            return
        frame = wire.encode(message)
        self._schedule(link, frame, deliver)
        if self.rng.random() < self.faults.duplicate:
            self.counts["duplicated"] += 1
            self._schedule(link, frame, deliver)

    def _is_lost(self, link: tuple[str, str], name: str) -> bool:
        if frozenset(link) in self.cut:
            return True
        if link in self._lose_next and name not in ("Ping", "Welcome"):
            self._lose_next.discard(link)
            return True
        return self.rng.random() < self.faults.lose

    def _schedule(
        self, link: tuple[str, str], frame: bytes, deliver: Callable[[bytes], None]
    ) -> None:
        at_s = self.loop.time() + self.rng.uniform(*self.faults.delay_s)
        at_s += self._held_s.get(link, 0.0)
        if self.rng.random() < self.faults.reorder:
            self.counts["reordered"] += 1
        else:
            at_s = max(at_s, self._last_s.get(link, 0.0) + 1e-6)
            self._last_s[link] = at_s
        self.counts["sent"] += 1
        self.loop.call_at(at_s, deliver, frame)
