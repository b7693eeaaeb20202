"""When a drained worker says Goodbye, and when it stops waiting to be stopped."""

from __future__ import annotations

from worker.farewell import ALONE_S, GOODBYE_EVERY_S, Farewell


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
