"""What is known of each deployment, and which of a group is next. Owns weights, limits a minute, and cooling; no IO, no clock.

    lowest `order` with room ─► of these, by weight: the one that is furthest behind its share (or the least busy)

A share is exact, not random: of 10,000 requests each gets its part to within one. A deployment cools after more failures
within a minute than are allowed, or at once for as long as it says itself (429 with Retry-After) or where its key is refused.
The only deployment of a group cools only when it asked for it: nothing is won by refusing what it might answer.
"""

from __future__ import annotations

import math
from collections import deque
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from coordinator.planning.throughput import FinishRate
from coordinator.planning.windows import WINDOW_S, Entry, Window
from coordinator.upstreams.settings import Strategy

if TYPE_CHECKING:
    from collections.abc import Collection, Sequence

    from coordinator.upstreams.settings import DeploymentSettings, RouterSettings

MAX_COOLDOWN_S = 3600.0


@dataclass(slots=True)
class Spent:
    """What one request takes of a minute; its tokens are a guess until it is over."""

    tokens: Entry | None


class Deployment:
    """One place, and how it does."""

    def __init__(self, settings: DeploymentSettings, *, is_lone: bool) -> None:
        self.settings = settings
        self.num_running = 0
        self.num_requests = 0
        self.num_failures = 0
        self.last_failure = ""
        self.credit = 0.0
        self.cooling_until_s = -math.inf
        self._is_lone = is_lone
        self._failures: deque[float] = deque()
        self._requests = None if settings.rpm is None else Window(settings.rpm)
        self._tokens = None if settings.tpm is None else Window(settings.tpm)
        self._finish_rate = FinishRate()

    @property
    def deployment_id(self) -> str:
        """Its name."""
        return self.settings.deployment_id

    def is_cooling(self, now_s: float) -> bool:
        """Whether it is left alone for now."""
        return now_s < self.cooling_until_s

    def free_at_s(self, tokens: int, now_s: float) -> float:
        """When a request of so many tokens may go there: `now_s` for at once, infinity for never."""
        at_s = max(now_s, self.cooling_until_s)
        for window, amount in self._asked_of(tokens):
            at_s = max(at_s, now_s + window.wait_s(amount, now_s))
        return max(at_s, now_s + self._finish_rate.wait_s(now_s)) if self._is_full() else at_s

    def promise_s(self, tokens: int, now_s: float) -> float:
        """The same for one who is told to come back then, after all others who were and are not due yet."""
        at_s = max(now_s, self.cooling_until_s)
        for window, amount in self._asked_of(tokens):
            if window.wait_s(amount, now_s):
                at_s = max(at_s, now_s + window.promise_s(amount, now_s))
        return max(at_s, now_s + self._finish_rate.promise(now_s)) if self._is_full() else at_s

    def _asked_of(self, tokens: int) -> list[tuple[Window, int]]:
        asked = ((self._requests, 1), (self._tokens, tokens))
        return [(window, amount) for window, amount in asked if window is not None]

    def _is_full(self) -> bool:
        most = self.settings.max_parallel_requests
        return most is not None and self.num_running >= most

    def _forget(self, now_s: float) -> None:
        while self._failures and self._failures[0] <= now_s - WINDOW_S:
            self._failures.popleft()

    def begin(self, tokens: int, now_s: float) -> Spent:
        """A request goes there."""
        self.num_running += 1
        self.num_requests += 1
        self._finish_rate.begun(now_s)
        if self._requests is not None:
            self._requests.add(1, now_s)
        return Spent(None if self._tokens is None else self._tokens.add(tokens, now_s))

    def succeeded(self, spent: Spent, tokens: int, now_s: float) -> None:
        """It was answered with so many tokens in all."""
        self.left(now_s)
        if self._tokens is not None and spent.tokens is not None:
            self._tokens.change(spent.tokens, tokens)

    def left(self, now_s: float) -> None:
        """Its client left: that says nothing of the place, but that there is room for another."""
        self.num_running -= 1
        self._finish_rate.finished(now_s)
        if not self.num_running:
            self._finish_rate.idle(now_s)

    def failed(
        self, why: str, now_s: float, rules: RouterSettings, cool_s: float | None = None
    ) -> None:
        """It was not; `cool_s` is how long the place wants to be left alone, if it said so."""
        self.left(now_s)
        self.num_failures += 1
        self.last_failure = why
        self._forget(now_s)
        self._failures.append(now_s)
        if cool_s is not None:
            self._cool(now_s, cool_s)
        elif len(self._failures) > rules.allowed_fails and not self._is_lone:
            self._cool(now_s, rules.cooldown_s)

    def _cool(self, now_s: float, seconds: float) -> None:
        self.cooling_until_s = max(self.cooling_until_s, now_s + min(seconds, MAX_COOLDOWN_S))

    def view(self, now_s: float) -> dict[str, Any]:
        """For operators; no key is in it."""
        settings = self.settings
        return {
            "id": settings.deployment_id,
            "group": settings.group,
            "provider": settings.provider.value,
            "model": settings.model,
            "api_base": settings.api_base,
            "state": "cooling" if self.is_cooling(now_s) else "up",
            "cooling_s": round(max(0.0, self.cooling_until_s - now_s), 3),
            "running": self.num_running,
            "requests": self.num_requests,
            "failures": self.num_failures,
            "last_failure": self.last_failure,
        }


