"""The production autoscaler on whole loads: what it costs follows the goal, and chance or long prompts feed no pools."""

from __future__ import annotations

import itertools
import math
import random
from functools import cache

import pytest

from coordinator.planning.observations import Limits, Range, Targets
from simulation.calibration import DEFAULT_CALIBRATION, load_calibration
from simulation.cluster import SimCluster
from simulation.policies import Planned, Static
from simulation.scoring import score
from simulation.workload import SimRequest, random_workload

SECONDS = 1800
LIMITS = Limits(Range(1, 24), Range(1, 8), 32)
GOALS = (0.5, 0.9, 0.95, 0.99)


@cache  # of seven questions about four simulations
def flat(goal: float) -> dict:
    """One request a second, prompts of 512 tokens in the mean; no worker is too slow for all but 1.5 % of them."""
    hardware = load_calibration(DEFAULT_CALIBRATION)
    requests = random_workload(SECONDS, 1.0, (512, 64), 0.5, 0)
    cluster = SimCluster(requests, hardware, (1, 1))
    cluster.run(Planned(Targets(2.0, 0.1, goal), LIMITS))
    return score(cluster, Targets(2.0, 0.1, goal)) | {"sizes": cluster.sizes}


def test_a_flat_load_grows_nothing_for_an_hour() -> None:
    """It took 16 prefill workers where two attain all that can be attained, blaming chance."""
    shown = flat(0.99)
    assert shown["most_workers"] <= 4
    assert shown["attained"] >= 0.98


@pytest.mark.deep
@pytest.mark.parametrize(("low", "high"), list(itertools.pairwise(GOALS)))
def test_a_higher_goal_costs_no_less(low: float, high: float) -> None:
    assert flat(low)["worker_hours"] <= flat(high)["worker_hours"] * 1.02


@pytest.mark.parametrize("goal", GOALS[:3])
def test_the_goal_is_attained(goal: float) -> None:
    assert flat(goal)["attained"] >= goal


def heavy_tailed(count: int) -> list[SimRequest]:
    """Median 5,400 tokens, up to 60,000; one a second."""
    draw, at_s, found = random.Random(0), 0.0, []
    for number in range(count):
        at_s += draw.expovariate(1.0)
        prompt = min(int(5400 * math.exp(draw.gauss(0, 1.1))), 60_000)
        output = max(2, min(int(128 * math.exp(draw.gauss(0, 0.6))), 1024))
        found.append(SimRequest(number, at_s, max(prompt, 16), output))
    return found


def test_a_goal_beyond_reach_feeds_no_pools(caplog: pytest.LogCaptureFixture) -> None:
    """Long prompts miss on an idle worker: more workers change nothing. That is said once."""
    requests, targets = heavy_tailed(SECONDS), Targets(6.0, 0.1, 0.99)
    hardware = load_calibration(DEFAULT_CALIBRATION).scaled(40, 40)
    large = SimCluster(requests, hardware, (18, 2))
    large.run(Static())
    planned = SimCluster(requests, hardware, (1, 1))
    policy = Planned(targets, LIMITS)
    planned.run(policy)
    told = [r.getMessage() for r in caplog.records if "beyond reach" in r.getMessage()]
    assert len(told) == 1
    assert "goal:0.99" in told[0]
    assert "6000 ms" in told[0]
    assert policy.autoscaler is not None
    assert "beyond reach" in policy.autoscaler.view()["beyond_reach"]
    most, own = score(large, targets), score(planned, targets)
    assert most["attained"] < 0.95, "the goal is beyond reach"
    assert own["attained"] >= most["attained"] - 0.03
    assert own["worker_hours"] <= 0.55 * most["worker_hours"]


def test_a_cold_start_is_acted_on_at_once() -> None:
    """Four requests a second on one worker that can do two: the first order comes while the first prompts wait."""
    hardware = load_calibration(DEFAULT_CALIBRATION)
    requests = random_workload(200, 4.0, (512, 64), 0.5, 3)
    cluster = SimCluster(requests, hardware, (1, 1))
    policy = Planned(Targets(2.0, 0.1, 0.9), LIMITS)
    cluster.run(policy)
    assert policy.autoscaler is not None
    first_s = policy.autoscaler.decisions[0][0]
    assert first_s - requests[0].at_s <= 8.0
