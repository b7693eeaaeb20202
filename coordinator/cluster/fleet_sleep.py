"""Sleep as operators ask for it: of one model, or of all that have workers. Owns that choice; how one sleeps is its Sleeper's."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

from protocol.errors import PoolConflict

if TYPE_CHECKING:
    from collections.abc import Coroutine, Iterable

    from coordinator.cluster.fleet import Fleet, Member
    from protocol.sleeping import Part


class FleetSleep:
    """Satisfies service_api.SleepControl."""

    def __init__(self, fleet: Fleet) -> None:
        self._fleet = fleet

    async def sleep(self, model: str | None, level: int) -> None:
        """See SleepControl."""
        members = self._meant(model)
        if not members:
            raise PoolConflict("no model is in memory, so that nothing can be given back")
        await _all(member.cluster.sleeper.sleep(level) for member in members)

    async def wake(self, model: str | None, parts: Iterable[Part]) -> None:
        """See SleepControl."""
        wanted = frozenset(parts)
        await _all(member.cluster.sleeper.wake(wanted) for member in self._meant(model))

    def is_asleep(self, model: str | None) -> bool:
        """See SleepControl."""
        levels = [member.cluster.sleeper.level for member in self._meant(model)]
        return bool(levels) and all(levels)

    def _meant(self, model: str | None) -> list[Member]:
        if model is not None:
            return [self._fleet.member(model)]
        return [member for member in self._fleet.members if not member.cluster.is_empty()]


async def _all(calls: Iterable[Coroutine[None, None, None]]) -> None:
    """Each to its end; then the first failure, if there is one."""
    for result in await asyncio.gather(*calls, return_exceptions=True):
        if isinstance(result, BaseException):
            raise result
