"""The simulated cluster: what is counted, that nothing is lost, and that a seed says everything."""

from __future__ import annotations

from dataclasses import replace

import pytest

from benchmarks.cluster_sim.rules import QueueLength, Reactive
from coordinator.planning.observations import Limits, Range, Targets
from protocol.roles import Role
from simulation.calibration import Hardware
from simulation.cluster import Policy, SimCluster
from simulation.policies import Planned, Static
from simulation.scoring import attained, score
from simulation.workload import SimRequest, random_workload

HARDWARE = Hardware(
    token_s=0.001,
    attention_s=0.0,
    base_s=0.01,
    sequence_s=0.001,
    context_s=0.0,
    transfer_token_s=0.0,
    handoff_s=0.002,
    start_s=10.0,
)
TARGETS = Targets(2.0, 0.05, 0.9)
LIMITS = Limits(Range(1, 6), Range(1, 6), 10)


def run(
    requests, pools=(1, 1), policy: Policy | None = None, hardware=HARDWARE, **options
) -> SimCluster:
    cluster = SimCluster(requests, hardware, pools, **options)
    cluster.run(policy or Static())
    return cluster


def one(prompt: int = 1000, output: int = 11) -> list[SimRequest]:
    return [SimRequest(0, 0.0, prompt, output)]


def test_first_token_of_an_idle_cluster_takes_the_prompts_computing() -> None:
    (ended,) = run(one()).ended
    assert ended.ttft_s == pytest.approx(1.0)


def test_following_tokens_take_the_handoff_and_a_step_each() -> None:
    (ended,) = run(one()).ended
    assert ended.tpot_s == pytest.approx((0.002 + 10 * 0.011) / 10)


def test_a_step_grows_with_the_context() -> None:
    hardware = replace(HARDWARE, context_s=1e-6)
    (ended,) = run(one(output=101), hardware=hardware).ended
    steps = sum(0.011 + 1e-6 * (1001 + index) for index in range(100))
    assert ended.tpot_s == pytest.approx((0.002 + steps) / 100)


def test_prompts_wait_for_each_other() -> None:
    requests = [SimRequest(i, 0.0, 1000, 1) for i in range(3)]
    found = sorted(e.ttft_s or 0 for e in run(requests, relieves=False).ended)
    assert found == pytest.approx([1.0, 2.0, 3.0])


def test_a_shared_prefix_is_computed_once() -> None:
    requests = [
        SimRequest(0, 0.0, 1024, 2, (1, 2), 512),
        SimRequest(1, 5.0, 1536, 2, (1, 2, 3), 512),
    ]
    first, second = sorted(run(requests).ended, key=lambda e: e.number)
    assert first.ttft_s == pytest.approx(1.024)
    assert second.ttft_s == pytest.approx(0.512)


def test_a_joining_sequence_waits_for_the_step_under_way() -> None:
    """Its steps are longer from then on, and those of the one that was there too."""
    requests = [SimRequest(0, 0.0, 100, 200), SimRequest(1, 1.0, 100, 200)]
    first, second = sorted(run(requests).ended, key=lambda e: e.number)
    assert 0.011 < (first.tpot_s or 0) < 0.012
    assert 0.011 < (second.tpot_s or 0) < 0.0121


def test_every_request_ends_exactly_once() -> None:
    requests = random_workload(400, 3.0, (600, 40), 0.8, seed=3)
    for policy in (
        Static(),
        Planned(TARGETS, LIMITS),
        Reactive(LIMITS),
        QueueLength(LIMITS, {Role.PREFILL: 2, Role.DECODE: 8}),
    ):
        cluster = run(requests, policy=policy)
        assert sorted(ended.number for ended in cluster.ended) == list(range(400))
        assert cluster.streams == {}
        assert not cluster.service.requests
        assert cluster.service.books.ledger.num_reservations() == 0


def test_refused_requests_end_too() -> None:
    requests = random_workload(200, 50.0, (600, 40), 0.5, seed=1)
    cluster = run(requests, max_queued=3, hardware=replace(HARDWARE, max_num_seqs=2))
    assert len(cluster.ended) == 200
    assert score(cluster, TARGETS)["errors"]["Overloaded"] > 0


def test_the_same_seed_gives_the_same_simulation() -> None:
    ends = []
    for _ in range(2):
        requests = random_workload(300, 3.0, (600, 40), 0.8, seed=5)
        cluster = run(requests, policy=Planned(TARGETS, LIMITS))
        ends.append((cluster.ended, cluster.worker_s, cluster.sizes))
    assert ends[0] == ends[1]


def test_another_seed_gives_another() -> None:
    first, second = (
        run(random_workload(100, 3.0, (600, 40), 0.8, seed=seed)).ended for seed in (1, 2)
    )
    assert first != second


def test_the_autoscaler_rescues_what_one_worker_cannot_hold() -> None:
    requests = random_workload(1500, 3.0, (600, 40), 0.5, seed=7)
    alone = run(requests)
    scaled = run(requests, policy=Planned(TARGETS, LIMITS))
    assert attained(alone, TARGETS) < 0.3
    assert attained(scaled, TARGETS) > 0.8
    assert max(p + d for _, p, d in scaled.sizes) <= LIMITS.budget


def test_a_drained_worker_loses_nothing() -> None:
    """Load that falls: workers leave, and every request still ends well."""
    busy = random_workload(600, 4.0, (600, 40), 0.5, seed=2)
    calm = random_workload(300, 0.4, (600, 40), 0.5, seed=3)
    start = busy[-1].at_s
    requests = busy + [replace(r, number=600 + r.number, at_s=start + r.at_s) for r in calm]
    cluster = run(requests, pools=(4, 2), policy=Planned(TARGETS, LIMITS))
    sizes = [p + d for _, p, d in cluster.sizes]
    assert sizes[-1] < max(sizes)
    assert [ended.error for ended in cluster.ended if ended.error] == []


def test_worker_hours_count_starting_workers() -> None:
    cluster = run(one(output=1), pools=(2, 1))
    assert cluster.worker_s == pytest.approx(3 * cluster.now_s)


class Naps:
    """A policy that puts the cluster to sleep whenever it can."""

    def __init__(self) -> None:
        self.levels: list[int] = []

    def begin(self, cluster: SimCluster) -> None:
        return

    def tick(self, cluster: SimCluster) -> None:
        cluster.service.sleeper.begin(2)
        self.levels.append(cluster.service.sleeper.level)


def test_a_cluster_that_sleeps_between_its_requests_answers_all_of_them() -> None:
    naps = Naps()
    requests = [SimRequest(i, 20.0 * i, 1000, 11) for i in range(4)]
    cluster = run(requests, (2, 2), naps)
    assert [ended.error for ended in cluster.ended] == [""] * 4
    assert set(naps.levels) == {0, 2}
