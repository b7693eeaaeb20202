"""Whatever is observed: ranges and budget hold, and more load never asks for fewer workers."""

from __future__ import annotations

from dataclasses import replace

from hypothesis import given, settings
from hypothesis import strategies as st

from coordinator.planning.capacity import (
    DecodeDemand,
    PrefillDemand,
    StepCost,
    decode_attainment,
    prefill_attainment,
)
from coordinator.planning.needs import Needs
from coordinator.planning.observations import Flip, Held, Limits, Range, Scale
from coordinator.planning.planner import Planner
from coordinator.planning.sketch import distribution
from protocol.roles import COMPUTING
from tests.unit.coordinator.planning.planner_rig import TARGETS, observe, sights, steady, toy

RANGES = st.tuples(st.integers(1, 4), st.integers(0, 6)).map(lambda t: Range(t[0], t[0] + t[1]))
SERVICES = st.lists(st.floats(0.01, 5.0), min_size=20, max_size=40).map(distribution)


@st.composite
def limits(draw) -> Limits:
    prefill, decode = draw(RANGES), draw(RANGES)
    least = prefill.least + decode.least
    return Limits(prefill, decode, draw(st.integers(least, prefill.most + decode.most)))


@settings(max_examples=25, deadline=None)
@given(
    limits=limits(),
    rates=st.lists(st.floats(0.0, 40.0), min_size=1, max_size=12),
    start_s=st.floats(0.0, 400.0),
    obeys=st.lists(st.booleans(), min_size=1, max_size=5),
    truth=st.floats(0.3, 3.0),
)
def test_ranges_and_budget_hold(limits, rates, start_s, obeys, truth) -> None:
    cluster = toy(
        prefill=limits.prefill.least,
        decode=limits.decode.least,
        limits=limits,
        start_s=start_s,
        truth=truth,
    )
    turns = iter(range(10**9))
    cluster.obeys = lambda decision: obeys[next(turns) % len(obeys)]
    for rate in rates:
        for _ in range(40):
            cluster.run(2.0, steady(rate))
            assert sum(cluster.counts(all_of_them=True).values()) <= limits.budget
            for role, count in cluster.counts().items():
                assert limits.of(role).least <= count <= limits.of(role).most


@settings(max_examples=300, deadline=None)
@given(
    limits=limits(),
    counts=st.tuples(*[st.integers(0, 5)] * 6),
    rate=st.floats(0.0, 50.0),
    service=SERVICES,
    queued=st.integers(0, 10**6),
    held=st.floats(0.0, 1.0),
)
def test_no_single_order_breaks_a_limit(limits, counts, rate, service, queued, held) -> None:
    names = [
        f"{role}_{state}"
        for role in ("prefill", "decode")
        for state in ("ready", "starting", "draining")
    ]
    workers = sights(**dict(zip(names, counts, strict=True)))
    planner = Planner(TARGETS, limits)
    leaving = counts[2] + counts[5]
    for tick in range(6):
        seen = observe(
            1000.0 + 2 * tick,
            rate=rate,
            workers=workers,
            service_s=service,
            queued_requests=queued // 1000,
            queued_tokens=queued,
            ttft=Held(50, held),
        )
        decision = planner.decide(seen)
        present = seen.present()
        if isinstance(decision, Scale):
            for role in COMPUTING:
                low = min(limits.of(role).least, present[role])
                assert low <= decision.of(role) <= max(limits.of(role).most, present[role])
            before = sum(present.values())
            after = decision.prefill + decision.decode
            assert after <= max(limits.budget - leaving, before)
        if isinstance(decision, Flip):
            other = decision.role.other
            assert present[other] - 1 >= limits.of(other).least
            assert present[decision.role] + 1 <= limits.of(decision.role).most


@settings(max_examples=200, deadline=None)
@given(
    service=SERVICES,
    low=st.floats(0.0, 20.0),
    more=st.floats(0.0, 20.0),
    queued=st.integers(0, 10**5),
)
def test_more_load_never_needs_fewer(service, low, more, queued) -> None:
    needs = []
    for rate, tokens in ((low, queued), (low + more, queued), (low + more, 2 * queued)):
        made = Needs(TARGETS, Limits(Range(1, 64), Range(1, 64), 128), 300.0)
        seen = observe(rate=rate, service_s=service, queued_tokens=tokens)
        needs.append(made.update(replace(seen, short_count=0), is_settled=False))
    for role in COMPUTING:
        first, second, third = (need[role].now for need in needs)
        assert first <= second <= third


@settings(max_examples=200, deadline=None)
@given(
    service=SERVICES,
    rate=st.floats(0.01, 30.0),
    workers=st.integers(1, 200),
    scv=st.floats(0.25, 16.0),
    ttft_s=st.floats(0.05, 20.0),
)
def test_one_more_worker_never_attains_less(service, rate, workers, scv, ttft_s) -> None:
    demand = PrefillDemand(rate, service, scv)
    few, more = (prefill_attainment(demand, n, ttft_s) for n in (workers, workers + 1))
    assert 0.0 <= few <= more + 1e-9 <= 1.0 + 2e-9
    decode = DecodeDemand(rate, 100.0, StepCost(0.01, 0.001), 64)
    few, more = (decode_attainment(decode, n, 0.1) for n in (workers, workers + 1))
    assert 0.0 <= few <= more + 1e-9
