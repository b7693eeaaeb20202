"""Whose turn it is: between tenants by the work that they were given, within one by priority and by when prompts are due."""

from __future__ import annotations

import itertools
import math
import sys
from collections import Counter
from functools import partial
from typing import TYPE_CHECKING, Any

import pytest

from coordinator.cluster.lifecycle import RequestLife
from coordinator.cluster.service_api import Generation
from coordinator.cluster.turns import QUANTUM_TOKENS, Before, Turns, when_due
from protocol.sampling import SamplingParams

if TYPE_CHECKING:
    from collections.abc import Callable
    from types import FrameType

NUMBERS = itertools.count()


def life(
    tenant: str = "",
    work: int = 100,
    due_s: float | None = None,
    priority: int = 0,
    weight: float = 1.0,
) -> RequestLife:
    number = next(NUMBERS)
    generation = Generation(
        f"{tenant}-{number}",
        [1] * work,
        SamplingParams(max_tokens=8),
        tenant=tenant,
        weight=weight,
        priority=priority,
    )
    made = RequestLife(generation, 0.0, 600.0)
    made.work_tokens = work
    made.due_s = float(number) if due_s is None else due_s
    return made


def serve(turns: Turns, count: int) -> list[RequestLife]:
    served = []
    for _ in range(count):
        served.append(turns.candidates()[0])
        turns.take(served[-1])
    return served


def work_by_tenant(served: list[RequestLife]) -> Counter[str]:
    work: Counter[str] = Counter()
    for one in served:
        work[one.generation.tenant] += one.work_tokens
    return work


def test_a_greedy_tenant_gets_no_more_than_another() -> None:
    turns = Turns()
    for _ in range(100):
        turns.add(life("greedy"))
    for _ in range(10):
        turns.add(life("modest"))
    served = work_by_tenant(serve(turns, 20))
    assert abs(served["greedy"] - served["modest"]) <= QUANTUM_TOKENS + 100


@pytest.mark.parametrize("weight", [0.25, 0.5, 2.0, 3.0, 10.0])
def test_a_weight_is_a_share_of_the_work(weight: float) -> None:
    turns = Turns()
    for _ in range(4000):
        turns.add(life("heavy", weight=weight))
        turns.add(life("plain"))
    served = work_by_tenant(serve(turns, 2000))
    assert served["heavy"] / served["plain"] == pytest.approx(weight, rel=0.1)


def test_no_weight_keeps_anybody_out() -> None:
    turns = Turns()
    for _ in range(20_000):
        turns.add(life("heavy", 3000, weight=1e9))
    turns.add(life("light", 100, weight=1e-9))
    assert "light" in work_by_tenant(serve(turns, 500))


def test_what_goes_before_is_counted_by_weight() -> None:
    turns = Turns()
    for _ in range(100):
        turns.add(life("heavy", 100, weight=4.0))
    assert turns.before(life("plain", 100)) == Before(4, 400 + 4 * QUANTUM_TOKENS)
    assert turns.before(life("plain", 100, weight=4.0)) == Before(1, 100 + 4 * QUANTUM_TOKENS)


def test_work_counts_and_not_requests() -> None:
    turns = Turns()
    for _ in range(40):
        turns.add(life("long", 4000))
    for _ in range(400):
        turns.add(life("short", 100))
    served = work_by_tenant(serve(turns, 200))
    assert abs(served["long"] - served["short"]) <= 4000 + QUANTUM_TOKENS


def test_who_asks_for_what_is_cached_starves_nobody() -> None:
    turns = Turns()
    for _ in range(200):
        turns.add(life("cached", 0))
    for _ in range(10):
        turns.add(life("other"))
    served = Counter(one.generation.tenant for one in serve(turns, 100))
    assert served["other"] == 10
    assert served["cached"] == 90


def test_who_asked_nothing_for_a_while_has_saved_nothing() -> None:
    turns = Turns()
    for _ in range(50):
        turns.add(life("steady"))
    serve(turns, 30)
    for _ in range(50):
        turns.add(life("late"))
    served = work_by_tenant(serve(turns, 20))
    assert abs(served["steady"] - served["late"]) <= QUANTUM_TOKENS + 100


