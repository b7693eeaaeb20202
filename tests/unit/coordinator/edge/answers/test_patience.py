"""Clients that take nothing are given up in time, others never; and a pause of the process itself is not theirs."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine

import pytest

from coordinator.edge.answers.responses import PAUSE_S, Patience, StalledClient
from tests.sim.virtual_loop import VirtualLoop

STALL_S = 0.5


def over(answer: Callable[[Patience], Coroutine[None, None, None]]) -> float:
    """How long the answer took, on virtual time; StalledClient when its client was given up."""
    patience = Patience(STALL_S)
    with asyncio.Runner(loop_factory=VirtualLoop) as runner:
        begun_s = runner.get_loop().time()

        async def work() -> float:
            await patience.over(lambda: answer(patience))
            return asyncio.get_running_loop().time() - begun_s

        return runner.run(work())


class Untaken:
    """A write that nobody takes, and how long it was waited for."""

    async def __call__(self) -> None:
        loop = asyncio.get_running_loop()
        begun_s = loop.time()
        try:
            await asyncio.Event().wait()
        finally:
            self.waited_s = loop.time() - begun_s


def test_a_write_that_is_never_taken_ends_the_answer() -> None:
    untaken = Untaken()
    with pytest.raises(StalledClient):
        over(lambda patience: patience.write(untaken()))
    assert untaken.waited_s == pytest.approx(STALL_S)


def test_a_late_write_has_its_whole_time() -> None:
    """The timer was set long before the write began."""
    untaken = Untaken()

    async def answer(patience: Patience) -> None:
        await asyncio.sleep(1.5 * STALL_S)
        await patience.write(untaken())

    with pytest.raises(StalledClient):
        over(answer)
    assert untaken.waited_s == pytest.approx(STALL_S)


def test_a_slow_client_that_reads_is_served_to_the_end() -> None:
    async def answer(patience: Patience) -> None:
        for _ in range(4):
            await patience.write(asyncio.sleep(0.99 * STALL_S))

    assert over(answer) == pytest.approx(4 * 0.99 * STALL_S)


def test_computing_is_not_stalling() -> None:
    over(lambda _: asyncio.sleep(3 * STALL_S))


def test_a_pause_of_the_process_is_not_charged_to_the_client() -> None:
    async def answer(patience: Patience) -> None:
        loop, is_taken = asyncio.get_running_loop(), asyncio.Event()
        assert isinstance(loop, VirtualLoop)
        pause_s = STALL_S + 1.1 * PAUSE_S
        loop.call_soon(loop.stand_still, pause_s)
        loop.call_later(pause_s + 0.9 * STALL_S, is_taken.set)

        async def taken() -> None:
            await is_taken.wait()

        await patience.write(taken())

    over(answer)


def test_an_answers_own_timeout_stays_what_it_is() -> None:
    async def answer(_: Patience) -> None:
        raise TimeoutError

    with pytest.raises(TimeoutError):
        over(answer)
