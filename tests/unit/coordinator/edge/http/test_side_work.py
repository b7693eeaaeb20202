"""Threads beside the loop: once started, none has to be started for a request. And the loop's own long work, in slices."""

from __future__ import annotations

import asyncio
import itertools
import threading
from collections import Counter
from functools import partial
from typing import TYPE_CHECKING, NoReturn

import pytest

from coordinator.edge.http import side_work
from coordinator.edge.http.side_work import (
    MOST_AT_ONCE,
    TOKENIZING_THREADS,
    LoopTurns,
    SideWork,
)

if TYPE_CHECKING:
    from collections.abc import Callable


def refuse(self: threading.Thread) -> NoReturn:
    """As Python does where the kernel has no memory for a thread."""
    raise RuntimeError("can't start new thread")


def both_at_once() -> Callable[[], bool]:
    """Work that ends when so many threads do it."""
    meeting = threading.Barrier(TOKENIZING_THREADS)
    return lambda: meeting.wait(10) >= 0


async def test_work_needs_no_new_thread_once_all_are_started(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    side = SideWork()
    side.start()
    monkeypatch.setattr(threading.Thread, "start", refuse)
    assert await side.run(lambda: 1) == 1
    assert await side.tokenize(lambda: 2) == 2
    work = both_at_once()
    futures = [side._tokenizing.submit(work) for _ in range(TOKENIZING_THREADS)]
    assert all(future.result(10) for future in futures)


def test_a_start_without_threads_says_so_and_waits_for_nobody(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    side = SideWork()
    monkeypatch.setattr(threading.Thread, "start", refuse)
    with pytest.raises(RuntimeError, match="can't start new thread"):
        side.start()


async def test_of_many_things_one_slice_is_done_between_two_turns_of_others(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(side_work, "SLICE_S", 0.0)
    turns, loop, done, seen = LoopTurns(), asyncio.get_running_loop(), Counter[str](), list[int]()
    items = range(2 * MOST_AT_ONCE)

    def look() -> None:
        seen.append(done.total())
        if done.total() < 3 * len(items):
            loop.call_soon(look)

    def do(item: int, name: str) -> int:
        done[name] += 1
        return -item

    loop.call_soon(look)
    told = await asyncio.gather(*(turns.each(items, partial(do, name=name)) for name in "abc"))
    assert told == [[-item for item in items]] * 3
    assert max(after - before for before, after in itertools.pairwise(seen)) == 1


async def test_who_leaves_its_turn_keeps_nobody_waiting() -> None:
    turns = LoopTurns()
    first, second = asyncio.create_task(turns.turn()), asyncio.create_task(turns.turn())
    await asyncio.sleep(0)
    first.cancel()
    await asyncio.wait_for(second, 10)


async def test_what_may_come_later_is_done_though_nobody_waits() -> None:
    turns, done, all_done = LoopTurns(), list[int](), asyncio.Event()
    items = list(range(2 * MOST_AT_ONCE))

    def do(item: int) -> None:
        done.append(item)
        if done == items:
            all_done.set()

    turns.later(items, do)
    assert done == items[:MOST_AT_ONCE]
    await asyncio.wait_for(all_done.wait(), 10)
