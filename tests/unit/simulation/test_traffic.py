"""When requests come."""

from __future__ import annotations

import math

import numpy as np
import pytest

from simulation.traffic import Traffic, schedule


def gaps(traffic: Traffic, total: int = 20_000) -> np.ndarray:
    return np.diff([0.0, *schedule(traffic, total, seed=3)])


def test_infinite_rate_sends_all_at_once() -> None:
    assert schedule(Traffic(), 3, seed=0) == [0.0, 0.0, 0.0]


def test_the_last_request_leaves_at_total_over_rate() -> None:
    assert schedule(Traffic(rate=4.0), 100, seed=5)[-1] == pytest.approx(25.0)


def test_gaps_of_burstiness_one_are_exponential() -> None:
    found = gaps(Traffic(rate=2.0))
    assert found.std() / found.mean() == pytest.approx(1.0, abs=0.03)


@pytest.mark.parametrize("burstiness", [0.25, 4.0])
def test_variation_of_gaps_is_one_over_the_root_of_burstiness(burstiness: float) -> None:
    found = gaps(Traffic(rate=2.0, burstiness=burstiness))
    assert found.std() / found.mean() == pytest.approx(1 / math.sqrt(burstiness), rel=0.04)


def test_infinite_burstiness_is_even() -> None:
    assert schedule(Traffic(rate=2.0, burstiness=math.inf), 3, seed=0) == [0.5, 1.0, 1.5]


def test_equal_seeds_give_equal_schedules() -> None:
    assert schedule(Traffic(rate=2.0), 9, seed=7) == schedule(Traffic(rate=2.0), 9, seed=7)


def test_the_schedule_of_a_seed_is_that_of_vllm() -> None:
    """Its client draws a gamma number a request from numpy's global generator, then scales the sum."""
    draw = np.random.RandomState(7)
    drawn = np.cumsum([draw.gamma(shape=1.0, scale=0.5) for _ in range(5)])
    expected = drawn * (5 / 2.0 / drawn[-1])
    assert schedule(Traffic(rate=2.0), 5, seed=7) == pytest.approx(expected.tolist())


def test_linear_ramp_goes_from_start_to_end() -> None:
    traffic = Traffic(ramp="linear", ramp_start=1.0, ramp_end=5.0)
    assert [traffic.rate_at(index, 3) for index in range(3)] == [1.0, 3.0, 5.0]


def test_exponential_ramp_multiplies() -> None:
    traffic = Traffic(ramp="exponential", ramp_start=1.0, ramp_end=9.0)
    assert traffic.rate_at(1, 3) == pytest.approx(3.0)


def test_a_ramp_is_not_scaled_to_a_total() -> None:
    traffic = Traffic(ramp="linear", ramp_start=1.0, ramp_end=1.0, burstiness=math.inf)
    assert schedule(traffic, 3, seed=0) == [1.0, 2.0, 3.0]
