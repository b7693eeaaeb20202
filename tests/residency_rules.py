"""Which models are in memory, by the rules alone: what the deciding code is compared with. Owns no line of what it checks."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import NamedTuple

from coordinator.cluster.residency import PATIENCE_S

NO_WORD = -1.0
"""A client that says nothing of how long its model stays."""
Done = set[tuple[str, object]]


class Waiting(NamedTuple):
    """A request in the line; `keep_s` is its client's word, None for ever."""

    number: int
    name: str
    came: float
    keep_s: float | None = NO_WORD


@dataclass
class Rules:
    """The reference: one model a dict, everything recomputed from scratch."""

    sizes: dict[str, int]
    budget: int
    most: int
    keep: dict[str, float | None]
    state: dict[str, str] = field(default_factory=dict)
    users: dict[str, int] = field(default_factory=dict)
    used: dict[str, float] = field(default_factory=dict)
    since: dict[str, float] = field(default_factory=dict)
    line: list[Waiting] = field(default_factory=list)

    def __post_init__(self) -> None:
        for name in self.sizes:
            self.state[name], self.users[name] = "out", 0
            self.used[name] = self.since[name] = 0.0

    def room(self, names: list[str], more: str) -> bool:
        return (
            sum(self.sizes[n] for n in names) + self.sizes[more] <= self.budget
            and len(names) < self.most
        )

    def loaded(self, name: str, now: float) -> None:
        """It has come."""
        self.state[name], self.used[name], self.since[name] = "in", now, now

    def left(self, name: str, now: float) -> None:
        """A user of it is over."""
        self.users[name] -= 1
        self.used[name] = now

    def step(self, now: float) -> Done:
        """What is to be done now."""
        done: Done = set()
        waiting = {entry.name for entry in self.line}
        for name in self.sizes:
            keep = self.keep[name]
            idle = self.state[name] == "in" and self.users[name] == 0
            if idle and name not in waiting and keep is not None and now >= self.used[name] + keep:
                self.state[name] = "leaving"
                done.add(("unload", name))
        head_seen, shut = False, set[str]()
        for entry in list(self.line):
            name = entry.name
            if self.state[name] == "in":
                if name not in shut:
                    self.line.remove(entry)
                    self.users[name] += 1
                    if entry.keep_s != NO_WORD:
                        self.keep[name] = entry.keep_s
                    done.add(("admit", entry.number))
                continue
            if self.state[name] == "loading" or head_seen:
                continue
            here = [n for n in self.sizes if self.state[n] != "out"]
            if self.state[name] == "out" and self.room(here, name):
                self.state[name] = "loading"
                done.add(("load", name))
                continue
            head_seen = True
            done |= self.make_room(name)
            if now - entry.came >= PATIENCE_S:
                shut = self.shut_for(name)
        return done

    def make_room(self, name: str) -> Done:
        """Whom to send away for the first in line."""
        done: Done = set()
        stay = [n for n in self.sizes if self.state[n] in ("in", "loading")]
        idle = sorted(
            (n for n in stay if self.state[n] == "in" and self.users[n] == 0),
            key=lambda n: self.used[n],
        )
        for count in range(len(idle) + 1):
            if self.room([n for n in stay if n not in idle[:count]], name):
                for victim in idle[:count]:
                    self.state[victim] = "leaving"
                    done.add(("unload", victim))
                break
        return done

    def shut_for(self, name: str) -> set[str]:
        """Who takes nothing new until the first in line has what it needs."""
        shut = set[str]()
        stay = [n for n in self.sizes if self.state[n] in ("in", "loading")]
        order = sorted(stay, key=lambda n: (self.users[n] > 0, self.since[n]))
        while order and not self.room(stay, name):
            shut.add(order[0])
            stay.remove(order.pop(0))
        return shut
