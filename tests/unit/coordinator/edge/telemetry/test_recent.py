"""What the live page plots: one entry a second, from events that the edge counts anyway."""

from __future__ import annotations

import pytest

from coordinator.edge.telemetry.recent import KEPT_S, RecentActivity
from protocol.clock import ManualClock


@pytest.fixture
def clock() -> ManualClock:
    return ManualClock(1000.25)


@pytest.fixture
def recent(clock) -> RecentActivity:
    return RecentActivity(clock)


def test_nothing_happened_is_zeros_and_nulls(recent) -> None:
    view = recent.view()
    assert view["output_tokens"] == [0] * KEPT_S
    assert view["ttft_ms"] == [None] * KEPT_S


def test_running_second_is_not_shown(recent) -> None:
    recent.generated(5)
    assert sum(recent.view()["output_tokens"]) == 0


def test_finished_second_is_the_last_entry(recent, clock) -> None:
    recent.generated(5)
    clock.advance(1.0)
    assert recent.view()["output_tokens"][-2:] == [0, 5]


def test_an_idle_second_between_is_zero(recent, clock) -> None:
    recent.generated(5)
    clock.advance(2.0)
    recent.generated(7)
    clock.advance(1.0)
    assert recent.view()["output_tokens"][-4:] == [0, 5, 0, 7]


def test_seconds_leave_after_two_minutes(recent, clock) -> None:
    recent.generated(5)
    clock.advance(KEPT_S + 1.0)
    assert sum(recent.view()["output_tokens"]) == 0


def test_busy_seconds_that_are_too_old_are_dropped(recent, clock) -> None:
    for _ in range(3 * KEPT_S):
        recent.generated(1)
        clock.advance(1.0)
    assert recent.view()["output_tokens"] == [1] * KEPT_S


def test_ttft_is_the_median(recent, clock) -> None:
    for seconds in (0.1, 0.2, 9.0):
        recent.first_token(seconds)
    clock.advance(1.0)
    assert recent.view()["ttft_ms"][-1] == 200.0


def test_tpot_weighs_tokens_not_events(recent, clock) -> None:
    recent.inter_token(0.010, 1)
    recent.inter_token(0.090, 9)
    clock.advance(1.0)
    assert recent.view()["tpot_ms"][-1] == 10.0


def test_summary_is_a_rate_over_ten_seconds(recent, clock) -> None:
    recent.generated(50)
    recent.started(30)
    clock.advance(4.0)
    summary = recent.view()["summary"]
    assert (summary["output_tokens_per_s"], summary["prompt_tokens_per_s"]) == (5.0, 3.0)


def test_summary_has_no_ttft_without_first_tokens(recent) -> None:
    assert recent.view()["summary"]["ttft_ms"] is None
