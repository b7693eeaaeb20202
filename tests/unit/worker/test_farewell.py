"""When a drained worker says Goodbye, and when it stops waiting to be stopped."""

from __future__ import annotations

from worker.farewell import ALONE_S, GOODBYE_EVERY_S, HEARD_S, Farewell


def test_goodbye_waits_for_the_drain_and_for_the_last_lease() -> None:
    farewell = Farewell()
    assert not farewell.is_due(1.0, is_empty=True)
    farewell.begin()
    assert not farewell.is_due(2.0, is_empty=False)
    assert not farewell.is_said
    assert farewell.is_due(3.0, is_empty=True)
    assert farewell.is_said


def test_goodbye_is_said_again_until_somebody_stops_the_worker() -> None:
    farewell = Farewell()
    farewell.begin()
    assert farewell.is_due(0.0, is_empty=True)
    assert not farewell.is_due(GOODBYE_EVERY_S / 2, is_empty=True)
    assert farewell.is_due(GOODBYE_EVERY_S, is_empty=True)
    assert not farewell.is_over(ALONE_S)
    assert farewell.is_over(ALONE_S + 0.1)


def test_signal_drains_until_its_grace_is_over() -> None:
    farewell = Farewell()
    farewell.stop(until_s=30.0)
    assert farewell.is_begun
    assert farewell.is_stop
    assert not farewell.is_due(29.0, is_empty=False)
    assert not farewell.is_over(30.0)
    assert farewell.is_over(30.1)


def test_signal_of_a_worker_with_nothing_to_do_ends_it_when_its_goodbye_was_heard() -> None:
    farewell = Farewell()
    farewell.stop(until_s=30.0)
    assert farewell.is_due(1.0, is_empty=True)
    assert not farewell.is_over(1.0 + HEARD_S)
    assert farewell.is_over(1.1 + HEARD_S)


def test_second_signal_does_not_wait() -> None:
    farewell = Farewell()
    farewell.stop(until_s=30.0)
    farewell.stop(until_s=31.0)
    assert farewell.is_over(0.0)


def test_signal_to_a_worker_that_drains_changes_only_how_long() -> None:
    farewell = Farewell()
    farewell.begin()
    farewell.stop(until_s=30.0)
    assert not farewell.is_stop
    assert farewell.is_over(30.1)
