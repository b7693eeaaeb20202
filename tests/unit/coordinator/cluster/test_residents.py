"""Requests that wait for models, and models that come and go, over clusters that do at once what they are told."""

from __future__ import annotations

import asyncio
from collections import Counter
from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any, cast

import pytest

from coordinator.cluster.residency import Residency, Resident
from coordinator.cluster.residents import LOAD_LIMIT_S, Residents
from protocol.clock import ManualClock
from protocol.errors import ModelUnavailable, NoLauncher
from protocol.roles import Role

if TYPE_CHECKING:
    from collections.abc import Mapping

    from coordinator.cluster.cluster import Cluster

SHAPE = {Role.DECODE: 1}


@dataclass
class ObedientCluster:
    """`workers` come as soon as they are ordered, unless they are `late`, `refused`, or nobody starts any."""

    late: bool = False
    refused: str = ""
    has_launcher: bool = True
    workers: Counter[Role] = field(default_factory=Counter)
    loads: int = 0

    def load(self, wanted: Mapping[Role, int]) -> None:
        if not self.has_launcher:
            raise NoLauncher("none yet")
        self.loads += 1
        if not (self.late or self.refused):
            self.workers.update(wanted)

    def unload(self) -> None:
        self.workers.clear()

    def has(self, wanted: Mapping[Role, int]) -> bool:
        return all(self.workers[role] >= count for role, count in wanted.items())

    def is_empty(self) -> bool:
        return not self.workers

    def is_coming(self) -> bool:
        return bool(self.workers)

    @property
    def books(self) -> Any:
        return SimpleNamespace(pools=SimpleNamespace(trouble=lambda: self.refused))


class Rig:
    def __init__(self, *names: str, most: int = 1, keep_alive_s: float | None = 60.0) -> None:
        self.clock = ManualClock()
        self.clusters = {name: ObedientCluster() for name in names}
        residency = Residency([Resident(name, 1, keep_alive_s) for name in names], most)
        self.residents = Residents(
            residency,
            cast("Mapping[str, Cluster]", self.clusters),
            dict.fromkeys(names, SHAPE),
            self.clock,
        )

    async def settle(self) -> None:
        for _ in range(5):
            self.residents.look()
            await asyncio.sleep(0)

    def state(self, name: str) -> str:
        told: str = self.residents.view(name)["state"]
        return told


def test_who_waits_goes_on_when_the_model_is_in_and_one_load_is_enough() -> None:
    async def run() -> None:
        rig = Rig("a")
        entering = [asyncio.create_task(rig.residents.enter("a")) for _ in range(3)]
        await rig.settle()
        leaves = [await task for task in entering]
        assert rig.clusters["a"].loads == 1
        assert rig.residents.view("a")["users"] == 3
        for leave in leaves:
            leave()
        assert rig.residents.view("a")["users"] == 0
        rig.clock.advance(61.0)
        await rig.settle()
        assert rig.state("a") == "unloaded"
        assert rig.clusters["a"].is_empty()

    asyncio.run(run())


def test_a_cancelled_wait_frees_its_place() -> None:
    async def run() -> None:
        rig = Rig("a")
        rig.clusters["a"].late = True
        waiting = asyncio.create_task(rig.residents.enter("a"))
        await rig.settle()
        assert rig.residents.view("a")["waiting"] == 1
        waiting.cancel()
        await asyncio.gather(waiting, return_exceptions=True)
        assert rig.residents.view("a")["waiting"] == 0

    asyncio.run(run())


def test_one_that_is_cancelled_in_the_moment_of_its_turn_uses_nothing() -> None:
    async def run() -> None:
        rig = Rig("a")
        waiting = asyncio.create_task(rig.residents.enter("a"))
        await asyncio.sleep(0)
        rig.residents.look()
        assert rig.residents.view("a")["users"] == 1
        waiting.cancel()
        await asyncio.gather(waiting, return_exceptions=True)
        assert rig.residents.view("a")["users"] == 0

    asyncio.run(run())


@pytest.mark.parametrize("reason", ["there is no room", ""])
def test_who_waits_for_what_cannot_come_hears_why(reason: str) -> None:
    async def run() -> None:
        rig = Rig("a")
        rig.clusters["a"].refused, rig.clusters["a"].late = reason, True
        waiting = asyncio.create_task(rig.residents.enter("a"))
        await asyncio.sleep(0)
        rig.clock.advance(LOAD_LIMIT_S + 1.0)
        await rig.settle()
        with pytest.raises(ModelUnavailable, match=reason or "not ready within"):
            await waiting
        assert rig.state("a") == "failed"

    asyncio.run(run())


def test_a_load_waits_for_the_launcher() -> None:
    async def run() -> None:
        rig = Rig("a")
        rig.clusters["a"].has_launcher = False
        waiting = asyncio.create_task(rig.residents.enter("a"))
        await rig.settle()
        assert rig.state("a") == "loading"
        rig.clusters["a"].has_launcher = True
        await rig.settle()
        (await waiting)()
        assert rig.state("a") == "loaded"

    asyncio.run(run())


def test_what_another_coordinator_loaded_is_found() -> None:
    async def run() -> None:
        rig = Rig("a")
        rig.clusters["a"].workers.update(SHAPE)
        await rig.settle()
        assert rig.state("a") == "loaded"
        assert rig.clusters["a"].loads == 0

    asyncio.run(run())


def test_a_model_goes_for_another_and_comes_back() -> None:
    async def run() -> None:
        rig = Rig("a", "b")
        for name, other in (("a", "b"), ("b", "a"), ("a", "b")):
            entering = asyncio.create_task(rig.residents.enter(name))
            await rig.settle()
            (await entering)()
            assert (rig.state(name), rig.state(other)) == ("loaded", "unloaded")

    asyncio.run(run())
