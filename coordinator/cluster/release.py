"""The revisions of one model, and how one takes another's place. Pure: starts nothing, and is told what became of it.

    start ──► PREPARING ──► LOADING ──► SERVING ◄──weigh──┐
                  └───failed───┴──► FAILED                │
    promote, rollback: the losers ──────────────► DRAINING ──nobody uses it──► UNLOADING ──gone──► OUT ──start──► LOADING

Weights say which revision new conversations go to (`coordinator.cluster.traffic_split`). One of the revisions is the stable one,
which a rollback gives everything back to; promoting another makes that the stable one.
"""

from __future__ import annotations

import enum
from dataclasses import dataclass
from typing import TYPE_CHECKING

from coordinator.cluster.traffic_split import TrafficSplit
from protocol.errors import InvalidRequest, PoolConflict

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Iterable, Mapping

    from coordinator.cluster.traffic_split import Affinity

WHOLE = 100.0
"""Weights are parts of this."""


class Standing(enum.Enum):
    """Where a revision is."""

    PREPARING = "preparing"
    LOADING = "loading"
    SERVING = "serving"
    DRAINING = "draining"
    UNLOADING = "unloading"
    OUT = "unloaded"
    FAILED = "failed"


COMING = (Standing.PREPARING, Standing.LOADING)
HERE = (Standing.SERVING, Standing.DRAINING)


@dataclass(eq=False, slots=True)
class Revision:
    """One revision; its cluster is called `model`. `num_users` are requests that were given it and have not been answered, `wanted`
    is the weight that it gets when it is here."""

    name: str
    model: str
    standing: Standing = Standing.SERVING
    num_users: int = 0
    num_requests: int = 0
    wanted: float = 0.0
    failure: str = ""

    def begin(self) -> None:
        """A request was given it."""
        self.num_users += 1
        self.num_requests += 1

    def end(self) -> None:
        """It was answered."""
        self.num_users -= 1


