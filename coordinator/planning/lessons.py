"""What reality taught about sizes that the models recommend. Owns blame, lessons, and what takes a lesson back; pure.

A role is blamed when it misses its goal by more than chance allows although the models are content, and, for first
tokens, when waiting explains the misses: a prompt that is late on an idle worker is late with any number of workers.
Then no worker is planned to carry as much for a while. A lesson is a guess at the cause: once the workers that it asked
for have served for a while, the misses must have become fewer, or it is taken back and that role is not blamed again.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from protocol.roles import Role

if TYPE_CHECKING:
    from coordinator.planning.observations import Held, Observations

LEARNED_S = 1800.0
MAX_LEARNED_S = 4 * 3600.0
MIN_SAMPLES = 20
"""Requests that were judged before anything is blamed."""
MISS_TICKS = 5
CHANCE = 1e-3
"""How likely chance alone may be to cause what is blamed: a look every two seconds is some sixty independent ones an hour."""
HELPED = 0.7
"""A lesson helped when no more than this share of the misses is left."""


def binomial_tail(count: int, chance: float, least: int) -> float:
    """P(at least `least` of `count`), each with probability `chance`."""
    if least <= 0:
        return 1.0
    if chance <= 0.0 or least > count:
        return 0.0
    if chance >= 1.0:
        return 1.0
    below = 0.0
    log_odds, log_none = math.log(chance / (1.0 - chance)), count * math.log1p(-chance)
    choose = 0.0
    for hits in range(least):
        below += math.exp(choose + hits * log_odds + log_none)
        choose += math.log((count - hits) / (hits + 1))
    return max(1.0 - below, 0.0)


def is_beyond_chance(held: Held, allowed: float) -> bool:
    """Whether so many misses that workers could have prevented are hardly chance, where `allowed` is their share."""
    if held.count < MIN_SAMPLES:
        return False
    count = round(held.count)
    return binomial_tail(count, allowed, round(held.blamable * count)) < CHANCE


@dataclass(slots=True)
class Lesson:
    """No worker is planned to carry `load_per_worker` again before `until_s`. `misses` is the share that taught it,
    and `workers` how many there were."""

    load_per_worker: float
    until_s: float
    hold_s: float
    misses: float
    workers: int


@dataclass(slots=True)
class Lessons:
    """One for each role at most, and the roles that more workers do not help."""

    _known: dict[Role, Lesson] = field(default_factory=dict)
    _misses: dict[Role, int] = field(default_factory=lambda: dict.fromkeys(Role, 0))
    _spared_until_s: dict[Role, float] = field(
        default_factory=lambda: dict.fromkeys(Role, float("-inf"))
    )

    def of(self, role: Role, now_s: float) -> Lesson | None:
        """What is believed now."""
        lesson = self._known.get(role)
        return lesson if lesson is not None and now_s < lesson.until_s else None

    def judge(
        self, seen: Observations, role: Role, load: float | None, blamed: Held | None
    ) -> None:
        """One more look: `blamed` is what the role is to blame for now beyond chance, None when nothing."""
        workers = len(seen.of(role, "ready"))
        if blamed is None or load is None or not workers:
            self._misses[role] = 0
            return
        self._misses[role] += 1
        if self._misses[role] < MISS_TICKS or seen.now_s < self._spared_until_s[role]:
            return
        self._misses[role] = 0
        known = self.of(role, seen.now_s)
        if known is not None and workers > known.workers and not _helped(known, blamed):
            self._take_back(role, seen.now_s)
        else:
            self._remember(role, seen.now_s, load, blamed, workers)

    def _remember(self, role: Role, now_s: float, load: float, blamed: Held, workers: int) -> None:
        known = self._known.get(role)
        hold_s = min(2 * known.hold_s, MAX_LEARNED_S) if known else LEARNED_S
        self._known[role] = Lesson(load / workers, now_s + hold_s, hold_s, blamed.blamable, workers)

    def _take_back(self, role: Role, now_s: float) -> None:
        del self._known[role]
        self._spared_until_s[role] = now_s + MAX_LEARNED_S


def _helped(lesson: Lesson, now: Held) -> bool:
    return now.blamable <= HELPED * lesson.misses
