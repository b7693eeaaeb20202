"""Requests that wait for models, and models that come and go, over clusters that do at once what they are told."""

from __future__ import annotations

import asyncio
import random
from typing import TYPE_CHECKING, Any

import pytest

from coordinator.cluster.residents import LOAD_LIMIT_S
from protocol.errors import ModelUnavailable, PoolConflict
from protocol.roles import Role
from tests.marks import deep
from tests.residents_rig import SHAPE, Rig, enter_and_leave

if TYPE_CHECKING:
    from collections.abc import Callable


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
        rig.clusters["a"].is_led = False
        waiting = asyncio.create_task(rig.residents.enter("a"))
        await rig.settle()
        assert rig.state("a") == "loading"
        rig.clusters["a"].is_led = True
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


def test_who_asks_before_the_launcher_has_said_what_is_in_memory_gets_no_more_than_fits() -> None:
    """As after a coordinator was killed: its clients ask again at once."""

    async def run() -> None:
        rig = Rig("a", "b", "c", most=2)
        for cluster in rig.clusters.values():
            cluster.is_led = False
        asking = [asyncio.create_task(rig.residents.enter(name)) for name in "ca"]
        await rig.settle()
        for name, cluster in rig.clusters.items():
            cluster.is_led = True
            cluster.workers.update(SHAPE if name != "c" else {})
        await asyncio.sleep(0)
        asking.append(asyncio.create_task(rig.residents.enter("c")))
        await rig.settle()
        assert all(cluster.workers[Role.DECODE] <= 1 for cluster in rig.clusters.values())
        assert sum(not cluster.is_empty() for cluster in rig.clusters.values()) == 2
        for task in asking:
            await rig.settle()
            (await task)()
        assert rig.clusters["c"].loads == 1

    asyncio.run(run())


def test_what_another_coordinator_was_unloading_takes_its_memory_until_it_is_gone() -> None:
    async def run() -> None:
        rig = Rig("a", "b")
        old = rig.clusters["a"]
        old.workers.update(SHAPE)
        old.is_leaving = old.slow = True
        waiting = asyncio.create_task(rig.residents.enter("b"))
        await rig.settle()
        assert (rig.state("a"), rig.clusters["b"].loads) == ("unloading", 0)
        old.go()
        await rig.settle()
        (await waiting)()

    asyncio.run(run())


def test_what_was_scaled_down_before_is_found_as_it_is() -> None:
    async def run() -> None:
        rig = Rig("a", shape={Role.DECODE: 2})
        rig.clusters["a"].workers.update({Role.DECODE: 1})
        await rig.settle()
        assert rig.state("a") == "loaded"

    asyncio.run(run())


def test_a_model_whose_workers_nobody_starts_again_is_loaded_by_the_next_request() -> None:
    async def run() -> None:
        rig = Rig("a")
        await enter_and_leave(rig, "a")
        rig.clusters["a"].go()
        await rig.settle()
        assert rig.state("a") == "unloaded"
        await enter_and_leave(rig, "a")
        assert rig.clusters["a"].loads == 2

    asyncio.run(run())


PAIR = {Role.DECODE: 2}


def test_pools_shrink_before_a_model_goes_and_grow_when_there_is_room_again() -> None:
    """Each model takes 1 and 1 for each of its two workers; there are 5."""

    async def run() -> None:
        rig = Rig("a", "b", most=5, shape=PAIR, needed=3, least=2)
        clusters = rig.clusters
        entering = asyncio.create_task(rig.residents.enter("a"))
        await rig.settle()
        leave = await entering
        clusters["a"].slow = True
        entering = asyncio.create_task(rig.residents.enter("b"))
        await rig.settle()
        assert clusters["a"].workers[Role.DECODE] == 1
        assert rig.state("b") == "unloaded"
        clusters["a"].leaving = 0
        await rig.settle()
        (await entering)()
        assert (rig.state("a"), rig.state("b")) == ("loaded", "loaded")
        rig.residents.unload("b")
        await rig.settle()
        assert clusters["a"].workers[Role.DECODE] == 2
        leave()

    asyncio.run(run())


