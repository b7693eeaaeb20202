"""Clients that take nothing are given up in time, others never; and a pause of the process itself is not theirs."""

from __future__ import annotations

import asyncio
import time

import pytest

from coordinator.edge.answers import responses
from coordinator.edge.answers.responses import Patience, StalledClient

STALL_S = 0.1


async def until(event: asyncio.Event) -> None:
    await event.wait()


async def never() -> None:
    await asyncio.Event().wait()


async def test_a_write_that_is_never_taken_ends_the_answer() -> None:
    patience = Patience(STALL_S)
    begun_s = time.monotonic()
    with pytest.raises(StalledClient):
        await patience.over(lambda: patience.write(never()))
    assert STALL_S <= time.monotonic() - begun_s < STALL_S + responses.PAUSE_S


async def test_a_late_write_has_its_whole_time() -> None:
    """The timer was set long before the write began."""
    patience = Patience(STALL_S)
    begun: list[float] = []

    async def answer() -> None:
        await asyncio.sleep(1.5 * STALL_S)
        begun.append(time.monotonic())
        await patience.write(never())

    with pytest.raises(StalledClient):
        await patience.over(answer)
    assert time.monotonic() - begun[0] >= STALL_S


async def test_a_slow_client_that_reads_is_served_to_the_end() -> None:
    patience = Patience(STALL_S)
    taken: list[int] = []

    async def answer() -> None:
        for piece in range(4):
            await patience.write(asyncio.sleep(0.6 * STALL_S))
            taken.append(piece)

    await patience.over(answer)
    assert taken == [0, 1, 2, 3]


async def test_computing_is_not_stalling() -> None:
    patience = Patience(STALL_S)
    await patience.over(lambda: asyncio.sleep(3 * STALL_S))


async def test_a_pause_of_the_process_is_not_charged_to_the_client(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(responses, "PAUSE_S", STALL_S)
    patience = Patience(STALL_S)
    is_taken = asyncio.Event()

    async def answer() -> None:
        asyncio.get_running_loop().call_soon(
            time.sleep, 3 * STALL_S
        )  # the whole process stands still
        asyncio.get_running_loop().call_later(3.5 * STALL_S, is_taken.set)
        await patience.write(until(is_taken))

    await patience.over(answer)


async def test_an_answers_own_timeout_stays_what_it_is() -> None:
    async def answer() -> None:
        raise TimeoutError

    with pytest.raises(TimeoutError):
        await Patience(STALL_S).over(answer)