class Release:
    """Invariant: some revision has a weight, and whichever has one is SERVING. The first of `names` is what the model is called."""

    def __init__(
        self,
        names: Iterable[str],
        revisions: Mapping[str, tuple[str, float]],
        standings: Mapping[str, Standing] | None = None,
        stable: str | None = None,
        previous: str | None = None,
    ) -> None:
        """`revisions`: of each the model's name and its weight; the rest as a coordinator before this one left it: where they are,
        and where a rollback goes. Without such a word the heaviest is the stable one."""
        self.names = tuple(names)
        known = standings or {}
        self.revisions = {
            name: Revision(name, model, _found_again(known.get(name, Standing.SERVING)))
            for name, (model, _) in revisions.items()
        }
        weights = {name: weight for name, (_, weight) in revisions.items()}
        self._split = TrafficSplit(weights)
        self.stable = stable or max(weights, key=lambda name: weights[name])
        self.previous = previous

    @property
    def name(self) -> str:
        """What the model is called."""
        return self.names[0]

    @property
    def weights(self) -> Mapping[str, float]:
        """Of every revision that has one."""
        return {name: weight for name, weight in self._split.weights.items() if weight > 0}

    def spelled(self, revision: str) -> str:
        """`chat@v2`: what means this revision and no other."""
        return f"{self.name}@{revision}"

    def find(self, revision: str) -> Revision:
        """Raises InvalidRequest."""
        found = self.revisions.get(revision)
        if found is None:
            here = ", ".join(self.revisions)
            told = f"{self.name} has no revision {revision!r}; it has: {here}"
            raise InvalidRequest(told, "revision")
        return found

    def choose(self, asked: Affinity, ready: Collection[str]) -> Revision:
        """Which answers a request; `ready` are those that can."""
        return self.revisions[self._split.choose(asked, ready)]

    # ---- one more

    def start(self, name: str, model: str, weight: float) -> Revision:
        """It is to come, and to have that part of all new conversations then. Raises PoolConflict."""
        if coming := self._standing(*COMING):
            told = f"{self.spelled(coming[0].name)} is {coming[0].standing.value}; wait for it, or roll it back"
            raise PoolConflict(told)
        known = self.revisions.get(name)
        if known is not None and known.standing not in (Standing.OUT, Standing.FAILED):
            told = f"{self.spelled(name)} is {known.standing.value} already; give the new one another name"
            raise PoolConflict(told)
        found = Revision(name, model, Standing.PREPARING, wanted=weight)
        self.revisions[name] = found
        return found

    def prepared(self, revision: Revision) -> None:
        """Its workers are started now."""
        revision.standing = Standing.LOADING

    def came(self, revision: Revision) -> None:
        """It can serve, and gets its part of what comes; the others keep their shares of the rest."""
        revision.standing = Standing.SERVING
        others = sum(self.weights.values())
        left = (WHOLE - revision.wanted) / others
        weights = {name: weight * left for name, weight in self.weights.items()}
        self._split.weigh(weights | {revision.name: revision.wanted})

    def failed(self, revision: Revision, reason: str) -> None:
        """It does not come; the others serve as they did."""
        revision.standing, revision.failure = Standing.FAILED, reason

    # ---- weights

    def weigh(self, weights: Mapping[str, float]) -> None:
        """New conversations go by these; a revision that is not named gets none, and stays. Raises InvalidRequest, or PoolConflict
        for one that is not here."""
        for name, weight in weights.items():
            found = self.find(name)
            if weight > 0 and found.standing not in HERE:
                told = f"{self.spelled(name)} is {found.standing.value}, and can be given nothing"
                raise PoolConflict(told)
        if sum(weights.values()) <= 0:
            raise InvalidRequest("weights: give some revision more than 0", "weights")
        for name in (name for name, weight in weights.items() if weight > 0):
            self.revisions[name].standing = Standing.SERVING
        self._split.weigh(weights)

    def promote(self, name: str | None) -> Revision:
        """Everything new goes to it, and the others go when nobody uses them. Without a name it is the one that serves beside the
        stable one. Raises InvalidRequest or PoolConflict."""
        winner = self._candidate() if name is None else self.find(name)
        self.weigh({winner.name: WHOLE})
        if winner.name != self.stable:
            self.stable, self.previous = winner.name, self.stable
        self._dismiss(winner)
        return winner

    def rollback(self) -> Revision:
        """Everything goes back: from candidates, those that are still coming included, to the stable one; without candidates from the
        stable one to the one before it, while that is here. Raises PoolConflict."""
        others = self._standing(*COMING, Standing.SERVING, but=self.stable)
        name = self.stable
        if not others:
            name = self._before()
            self.stable, self.previous = name, self.stable
        self.weigh({name: WHOLE})
        self._dismiss(self.revisions[name])
        return self.revisions[name]

    def _before(self) -> str:
        if self.previous is None:
            told = f"{self.name} has only {self.stable!r}, and there is nothing to go back to"
            raise PoolConflict(told)
        before = self.revisions.get(self.previous)
        if before is None or before.standing not in HERE:
            told = (
                f"{self.spelled(self.previous)} is not in memory any more; start it again: "
                f"baton rollout start {self.name} {self.previous} MODEL"
            )
            raise PoolConflict(told)
        return before.name

    def _candidate(self) -> Revision:
        found = self._standing(Standing.SERVING, but=self.stable)
        if len(found) != 1:
            told = ", ".join(each.name for each in found) or "none serves beside the stable one"
            raise InvalidRequest(f"revision: say which to promote: {told}", "revision")
        return found[0]

    def _dismiss(self, winner: Revision) -> None:
        for other in self._standing(*COMING, Standing.SERVING):
            if other is not winner:
                other.standing = Standing.DRAINING

    def _standing(self, *standings: Standing, but: str = "") -> list[Revision]:
        return [r for r in self.revisions.values() if r.standing in standings and r.name != but]

    # ---- one less

    def leaving(self, num_live: Callable[[Revision], int]) -> list[Revision]:
        """Those that nobody uses any more: from now on they are unloaded. `num_live` says how many answers are under way."""
        found = [r for r in self._standing(Standing.DRAINING) if not r.num_users + num_live(r)]
        for revision in found:
            revision.standing = Standing.UNLOADING
        return found

    def stays(self, revision: Revision) -> None:
        """It needs no memory, and can be had again: whoever keeps models decides when."""
        revision.standing = Standing.SERVING

    def gone(self, revision: Revision) -> None:
        """Its memory is free."""
        revision.standing = Standing.OUT


def _found_again(standing: Standing) -> Standing:
    """Nobody waits any more for what was coming."""
    return Standing.DRAINING if standing in COMING else standing