def test_an_operator_scales_what_is_loaded_as_far_as_there_is_room() -> None:
    async def run() -> None:
        rig = Rig("a", "b", most=5, shape=PAIR, needed=3, least=2)
        with pytest.raises(PoolConflict, match="load it first"):
            rig.residents.scale("a", None, 1, None)
        await enter_and_leave(rig, "a")
        with pytest.raises(PoolConflict, match="--memory-budget"):
            rig.residents.scale("a", None, 5, None)
        rig.residents.scale("a", None, 4, None)
        await enter_and_leave(rig, "b")
        assert rig.clusters["a"].workers[Role.DECODE] == 1
        assert rig.clusters["b"].workers[Role.DECODE] == 2

    asyncio.run(run())


class Chances:
    """Workers late and refused, clients that leave and cancel, a launcher that goes: one of these at every step."""

    def __init__(self, seed: int) -> None:
        self.chance, self.rig = random.Random(seed), Rig("a", "b", "c", most=2, keep_alive_s=20.0)
        self.waiting: list[asyncio.Task[Any]] = []
        self.leaves: list[Callable[[], None]] = []
        mostly = [self.ask] * 3 + [self.leave] * 2
        self.kinds = [
            *mostly,
            self.cancel,
            self.slow,
            self.refuse,
            self.come,
            self.lead,
            self.unload,
        ]

    async def step(self) -> None:
        self.rig.clock.advance(self.chance.choice((0.05, 0.2, 2.0)))
        self.chance.choice(self.kinds)(self.chance.choice("abc"))
        self.rig.residents.look()
        await asyncio.sleep(0)
        clusters = self.rig.clusters.values()
        assert sum(not each.is_empty() for each in clusters) <= 2
        assert all(each.workers[Role.DECODE] <= 1 for each in clusters)
        self.sort_out()

    async def settle(self) -> None:
        """Everything that was begun comes about, and everybody leaves."""
        for each in self.rig.clusters.values():
            each.late = each.slow = False
            each.refused, each.is_led = "", True
            each.come()
            if each.is_leaving:
                each.go()
        while self.waiting or self.leaves:
            while self.leaves:
                self.leave("")
            self.rig.clock.advance(1.0)
            await self.rig.settle()
            self.sort_out()

    def sort_out(self) -> None:
        """Who got in may leave; the others heard why not, or did not want it any more."""
        done = [task for task in self.waiting if task.done() and not task.cancelled()]
        errors = [error for task in done if (error := task.exception()) is not None]
        assert all(isinstance(error, ModelUnavailable) for error in errors), errors
        self.waiting = [task for task in self.waiting if not task.done()]
        self.leaves += [task.result() for task in done if task.exception() is None]

    def ask(self, name: str) -> None:
        keep = self.chance.choice((None, None, 0.0, 5.0, -1.0))
        self.waiting.append(asyncio.create_task(self.rig.residents.enter(name, keep)))

    def leave(self, _: str) -> None:
        if self.leaves:
            self.leaves.pop(self.chance.randrange(len(self.leaves)))()

    def cancel(self, _: str) -> None:
        if self.waiting:
            self.chance.choice(self.waiting).cancel()

    def slow(self, name: str) -> None:
        cluster = self.rig.clusters[name]
        cluster.late, cluster.slow = self.chance.random() < 0.5, self.chance.random() < 0.5

    def refuse(self, name: str) -> None:
        self.rig.clusters[name].refused = self.chance.choice(("", "", "there is no room"))

    def come(self, name: str) -> None:
        """Or go, whatever it is that was ordered."""
        cluster = self.rig.clusters[name]
        cluster.come()
        if cluster.is_leaving:
            cluster.go()

    def lead(self, _: str) -> None:
        is_led = self.chance.random() < 0.7
        for each in self.rig.clusters.values():
            each.is_led = is_led

    def unload(self, name: str) -> None:
        self.rig.residents.unload(name)


@pytest.mark.parametrize("seed", [0, deep(1), deep(2), deep(3), deep(4), deep(5)])
def test_whatever_happens_to_loads_nobody_is_lost_and_no_more_is_in_than_fits(seed: int) -> None:
    async def run() -> None:
        chances = Chances(seed)
        for _ in range(2000):
            await chances.step()
        await chances.settle()
        for name in chances.rig.clusters:
            view = chances.rig.residents.view(name)
            assert (view["users"], view["waiting"]) == (0, 0)

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
