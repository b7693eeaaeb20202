"""Time of an observer that pauses itself."""

from __future__ import annotations

from protocol.clock import ListeningClock, ManualClock
from worker.silence import LONGEST_LOOK_S, SilenceLimit


def test_pause_of_the_observer_is_no_silence_of_others() -> None:
    clock = ManualClock(100.0)
    listening = ListeningClock(clock, longest_s=0.5)
    clock.advance(0.25)
    before_s = listening.now_s()
    clock.advance(20.0)
    assert listening.now_s() - before_s == 0.5


def test_time_passes_while_the_observer_listens() -> None:
    clock = ManualClock(100.0)
    listening = ListeningClock(clock, longest_s=0.5)
    for _ in range(40):
        clock.advance(0.25)
        listening.now_s()
    assert listening.now_s() == 110.0


def test_silence_limit_leaves_out_a_pause() -> None:
    silence = SilenceLimit(10.0, now_s=0.0, first_s=0.0)
    assert not silence.is_over(60.0)
    seconds = [60.0 + second for second in range(12)]
    assert [silence.is_over(now_s) for now_s in seconds].index(True) == round(
        10 - LONGEST_LOOK_S
    ) + 1
