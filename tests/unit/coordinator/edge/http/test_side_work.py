"""Threads beside the loop: once started, none has to be started for a request."""

from __future__ import annotations

import threading
from typing import TYPE_CHECKING, NoReturn

import pytest

from coordinator.edge.http.side_work import TOKENIZING_THREADS, SideWork

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
