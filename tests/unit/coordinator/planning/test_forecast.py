"""What is foreseen, and that nothing is where nothing can be."""

from __future__ import annotations

import math
import random
from collections.abc import Callable

import pytest

from coordinator.planning.forecast import AHEAD_BINS, BIN_S, Forecast
from coordinator.planning.needs import rate_now, relaxed_rate
from tests.unit.coordinator.planning.planner_rig import observe

HOUR = 60


def sine(minutes: float, swing: float) -> Callable[[int], float]:
    return lambda minute: 300 * (1 + swing * math.sin(2 * math.pi * minute / minutes))


def drive(
    rate: Callable[[int], float], minutes: int, seed: int = 0
) -> tuple[Forecast, list[int], list[float | None]]:
    """Counts of each minute, drawn around `rate` a minute, and what was foreseen after it."""
    rng, forecast = random.Random(seed), Forecast()
    counts: list[int] = []
    said: list[float | None] = []
    for minute in range(minutes):
        mean = rate(minute)
        counts.append(max(round(rng.gauss(mean, math.sqrt(mean))), 0))
        forecast.add(minute * BIN_S + 1.0, counts[-1])
        forecast.look((minute + 1) * BIN_S)
        said.append(forecast.ahead_per_s())
    return forecast, counts, said


def errors(counts: list[int], said: list[float | None]) -> tuple[float, float]:
    """Of the forecast, and of the mean of two minutes, where something was foreseen."""
    ours = theirs = 0.0
    for minute, expected in enumerate(said[:-AHEAD_BINS]):
        if expected is not None:
            came = counts[minute + AHEAD_BINS]
            ours += abs(expected * BIN_S - came)
            theirs += abs((counts[minute] + counts[minute - 1]) / 2 - came)
    return ours, theirs


@pytest.mark.parametrize("period", [20, 30, 45, 60])
@pytest.mark.parametrize("seed", range(2))
def test_a_season_is_found_and_halves_the_error(period: int, seed: int) -> None:
    forecast, counts, said = drive(sine(period, 0.8), 5 * HOUR, seed)
    found_s = forecast.view()["period_s"]
    assert found_s is not None
    multiple = round(found_s / BIN_S / period)
    assert abs(found_s / BIN_S / period - multiple) < 0.05
    assert sum(value is not None for value in said) > 0.4 * len(said)
    ours, theirs = errors(counts, said)
    assert ours < 0.75 * theirs


@pytest.mark.parametrize(
    "rate",
    [
        lambda minute: 60.0,
        lambda minute: 1200.0,
        lambda minute: 60.0 if minute < 90 else 300.0,
        lambda minute: 600.0 if random.Random(minute).random() < 0.05 else 60.0,
    ],
    ids=["flat", "many", "step", "bursts"],
)
@pytest.mark.parametrize("seed", range(3))
def test_nothing_is_foreseen_where_nothing_can_be(rate: Callable[[int], float], seed: int) -> None:
    """Then every need is what it is without a forecast: no worker-hour more."""
    *_, said = drive(rate, 4 * HOUR, seed)
    assert sum(value is not None for value in said) <= 0.05 * len(said)


@pytest.mark.parametrize("seed", range(3))
def test_a_walk_that_nobody_can_foresee_is_not_foreseen(seed: int) -> None:
    rng, level = random.Random(seed), [300.0]

    def walk(minute: int) -> float:
        del minute
        level[0] = min(max(level[0] * math.exp(rng.gauss(0, 0.08)), 60.0), 2400.0)
        return level[0]

    *_, said = drive(walk, 5 * HOUR, seed)
    assert sum(value is not None for value in said) <= 0.05 * len(said)


def test_a_steep_rise_is_seen_coming() -> None:
    *_, counts, said = drive(lambda minute: 60.0 + 60.0 * minute, HOUR)
    known = [(m, value) for m, value in enumerate(said[:-AHEAD_BINS]) if value is not None]
    assert len(known) > 20
    ours, theirs = errors(counts, said)
    assert ours < 0.75 * theirs


def test_a_season_that_ends_is_not_believed_for_long() -> None:
    """Half an hour after it came otherwise, the plain mean counts again."""
    *_, said = drive(lambda m: sine(30, 0.8)(m) if m < 240 else 300.0, 5 * HOUR)
    assert said[239] is not None
    assert said[275:] == [None] * len(said[275:])


def test_quiet_hours_cost_nothing_and_are_minutes_too() -> None:
    forecast = Forecast()
    forecast.add(0.0, 100)
    forecast.look(1e9)
    assert forecast.ahead_per_s() in {None, 0.0}
    assert Forecast().ahead_per_s() is None


def test_what_is_foreseen_adds_before_it_comes_and_lets_go_when_it_ends() -> None:
    rising = observe(rate=1.0, rate_ahead=3.0)
    assert rate_now(rising) == 3.0
    falling = observe(rate=1.0, rate_slow=4.0, rate_ahead=0.5)
    assert rate_now(falling) == 1.0
    assert relaxed_rate(falling) == pytest.approx(1.1)
    assert relaxed_rate(observe(rate=1.0, rate_slow=4.0)) == pytest.approx(4.4)
