"""A process knows when it was stopped: it looked at the clock far later than it wanted to."""

from __future__ import annotations

from kvtransfer.pulling.pauses import LOOK_EVERY_S, PAUSE_S, Pauses
from protocol.clock import ManualClock


def test_looks_in_time_are_no_pause() -> None:
    clock = ManualClock()
    pauses = Pauses(clock)
    for _ in range(100):
        clock.advance(LOOK_EVERY_S)
        pauses.look()
    assert not pauses.was_since(0.0)


def test_a_pause_counts_from_its_end_also_before_the_thread_has_seen_it() -> None:
    clock = ManualClock()
    pauses = Pauses(clock)
    clock.advance(PAUSE_S + 1)
    assert pauses.was_since(0.0)
    assert pauses.was_since(PAUSE_S + 0.9)
    assert not pauses.was_since(PAUSE_S + 1)


def test_what_began_after_a_pause_has_not_seen_it() -> None:
    clock = ManualClock()
    pauses = Pauses(clock)
    clock.advance(PAUSE_S + 1)
    pauses.look()
    clock.advance(0.5)
    assert not pauses.was_since(clock.now_s())


def test_the_thread_looks_and_ends() -> None:
    pauses = Pauses(ManualClock())
    pauses.start()
    pauses.close()
    assert not pauses._thread.is_alive()
