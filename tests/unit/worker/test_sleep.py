"""A worker that gives memory back: when it does, what is left of its cache, and what wakes it."""

from __future__ import annotations

from protocol.failures import ErrorKind
from protocol.messages.orders import Abort, Sleep, Welcome
from protocol.messages.reports import Outputs, SleepChanged
from protocol.sleeping import Part
from tests.unit.worker.lone_worker import KEY, LoneWorker, decode_order

BOTH = [Part.KV_CACHE, Part.WEIGHTS]
ABORT = Abort(incarnation="w1", request_id="r", attempt=1)


def order(*parts: Part) -> Sleep:
    return Sleep(incarnation="w1", parts=list(parts))


def sleeps(said: list[object]) -> list[tuple[list[Part], str]]:
    return [(m.parts, m.failure) for m in said if isinstance(m, SleepChanged)]


def welcomed() -> LoneWorker:
    worker = LoneWorker()
    worker.turn(Welcome(incarnation="w1"))
    return worker


def with_cached_blocks() -> LoneWorker:
    """It has answered a request, and nothing is here but what is cached of it."""
    worker = welcomed()
    worker.turn(decode_order(source=None))
    while worker.loop.busy:
        worker.turn()
    worker.turn(ABORT)
    assert worker.roles.pool.counts().cached > 0
    return worker


def test_an_idle_worker_gives_back_what_is_asked_for_and_nothing_is_cached_any_more() -> None:
    worker = with_cached_blocks()
    assert sleeps(worker.turn(order(*BOTH))) == [(BOTH, "")]
    assert worker.resting.calls == ["-kv_cache", "-weights"]
    assert worker.roles.pool.counts().free == worker.roles.pool.num_blocks
    assert worker.roles.pool.cache.keys() == []
    assert sleeps(worker.turn(order(Part.KV_CACHE))) == [([Part.KV_CACHE], "")]
    assert sleeps(worker.turn(order())) == [([], "")]
    assert worker.resting.calls[2:] == ["+weights", "+kv_cache"]


def test_a_repeated_order_is_answered_again_and_changes_nothing() -> None:
    worker = welcomed()
    for _ in range(2):
        assert sleeps(worker.turn(order(Part.KV_CACHE))) == [([Part.KV_CACHE], "")]
    assert worker.resting.calls == ["-kv_cache"]


def test_nothing_goes_while_a_request_is_here() -> None:
    worker = welcomed()
    worker.turn(decode_order())
    assert sleeps(worker.turn(order(*BOTH))) == []
    assert worker.resting.calls == []
    assert sleeps([*worker.turn(ABORT), *worker.turn(after_s=1.0)]) == [(BOTH, "")]


def test_work_wakes_a_worker_before_it_touches_a_block() -> None:
    worker = welcomed()
    worker.turn(order(*BOTH))
    said = worker.turn(decode_order())
    assert sleeps(said) == [([], "")]
    assert worker.resting.calls[2:] == ["+kv_cache", "+weights"]
    assert worker.roles.live() == [KEY]


def test_work_that_comes_before_sleep_takes_the_order_back() -> None:
    worker = welcomed()
    worker.turn(decode_order())
    worker.turn(order(*BOTH))
    worker.turn(decode_order())
    worker.turn(ABORT)
    assert worker.resting.calls == []


def test_memory_that_cannot_be_had_is_told_and_the_worker_stays_asleep() -> None:
    worker = welcomed()
    worker.turn(order(*BOTH))
    worker.resting.lost = "there are 5 bytes"
    assert sleeps(worker.turn(order())) == [(BOTH, "there are 5 bytes")]
    said = worker.turn(decode_order())
    (outputs,) = (m for m in said if isinstance(m, Outputs))
    assert outputs.outputs[0].error is not None
    assert outputs.outputs[0].error.kind is ErrorKind.WORKER_LOST
    assert worker.held == 0
    worker.resting.lost = ""
    assert sleeps(worker.turn(order())) == [([], "")]
