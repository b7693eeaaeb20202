"""What must happen again on Ray's side survives its exception, and who slept concludes nothing from it."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from collections.abc import Callable

import pytest

import deploy.launch.ray.keeper as keeper_module
from deploy.launch.ray import cluster_watch
from deploy.launch.ray.choice import RayChoice
from deploy.launch.ray.cluster_watch import ClusterWatch
from deploy.launch.ray.connection import RayConnection
from deploy.launch.ray.keeper import Keeper
from deploy.launch.ray.patience import SLICE_S, ends_within
from deploy.launch.ray.records import AgentReport, Away, Back, Ended, KeeperOrder
from deploy.launch.ray.seat_holder import SeatHolder
from protocol.clock import ManualClock, SystemClock
from protocol.messages.launcher import NOT_STARTED
from tests.patience import PATIENCE_S


async def passes(seconds: float) -> None:
    over = asyncio.Event()
    asyncio.get_running_loop().call_later(seconds, over.set)
    await over.wait()


async def watched(
    monkeypatch: pytest.MonkeyPatch, asked: list[object], clock: object = None
) -> list[AgentReport]:
    """What a watch reports over some looks; each of `asked` is an answer, an exception, or what is done in a look."""
    monkeypatch.setattr(cluster_watch, "LOOK_EVERY_S", 0.001)
    reports: list[AgentReport] = []

    def draining() -> dict[str, int]:
        found = asked.pop(0) if asked else {}
        if callable(found):
            found = found()
        if isinstance(found, Exception):
            raise found
        assert isinstance(found, dict)
        return found

    def seats() -> dict[str, list[str]]:
        if not asked:
            return {}
        raise KeyError("a bug of ours")

    monkeypatch.setattr(cluster_watch, "ask", lambda: (draining(), {}))
    watch = ClusterWatch(reports.append, seats, clock or SystemClock())  # type: ignore[arg-type]
    watching = asyncio.create_task(watch.run())
    for _ in range(400):
        if not asked:
            break
        await passes(0.01)
    await passes(0.1)
    assert not watching.done()
    watching.cancel()
    return reports


async def test_watch_goes_on_after_a_look_that_failed(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.ERROR):
        reports = await watched(monkeypatch, [{}, {}, ConnectionError("gone"), {}])
    assert [type(report) for report in reports] == [Away, Back]
    assert "looking at Ray failed" in caplog.text


async def test_error_after_a_pause_of_ours_says_nothing_of_ray(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    clock = ManualClock(100.0)

    def slept() -> Exception:
        clock.advance(60.0)
        return TimeoutError("the deadline passed while nobody ran")

    assert await watched(monkeypatch, [slept, {}], clock) == []


async def until(condition: Callable[[], bool]) -> None:
    """Wait for what others do meanwhile."""
    async with asyncio.timeout(PATIENCE_S):
        while not condition():
            await passes(0.02)


async def test_pause_is_one_slice_of_a_wait() -> None:
    loop = asyncio.get_running_loop()
    work: asyncio.Future[None] = loop.create_future()
    waiting = asyncio.create_task(ends_within(work, 3.0))
    await passes(0.01)
    loop.call_soon(time.sleep, 3 * SLICE_S)  # as if stopped
    loop.call_later(4 * SLICE_S, work.set_result, None)
    assert await waiting


async def test_wait_without_an_answer_ends() -> None:
    began_s = time.monotonic()
    assert not await ends_within(asyncio.get_running_loop().create_future(), 2 * SLICE_S)
    assert time.monotonic() - began_s < PATIENCE_S


class Spawner:
    """In ChildProcess's place: fails as often as it was told."""

    def __init__(self, failures: int) -> None:
        self.failures = failures
        self.started = 0

    def __call__(self, *_: object, **__: object) -> Spawner:
        if self.failures:
            self.failures -= 1
            raise OSError(24, "Too many open files")
        self.started += 1
        return self

    pid, running, status = 7, True, 0
    tail: tuple[str, ...] = ()

    def kill(self) -> None:
        """Nothing runs."""


async def test_keeper_without_descriptors_tries_again(monkeypatch: pytest.MonkeyPatch) -> None:
    spawner = Spawner(failures=2)
    monkeypatch.setattr(keeper_module, "ChildProcess", spawner)
    order = KeeperOrder(
        name="decode-0",
        generation=1,
        module="m",
        spec_path="s",
        run_directory="d",
        num_threads=1,
        node_id="n",
        session="s",
        tells_ready=True,
        shutdown_timeout_s=1.0,
    )
    keeper = Keeper(order, None, ManualClock())  # type: ignore[arg-type]
    told: list[object] = []
    monkeypatch.setattr(keeper, "_tell", told.append)
    keeper._start_again()
    await until(lambda: spawner.started == 1)  # after 0.2 s, then 1 s
    ends = [news for news in told if isinstance(news, Ended)]
    assert [(end.status, end.restart_in_s) for end in ends] == [
        (NOT_STARTED, 0.2),
        (NOT_STARTED, 1.0),
    ]


async def test_connection_without_descriptors_tries_again(monkeypatch: pytest.MonkeyPatch) -> None:
    choice = RayChoice(
        "a:1", None, {}, "l", "strict", None, "", None, pin=False, shutdown_timeout_s=1
    )
    lost: list[str] = []
    connection = RayConnection(choice, lambda _: None, lost.append, ManualClock())
    starts = iter([OSError(24, "Too many open files"), None])
    started: list[bool] = []

    def start() -> None:
        if (error := next(starts)) is not None:
            raise error
        started.append(True)

    monkeypatch.setattr(connection, "start", start)
    connection._if_open(connection.start)
    await until(lambda: started == [True])
    assert "Too many open files" in lost[0]


async def test_seat_is_looked_for_again_after_any_failure(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    holder = SeatHolder("decode-0", "l", None, lambda _: None)  # type: ignore[arg-type]
    tries: list[int] = []

    async def once() -> None:
        tries.append(1)
        raise ValueError("a bug of ours")

    monkeypatch.setattr(holder, "_once", once)
    with caplog.at_level(logging.ERROR):
        holding = asyncio.create_task(holder.hold())
        await until(lambda: len(tries) == 2)
    assert "is looked for again" in caplog.text
    holding.cancel()
    with contextlib.suppress(asyncio.CancelledError):
        await holding