def test_three_tenants_share_alike() -> None:
    turns = Turns()
    for name, count in (("a", 300), ("b", 60), ("c", 60)):
        for _ in range(count):
            turns.add(life(name, 700))
    served = work_by_tenant(serve(turns, 90))
    assert max(served.values()) - min(served.values()) <= 700 + QUANTUM_TOKENS


def test_a_tenants_requests_go_by_priority_and_then_by_when_they_are_due() -> None:
    turns = Turns()
    late, soon, urgent, last = (
        life(due_s=9),
        life(due_s=1),
        life(due_s=99, priority=-1),
        life(due_s=9),
    )
    for one in (late, soon, urgent, last):
        turns.add(one)
    assert serve(turns, 4) == [urgent, soon, late, last]


def test_a_replay_goes_before_everybody() -> None:
    turns = Turns()
    turns.add(life("a", priority=-5))
    replayed = life("b")
    turns.put_first(replayed)
    assert turns.candidates() == [replayed]
    turns.take(replayed)
    assert replayed not in turns


def test_who_cannot_go_yet_has_not_lost_the_turn() -> None:
    turns = Turns()
    blocked = life("big", 400)
    turns.add(blocked)
    for _ in range(30):
        turns.add(life("small"))
    for _ in range(10):
        turns.take(next(one for one in turns.candidates() if one is not blocked))
    assert turns.candidates()[0] is blocked


@pytest.mark.parametrize("count", [1, 5])
def test_what_is_taken_or_removed_waits_no_more(count: int) -> None:
    turns = Turns()
    lives = [life("a") for _ in range(count)]
    for one in lives:
        turns.add(one)
    turns.remove(lives[0])
    turns.remove(lives[0])
    assert len(turns) == count - 1
    serve(turns, count - 1)
    assert list(turns) == []
    assert turns.tenants == set()


def test_before_a_request_are_its_tenants_that_rank_first_and_a_fair_share_of_the_others() -> None:
    turns = Turns()
    for _ in range(3):
        turns.add(life("own", 100, due_s=1.0))
    turns.add(life("own", 5000, due_s=200.0))
    for _ in range(100):
        turns.add(life("other", 100))
    own_work = 300 + 100
    assert turns.before(life("own", 100, due_s=2.0)) == Before(
        3 + 4, 300 + own_work + QUANTUM_TOKENS
    )


@pytest.mark.parametrize(
    ("own_s", "target_s", "due_s"),
    [
        (0.1, math.inf, 0.4),
        (20.0, math.inf, 80.0),
        (200.0, math.inf, 200.0),
        (299.0, math.inf, 2.0),
        (300.0, math.inf, 1200.0),
        (400.0, math.inf, 1600.0),
        (400.0, 500.0, 100.0),
        (0.1, 2.0, 0.4),
        (1.5, 2.0, 0.5),
        (3.0, 2.0, 12.0),
    ],
)
def test_a_prompt_is_due_by_its_cost_its_deadline_and_the_target(
    own_s: float, target_s: float, due_s: float
) -> None:
    """Its deadline is after 600 s."""
    assert when_due(life(), own_s, target_s) == pytest.approx(due_s)


def lines_of(work: Callable[[], object]) -> int:
    """How many lines of Python it takes."""
    count = 0

    def trace(_: FrameType, event: str, __: object) -> Any:
        nonlocal count
        count += event == "line"
        return trace

    before = sys.gettrace()
    sys.settrace(trace)
    try:
        work()
    finally:
        sys.settrace(before)
    return count


def test_who_leaves_the_line_is_not_looked_for_among_the_others() -> None:
    """Twelve clients that left with 2,048 prompts each held the event loop for nearly a second."""

    def cost(number: int) -> int:
        turns, lives = Turns(), [life() for _ in range(number)]
        for one in lives:
            turns.add(one)
        return lines_of(partial(turns.remove, lives[number // 2]))

    assert cost(2000) == cost(20)
