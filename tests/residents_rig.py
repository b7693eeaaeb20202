"""Models that come and go, over clusters that do what they are told at once or when a test says so. Owns no assertion."""

from __future__ import annotations

import asyncio
from collections import Counter
from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any, cast

from coordinator.cluster.residency import Residency, Resident
from coordinator.cluster.residents import Residents
from protocol.clock import ManualClock
from protocol.errors import NoLauncher
from protocol.roles import Role

if TYPE_CHECKING:
    from collections.abc import Mapping

    from coordinator.cluster.cluster import Cluster

SHAPE = {Role.DECODE: 1}


@dataclass
class ObedientCluster:
    """`workers` come as soon as they are ordered, unless they are `late`, `refused`, or nobody starts any. They go at once,
    unless they are `slow`."""

    late: bool = False
    refused: str = ""
    is_led: bool = True
    slow: bool = False
    workers: Counter[Role] = field(default_factory=Counter)
    ordered: Counter[Role] = field(default_factory=Counter)
    is_leaving: bool = False
    leaving: int = 0
    loads: int = 0
    sleeps: bool = False

    def is_asleep(self) -> bool:
        return self.sleeps

    def load(self, wanted: Mapping[Role, int]) -> None:
        if not self.is_led:
            raise NoLauncher("none yet")
        self.loads += 1
        self.is_leaving = False
        self.ordered.update(wanted)
        if not (self.late or self.refused):
            self.come()

    def come(self) -> None:
        self.workers, self.ordered = self.workers + self.ordered, Counter()

    def unload(self) -> None:
        self.is_leaving = True
        if not self.slow:
            self.go()

    def go(self) -> None:
        self.workers, self.ordered = Counter(), Counter()

    def scale(
        self, prefill: int | None = None, decode: int | None = None, store: int | None = None
    ) -> dict[str, Any]:
        if not self.is_led:
            raise NoLauncher("none yet")
        assert (prefill, store) == (None, None)
        assert decode is not None
        self.leaving += max(0, self.workers[Role.DECODE] - decode) if self.slow else 0
        self.workers[Role.DECODE] = decode
        return {"target": {"decode": decode}}

    @property
    def scaler(self) -> Any:
        return self

    def num_here(self) -> int:
        return sum(self.target().values()) + self.leaving

    def has(self, wanted: Mapping[Role, int]) -> bool:
        return all(self.workers[role] >= count for role, count in wanted.items())

    def has_launcher(self) -> bool:
        return self.is_led

    def target(self) -> Mapping[Role, int]:
        return self.workers + self.ordered

    def is_empty(self) -> bool:
        return not self.target()

    def is_coming(self) -> bool:
        return bool(self.target()) and not self.is_leaving

    @property
    def books(self) -> Any:
        return SimpleNamespace(pools=SimpleNamespace(trouble=lambda: self.refused))


class Rig:
    def __init__(
        self,
        *names: str,
        most: int = 1,
        keep_alive_s: float | None = 60.0,
        shape: Mapping[Role, int] = SHAPE,
        needed: int = 1,
        least: int = 0,
        autoload: bool = True,
    ) -> None:
        self.clock = ManualClock()
        self.clusters = {name: ObedientCluster() for name in names}
        models = [Resident(name, needed, keep_alive_s, least_bytes=least) for name in names]
        residency = Residency(models, most, autoload=autoload)
        self.residents = Residents(
            residency,
            cast("Mapping[str, Cluster]", self.clusters),
            dict.fromkeys(names, shape),
            self.clock,
            dict.fromkeys(names, 1) if least else None,
        )

    async def settle(self) -> None:
        for _ in range(5):
            self.residents.look()
            await asyncio.sleep(0)

    def state(self, name: str) -> str:
        told: str = self.residents.view(name)["state"]
        return told


async def enter_and_leave(rig: Rig, name: str) -> None:
    """One request."""
    entering = asyncio.create_task(rig.residents.enter(name))
    await rig.settle()
    (await entering)()
