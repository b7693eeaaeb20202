"""Which models are in memory, by the rules alone: what the deciding code is compared with. Owns no line of what it checks."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import NamedTuple

from coordinator.cluster.residency import MAX_BACKOFF_S, PATIENCE_S

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
    """The reference: one model a dict, everything recomputed from scratch. `usual` is how long each model stays that nobody
    said a word of since it was loaded; `least` what it needs with its smallest pools; `has` and `will` have what it takes now and
    when workers that leave have left."""

    sizes: dict[str, int]
    budget: int
    most: int
    usual: dict[str, float | None]
    max_held: int = 512
    least: dict[str, int] = field(default_factory=dict)
    has: dict[str, int] = field(default_factory=dict)
    will: dict[str, int] = field(default_factory=dict)
    shrunk: set[str] = field(default_factory=set)
    state: dict[str, str] = field(default_factory=dict)
    users: dict[str, int] = field(default_factory=dict)
    used: dict[str, float] = field(default_factory=dict)
    since: dict[str, float] = field(default_factory=dict)
    keep: dict[str, float | None] = field(default_factory=dict)
    failures: dict[str, int] = field(default_factory=dict)
    again: dict[str, float] = field(default_factory=dict)
    sent: set[str] = field(default_factory=set)
    owed: set[int] = field(default_factory=set)
    line: list[Waiting] = field(default_factory=list)

    def __post_init__(self) -> None:
        for name in self.sizes:
            self.state[name], self.users[name], self.failures[name] = "out", 0, 0
            self.used[name] = self.since[name] = self.again[name] = 0.0
            self.keep[name] = self.usual[name]
            self.has[name] = self.will[name] = self.sizes[name]
            self.least.setdefault(name, self.sizes[name])

    def room(self, taken: dict[str, int], more: str) -> bool:
        """Whether one more fits beside models that take so much."""
        return sum(taken.values()) + self.sizes[more] <= self.budget and len(taken) < self.most

    def staying(self, *states: str) -> dict[str, int]:
        """What they will take."""
        return {n: self.will[n] for n in self.sizes if self.state[n] in states}

    # ---- what happens

    def ask(self, entry: Waiting, now: float) -> Done:
        """A request came; an empty set of a model that cannot be tried yet."""
        if self.state[entry.name] == "out" and now < self.again[entry.name]:
            return {("refused", entry.number)}
        self.line.append(entry)
        done = self.step(now)
        if entry in self.line and len(self.line) > self.max_held:
            self.line.remove(entry)
            done.add(("fail", entry.number))
        return done

    def loaded(self, name: str, now: float) -> Done:
        """It has come."""
        self.state[name], self.used[name], self.since[name] = "in", now, now
        self.failures[name], self.again[name] = 0, 0.0
        return self.step(now)

    def failed(self, name: str, now: float) -> Done:
        """It has not, and who waited for it goes."""
        self.state[name] = "out"
        self.again[name] = now + min(MAX_BACKOFF_S, 2.0 ** self.failures[name])
        self.failures[name] += 1
        done: Done = {("fail", entry.number) for entry in self.line if entry.name == name}
        self.line = [entry for entry in self.line if entry.name != name]
        return done | self.step(now)

    def gone(self, name: str, now: float) -> Done:
        """Its memory is free."""
        self.state[name] = "out"
        return self.step(now)

    def left(self, name: str, now: float) -> Done:
        """A user of it is over."""
        self.users[name] -= 1
        self.used[name] = now
        return self.step(now)

    def dropped(self, number: int, now: float) -> Done:
        """Its client went while it waited."""
        self.line = [entry for entry in self.line if entry.number != number]
        return self.step(now)

    def shrank(self, name: str, now: float) -> Done:
        """The workers that were to leave have left."""
        self.has[name] = self.will[name]
        return self.step(now)

    def send_away(self, name: str, now: float) -> Done:
        """It goes when nobody uses it of those who are here by now."""
        if self.state[name] in ("in", "loading") and name not in self.sent:
            self.sent.add(name)
            self.owed |= {entry.number for entry in self.line if entry.name == name}
        return self.step(now)

    # ---- what follows

    def may_use(self, entry: Waiting) -> bool:
        return entry.name not in self.sent or entry.number in self.owed

    def step(self, now: float) -> Done:
        """What is to be done now."""
        done: Done = set()
        for name in self.sizes:
            if self.state[name] != "in" or self.users[name]:
                continue
            keep, wanted = self.keep[name], [e for e in self.line if e.name == name]
            is_over = keep is not None and now >= self.used[name] + keep
            if not any(map(self.may_use, wanted)) and (is_over or name in self.sent):
                done |= self.unload(name)
        head_seen, shut = False, set[str]()
        for entry in list(self.line):
            name = entry.name
            if self.state[name] == "in" and self.may_use(entry):
                if name not in shut:
                    self.line.remove(entry)
                    self.users[name] += 1
                    if entry.keep_s != NO_WORD:
                        self.keep[name] = entry.keep_s
                    done.add(("admit", entry.number))
                continue
            if self.state[name] in ("in", "loading") or head_seen:
                continue
            here = {n: self.has[n] for n in self.sizes if self.state[n] != "out"}
            if self.state[name] == "out" and self.room(here, name):
                self.state[name], self.keep[name] = "loading", self.usual[name]
                self.sent.discard(name)
                self.whole(name)
                done.add(("load", name))
                continue
            head_seen = True
            done |= self.make_room(name)
            if now - entry.came >= PATIENCE_S:
                shut = self.shut_for(name)
        return done if head_seen else done | self.grow()

    def whole(self, name: str) -> None:
        self.has[name] = self.will[name] = self.sizes[name]
        self.shrunk.discard(name)

    def unload(self, name: str) -> Done:
        self.state[name] = "leaving"
        self.sent.discard(name)
        return {("unload", name)}

    def make_room(self, name: str) -> Done:
        """For the first in line: pools shrink if that is enough, or idle models go, or both."""
        stay = self.staying("in", "loading")
        if self.room(stay, name):
            return set()
        large = [n for n in stay if self.state[n] == "in" and self.will[n] > self.least[n]]
        large.sort(key=lambda n: (self.users[n] > 0, self.used[n]))
        idle = [n for n in stay if self.state[n] == "in" and self.users[n] == 0]
        idle.sort(key=lambda n: self.used[n])
        ways: list[tuple[list[str], list[str]]] = [
            (large[:count], []) for count in range(1, len(large) + 1)
        ]
        ways += [([], idle[:count]) for count in range(1, len(idle) + 1)]
        ways += [(large, idle[:count]) for count in range(1, len(idle) + 1)]
        for smaller, out in ways:
            left = {
                n: self.least[n] if n in smaller else size
                for n, size in stay.items()
                if n not in out
            }
            if self.room(left, name):
                gone = {each for n in out for each in self.unload(n)}
                return gone | {each for n in smaller if n in left for each in self.shrink(n)}
        return set()

    def shrink(self, name: str) -> Done:
        self.will[name] = self.least[name]
        self.shrunk.add(name)
        return {("shrink", name)}

    def grow(self) -> Done:
        """What is used has its workers again, where nothing else changes and nobody waits for the memory."""
        done: Done = set()
        here = [n for n in self.sizes if self.state[n] != "out"]
        if any(self.state[n] != "in" or self.has[n] != self.will[n] for n in here):
            return done
        for name in sorted(here, key=lambda n: -self.used[n]):
            others = {n: self.has[n] for n in here if n != name}
            if name in self.shrunk and self.users[name] and self.room(others, name):
                self.whole(name)
                done.add(("grow", name))
        return done

    def shut_for(self, name: str) -> set[str]:
        """Who takes nothing new until the first in line has what it needs."""
        shut = set[str]()
        stay = self.staying("in", "loading")
        order = sorted(stay, key=lambda n: (self.users[n] > 0, self.since[n]))
        while order and not self.room(stay, name):
            shut.add(order[0])
            del stay[order.pop(0)]
        return shut
