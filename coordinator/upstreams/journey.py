"""The way of one request through groups and deployments. Owns when it is tried again, where, and when it is given up; no IO.

    group: 1 + num_retries tries ─► its fallbacks, in order ─► theirs …, at most max_fallbacks groups in all
    a prompt that is too long for a place ─► the group's context_window_fallbacks; its fallbacks where no group has such

A group that the key may not use is passed over. What was tried and how it ended stays in `steps`.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import Enum
from typing import TYPE_CHECKING

from coordinator.upstreams.settings import ANY_GROUP

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from coordinator.upstreams.deployments import Deployment, Group
    from coordinator.upstreams.settings import RouterSettings


class Trouble(Enum):
    """What a failure says of what to try next."""

    PLACE = "place"
    """Somewhere else may do better."""
    CONTEXT = "context"
    """The prompt is too long for this place."""
    REQUEST = "request"
    """Nobody would take it."""


@dataclass(slots=True)
class Journey:
    """Made for each request; `next_stop`, then `failed`, until one answers or there is nothing more."""

    settings: RouterSettings
    groups: Mapping[str, Group]
    may_use: Callable[[str], bool]
    tokens: int
    _waiting: list[str] = field(default_factory=list)
    _seen: list[str] = field(default_factory=list)
    _tried: list[str] = field(default_factory=list)
    _num_tries: int = 0
    steps: list[str] = field(default_factory=list)

    @classmethod
    def begin(
        cls,
        settings: RouterSettings,
        groups: Mapping[str, Group],
        name: str,
        may_use: Callable[[str], bool],
        tokens: int,
    ) -> Journey:
        """At the group of that name."""
        return cls(settings, groups, may_use, tokens, [name], [name])

    @property
    def group(self) -> Group:
        """Where it is."""
        return self.groups[self._waiting[0]]

    def next_stop(self, now_s: float) -> Deployment | None:
        """The deployment to try now, None where no group has any left."""
        while self._waiting:
            if self._num_tries <= self.settings.num_retries:
                stop = self.group.pick(self._tried, self.tokens, now_s)
                if stop is not None:
                    self._num_tries += 1
                    self._tried.append(stop.deployment_id)
                    self.steps.append(stop.deployment_id)
                    return stop
            self._leave(self.settings.fallbacks)
        return None

    def failed(self, trouble: Trouble) -> bool:
        """The stop did not answer; whether it is worth while to go on."""
        if trouble is Trouble.REQUEST:
            self._waiting.clear()
        elif trouble is Trouble.CONTEXT:
            self._leave(self.settings.context_fallbacks or self.settings.fallbacks)
        return bool(self._waiting)

    def _leave(self, lists: Mapping[str, tuple[str, ...]]) -> None:
        """For the groups that come after this one, which are tried before those that waited already."""
        name = self._waiting.pop(0)
        self._num_tries = 0
        self._tried.clear()
        others = lists.get(name, lists.get(ANY_GROUP, ()))
        new = [one for one in others if one not in self._seen and self.may_use(one)]
        room = self.settings.max_fallbacks + 1 - len(self._seen)
        self._seen += new[:room]
        self._waiting[:0] = new[:room]

    def promise_s(self, now_s: float) -> float:
        """When one of the groups that were seen has room for this request, after those who were told so before."""
        places = [self.groups[name].soonest(self.tokens, now_s) for name in self._seen]
        soonest = min(places, key=lambda place: place.free_at_s(self.tokens, now_s))
        return soonest.promise_s(self.tokens, now_s)
