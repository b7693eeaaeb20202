"""What llama.cpp's router is tested for (tools/server/tests/unit/test_router.py), restated: who waits, who goes, and who is left alone."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

import pytest

from protocol.errors import InvalidRequest
from tests.residents_rig import Rig, enter_and_leave

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine

A, B, C = NAMES = ("a", "b", "c")


def played(scenario: Callable[[], Coroutine[None, None, None]]) -> None:
    asyncio.run(scenario())


async def filled(most: int, *names: str) -> Rig:
    """These were used, in that order."""
    rig = Rig(*NAMES, most=most)
    for name in names:
        await enter_and_leave(rig, name)
        rig.clock.advance(1.0)
    return rig


async def asking(rig: Rig, name: str) -> asyncio.Task[Callable[[], None]]:
    task = asyncio.create_task(rig.residents.enter(name))
    await rig.settle()
    return task


def test_at_the_maximum_the_least_recently_used_goes() -> None:
    async def scenario() -> None:
        rig = await filled(2, A, B, C)
        assert [rig.state(name) for name in NAMES] == ["unloaded", "loaded", "loaded"]

    played(scenario)


def test_a_queued_request_does_not_evict_a_busy_model() -> None:
    async def scenario() -> None:
        rig = await filled(1, A)
        leave = await (await asking(rig, A))
        queued = await asking(rig, B)
        assert (rig.state(A), queued.done()) == ("loaded", False)
        leave()
        await rig.settle()
        (await queued)()
        assert (rig.state(A), rig.state(B)) == ("unloaded", "loaded")

    played(scenario)


def test_requests_for_the_same_model_cost_one_other_its_place() -> None:
    async def scenario() -> None:
        rig = await filled(2, A, B)
        leave = await (await asking(rig, A))
        waiting = [await asking(rig, C) for _ in range(3)]
        for each in waiting:
            (await each)()
        leave()
        await rig.settle()
        assert [rig.state(name) for name in NAMES] == ["loaded", "unloaded", "loaded"]
        assert rig.clusters[C].loads == 1

    played(scenario)


def test_a_client_that_leaves_the_queue_costs_no_model_its_place() -> None:
    async def scenario() -> None:
        rig = await filled(1, A)
        leave = await (await asking(rig, A))
        queued = await asking(rig, B)
        queued.cancel()
        await rig.settle()
        leave()
        await rig.settle()
        assert (rig.state(A), rig.state(B)) == ("loaded", "unloaded")
        assert rig.clusters[B].loads == 0

    played(scenario)


def test_the_queue_is_served_in_the_order_of_arrival() -> None:
    async def scenario() -> None:
        rig = await filled(1, A)
        leave = await (await asking(rig, A))
        first, second = await asking(rig, B), await asking(rig, C)
        leave()
        await rig.settle()
        assert (first.done(), second.done()) == (True, False)
        (await first)()
        await rig.settle()
        (await second)()

    played(scenario)


def test_a_model_that_was_just_loaded_serves_who_waited_before_it_goes() -> None:
    async def scenario() -> None:
        rig = await filled(1)
        rig.clusters[A].late = True
        first, second = await asking(rig, A), await asking(rig, B)
        rig.clusters[A].come()
        await rig.settle()
        assert (first.done(), second.done()) == (True, False)
        (await first)()
        await rig.settle()
        (await second)()

    played(scenario)


def test_nothing_is_asked_of_a_model_that_stops() -> None:
    async def scenario() -> None:
        rig = await filled(1, A)
        rig.clusters[A].slow = True
        rig.residents.unload(A)
        queued = await asking(rig, A)
        assert (rig.state(A), queued.done()) == ("unloading", False)
        rig.clusters[A].go()
        await rig.settle()
        (await queued)()
        assert rig.clusters[A].loads == 2

    played(scenario)


def test_two_who_want_the_place_of_the_same_idle_model_are_both_served() -> None:
    async def scenario() -> None:
        rig = await filled(1, A)
        first = asyncio.create_task(rig.residents.enter(B))
        second = asyncio.create_task(rig.residents.enter(C))
        await rig.settle()
        (await first)()
        await rig.settle()
        (await second)()
        assert [rig.clusters[name].loads for name in NAMES] == [1, 1, 1]

    played(scenario)


def test_without_autoload_only_an_order_loads_a_model() -> None:
    async def scenario() -> None:
        rig = Rig(*NAMES, autoload=False)
        with pytest.raises(InvalidRequest, match="load it first") as caught:
            await rig.residents.enter(A)
        assert (caught.value.param, rig.clusters[A].loads) == ("model", 0)
        rig.clusters[A].late = True
        order = asyncio.create_task(rig.residents.load(A))
        await rig.settle()
        waiting = await asking(rig, A)
        rig.clusters[A].come()
        await rig.settle()
        await order
        (await waiting)()
        await enter_and_leave(rig, A)
        rig.residents.unload(A)
        await rig.settle()
        with pytest.raises(InvalidRequest):
            await rig.residents.enter(A)

    played(scenario)
