"""Whose turn it is among requests that wait. Owns the order and each tenant's deficit; pure.

    replays ─► tenants in deficit round robin ─► a tenant's requests by (priority, due)

Deficit round robin (M. Shreedhar and G. Varghese, SIGCOMM 1995) over the work of prompts: whoever asks ten times as much gets
no more than the others while they ask for anything; a `weight` is how much more another gets all the same, that of the request
which is next. `priority` is vLLM's: lower goes first, among one tenant's requests.
When a prompt is due follows from what it costs: STRETCH times as long after it came. So nobody waits behind a long one,
and that one is overtaken for a bounded time only.
"""

from __future__ import annotations

import itertools
import math
from bisect import bisect_left, bisect_right, insort
from collections import OrderedDict, deque
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Iterator

    from coordinator.cluster.lifecycle import RequestLife

STRETCH = 4.0
"""A prompt that takes a second of a worker should have its first token within so many seconds."""
DEADLINE_SLACK = 2.0
"""A prompt is due so many times its own cost before its deadline, at the latest."""
QUANTUM_TOKENS = 512
"""Work that a tenant of weight 1 may have computed in its turn, beside what it was short of."""
LEAST_WEIGHT, MOST_WEIGHT = 0.01, 100.0
"""Beyond, a tenant would hardly ever have a turn."""
LEAST_CHARGED_TOKENS = 32
"""A request costs its tenant no less, though its whole prompt be cached: its answer takes a place all the same."""


def when_due(life: RequestLife, own_s: float, target_s: float) -> float:
    """When a prompt that takes `own_s` should have its first token: early enough for its deadline, and for the target if
    they can be held. Where not all can be in time there is no target: most are if short prompts go first; and what fills
    most of its deadline alone goes before nobody on that account."""
    due_s = life.arrival_s + STRETCH * own_s
    latest_s = life.deadline_s - DEADLINE_SLACK * own_s
    if latest_s > life.arrival_s:
        due_s = min(due_s, latest_s)
    if own_s <= target_s:
        due_s = min(due_s, life.arrival_s + target_s - own_s)
    return due_s


def rank(life: RequestLife) -> tuple[int, float]:
    """The earliest goes first."""
    return life.generation.priority, life.due_s


def _charge(life: RequestLife) -> int:
    return max(life.work_tokens, LEAST_CHARGED_TOKENS)


def _weight(life: RequestLife) -> float:
    return min(max(life.generation.weight, LEAST_WEIGHT), MOST_WEIGHT)


class Before(NamedTuple):
    """What goes before a request: so many requests, and their work."""

    requests: int = 0
    work_tokens: int = 0


class _Place(NamedTuple):
    priority: int
    due_s: float
    number: int
    life: RequestLife


@dataclass(slots=True)
class _Tenant:
    """Its requests in order, and the work that it may still have done before the next round."""

    places: list[_Place] = field(default_factory=list)
    deficit: float = 0.0

    @property
    def quantum(self) -> float:
        """Work of one turn."""
        return QUANTUM_TOKENS * _weight(self.places[0].life)

    @property
    def rounds(self) -> int:
        """Until its first request's turn."""
        short = _charge(self.places[0].life) - self.deficit
        return max(math.ceil(short / self.quantum), 0)


class Turns:
    """Every request is here once; a tenant is here while one of its requests is. Thousands may wait, so none is looked for
    among the others."""

    def __init__(self) -> None:
        self._placed: dict[str, _Place] = {}
        self._replays: deque[RequestLife] = deque()
        self._tenants: OrderedDict[str, _Tenant] = OrderedDict()
        self._numbers = itertools.count()

    def __len__(self) -> int:
        return len(self._replays) + len(self._placed)

    def __iter__(self) -> Iterator[RequestLife]:
        """All, replays first; tenants one after the other."""
        yield from self._replays
        for tenant in self._tenants.values():
            yield from (place.life for place in tenant.places)

    def add(self, life: RequestLife) -> None:
        """In its order."""
        tenant = self._tenants.setdefault(life.generation.tenant, _Tenant())
        place = self._placed[life.request_id] = _Place(*rank(life), next(self._numbers), life)
        insort(tenant.places, place)

    def put_first(self, life: RequestLife) -> None:
        """What is replayed has waited longest."""
        self._replays.appendleft(life)

    def candidates(self) -> list[RequestLife]:
        """Whose turn it is, and of each other tenant who would be next."""
        if self._replays:
            return [self._replays[0]]
        tenants = sorted(self._tenants.values(), key=lambda tenant: tenant.rounds)
        return [tenant.places[0].life for tenant in tenants]

    def take(self, life: RequestLife) -> None:
        """It is sent now: its tenant pays, and whoever was passed over until its round is better off."""
        name = life.generation.tenant
        tenant = self._tenants.get(name)
        if tenant is not None and tenant.places[0].life is life:
            rounds = tenant.rounds
            for other in self._tenants.values():
                most = _charge(other.places[0].life) + other.quantum
                other.deficit = min(other.deficit + rounds * other.quantum, most)
            tenant.deficit -= _charge(life)
        self.remove(life)
        if name in self._tenants and self._tenants[name].rounds:
            self._tenants.move_to_end(name)

    def remove(self, life: RequestLife) -> None:
        """It waits no more; harmless when it does not wait."""
        place = self._placed.pop(life.request_id, None)
        if place is None:
            if life in self._replays:
                self._replays.remove(life)
            return
        name = life.generation.tenant
        places = self._tenants[name].places
        del places[bisect_left(places, place)]
        if not places:
            del self._tenants[name]

    def waiting_of(self, tenant: str) -> int:
        """How many of a tenant's requests wait."""
        known = self._tenants.get(tenant)
        return 0 if known is None else len(known.places)

    @property
    def tenants(self) -> set[str]:
        """Who waits."""
        return set(self._tenants)

    def before(self, life: RequestLife) -> Before:
        """What would go before a request that is not here yet: all that is replayed, its tenant's that rank first, and of
        every other tenant's as much as the own comes to, by their weights."""
        name = life.generation.tenant
        own = self._tenants.get(name, _Tenant())
        end = bisect_right(own.places, (*rank(life), math.inf))
        first = [place.life for place in own.places[:end]]
        mine = Before(len(first) + 1, sum(one.work_tokens for one in first) + life.work_tokens)
        requests = len(self._replays) + len(first)
        work = sum(one.work_tokens for one in self._replays) + mine.work_tokens - life.work_tokens
        for other_name, other in self._tenants.items():
            if other_name != name:
                theirs = sum(place.life.work_tokens for place in other.places)
                share = _weight(other.places[0].life) / _weight(life)
                requests += min(len(other.places), math.ceil(mine.requests * share))
                work += min(theirs, math.ceil(mine.work_tokens * share + other.quantum))
        return Before(requests, work)