@dataclass(slots=True)
class Group:
    """The deployments that answer to one name."""

    name: str
    deployments: Sequence[Deployment]
    strategy: Strategy = Strategy.BY_WEIGHT
    _unit: str = field(init=False)

    def __post_init__(self) -> None:
        """Shares are weights if any is given, else requests or tokens a minute, else equal."""
        units = ("weight", "rpm", "tpm")
        every = [deployment.settings for deployment in self.deployments]
        self._unit = next(
            (unit for unit in units if any(getattr(one, unit) is not None for one in every)), ""
        )

    def share(self, deployment: Deployment) -> float:
        """How much of the group's requests it should get, beside the others'."""
        if not self._unit:
            return 1.0
        value: float | None = getattr(deployment.settings, self._unit)
        return 0.0 if value is None else float(value)

    def pick(self, tried: Collection[str], tokens: int, now_s: float) -> Deployment | None:
        """The next for a request that was at `tried`, one of which is gone back to only when there is no other; None
        where nobody has room."""
        free = [one for one in self.deployments if one.free_at_s(tokens, now_s) <= now_s]
        candidates = [one for one in free if one.deployment_id not in tried] or free
        if not candidates:
            return None
        lowest = min(one.settings.order for one in candidates)
        return self._of([one for one in candidates if one.settings.order == lowest])

    def _of(self, candidates: Sequence[Deployment]) -> Deployment:
        if self.strategy is Strategy.LEAST_BUSY:
            return min(candidates, key=lambda one: (one.num_running, one.num_requests))
        shares = [self.share(one) for one in candidates]
        if not sum(shares):
            shares = [1.0] * len(candidates)
        for one, share in zip(candidates, shares, strict=True):
            one.credit += share
        picked = max(candidates, key=lambda one: one.credit)
        picked.credit -= sum(shares)
        return picked

    def free_at_s(self, tokens: int, now_s: float) -> float:
        """When one of them has room."""
        return min(one.free_at_s(tokens, now_s) for one in self.deployments)

    def soonest(self, tokens: int, now_s: float) -> Deployment:
        """The one that has room first."""
        return min(self.deployments, key=lambda one: one.free_at_s(tokens, now_s))


def groups_of(settings: RouterSettings) -> dict[str, Group]:
    """Every group of a file."""
    members: dict[str, list[DeploymentSettings]] = {}
    for one in settings.deployments:
        members.setdefault(one.group, []).append(one)
    return {
        name: Group(
            name,
            [Deployment(one, is_lone=len(every) == 1) for one in every],
            settings.strategy,
        )
        for name, every in members.items()
    }
