"""Which deployment is next: shares, limits a minute, cooling, and the way through groups."""

from __future__ import annotations

import heapq
import itertools
from collections import Counter
from typing import Any

import pytest

from coordinator.upstreams.deployments import groups_of
from coordinator.upstreams.journey import Journey, Trouble
from coordinator.upstreams.settings import (
    DeploymentSettings,
    Provider,
    RouterSettings,
    Strategy,
)


def place(name, group="g", **fields):
    return DeploymentSettings(
        deployment_id=name, group=group, provider=Provider.OPENAI, model="m", **fields
    )


def rules(*places, **fields):
    return RouterSettings(deployments=places, **fields)


def journey(settings, groups, name="g", tokens=10, may_use=lambda _: True):
    return Journey.begin(settings, groups, name, may_use, tokens)


def name_of(stop):
    return None if stop is None else stop.deployment_id


def stops(trip, now_s=0.0, trouble=Trouble.PLACE):
    found = []
    while (stop := trip.next_stop(now_s)) is not None:
        found.append(stop.deployment_id)
        trip.failed(trouble)
    return found


@pytest.mark.parametrize(
    ("fields", "expected"),
    [
        ([{"weight": 3}, {"weight": 1}, {"weight": 6}], [3000, 1000, 6000]),
        ([{"rpm": 10**6}, {"rpm": 3 * 10**6}], [2500, 7500]),
        ([{}, {}], [5000, 5000]),
        ([{"weight": 1}, {}], [10000, 0]),
        ([{"weight": 0}, {"weight": 0}], [5000, 5000]),
    ],
)
def test_shares_are_exact(fields, expected):
    places = [place(str(index), **told) for index, told in enumerate(fields)]
    settings = rules(*places)
    group = groups_of(settings)["g"]
    picked = Counter(name_of(group.pick((), 1, 0.0)) for _ in range(10000))
    for index, count in enumerate(expected):
        assert abs(picked[str(index)] - count) <= 1


def test_the_least_busy_is_picked():
    settings = rules(place("a"), place("b"), strategy=Strategy.LEAST_BUSY)
    group = groups_of(settings)["g"]
    group.deployments[0].begin(1, 0.0)
    assert name_of(group.pick((), 1, 0.0)) == "b"


def test_the_lowest_order_with_room_is_picked():
    settings = rules(place("a", order=2), place("b", order=1, max_parallel_requests=1))
    group = groups_of(settings)["g"]
    first = group.pick((), 1, 0.0)
    assert first is not None
    spent = first.begin(1, 0.0)
    assert (first.deployment_id, name_of(group.pick((), 1, 0.0))) == ("b", "a")
    first.succeeded(spent, 5, 0.0)
    assert name_of(group.pick((), 1, 0.0)) == "b"


def test_requests_a_minute_are_never_exceeded():
    group = groups_of(rules(place("a", rpm=3)))["g"]
    began = []
    for tick in range(3000):
        now_s = tick / 8
        if (stop := group.pick((), 1, now_s)) is not None:
            stop.begin(1, now_s)
            began.append(now_s)
    assert len(began) == 21
    assert all(late - early >= 60 for early, late in zip(began, began[3:], strict=False))


def test_it_says_when_there_is_room():
    group = groups_of(rules(place("a", rpm=1), place("b", tpm=100)))["g"]
    a, b = group.deployments
    a.begin(1, 10.0)
    spent = b.begin(90, 20.0)
    assert group.free_at_s(50, 30.0) == 70.0
    b.succeeded(spent, 40, 30.0)
    assert group.free_at_s(50, 30.0) == 30.0
    assert b.free_at_s(101, 30.0) == float("inf")


def test_more_failures_than_allowed_cool_a_place_that_has_another_beside_it():
    settings = rules(place("a"), place("b"), place("c", "lone"), allowed_fails=2, cooldown_s=7.0)
    groups = groups_of(settings)
    bad, lone = groups["g"].deployments[0], groups["lone"].deployments[0]
    for _ in range(3):
        assert not bad.is_cooling(1.0)
        for one in (bad, lone):
            one.begin(1, 1.0)
            one.failed("500", 1.0, settings)
    assert bad.is_cooling(7.9)
    assert not bad.is_cooling(8.0)
    assert not lone.is_cooling(1.0)
    assert {name_of(groups["g"].pick((), 1, 2.0)) for _ in range(9)} == {"b"}


def test_old_failures_are_forgotten():
    settings = rules(place("a"), place("b"), allowed_fails=1)
    bad = groups_of(settings)["g"].deployments[0]
    for now_s in (0.0, 61.0, 122.0):
        bad.begin(1, now_s)
        bad.failed("500", now_s, settings)
        assert not bad.is_cooling(now_s)


def test_a_place_says_itself_how_long_it_wants_to_be_left_alone():
    settings = rules(place("a"))
    lone = groups_of(settings)["g"].deployments[0]
    lone.begin(1, 0.0)
    lone.failed("429", 0.0, settings, 10**9)
    assert lone.is_cooling(3599.0)
    assert not lone.is_cooling(3600.0)


def test_others_are_tried_before_one_is_tried_again():
    settings = rules(place("a"), place("b", order=2), num_retries=3)
    assert stops(journey(settings, groups_of(settings))) == ["a", "b", "a", "a"]


def test_fallbacks_come_after_a_groups_own_tries_once_each():
    settings = rules(
        place("a"),
        place("b", "h"),
        place("c", "i"),
        num_retries=1,
        fallbacks={"g": ("h",), "h": ("i", "g")},
    )
    assert stops(journey(settings, groups_of(settings))) == ["a", "a", "b", "b", "c", "c"]


def test_no_more_fallbacks_than_allowed_and_none_that_a_key_may_not_use():
    places = [place(name, name) for name in "gabc"]
    settings = rules(*places, num_retries=0, max_fallbacks=2, fallbacks={"*": ("a", "b", "c")})
    groups = groups_of(settings)
    assert stops(journey(settings, groups)) == ["g", "a", "b"]
    assert stops(journey(settings, groups, may_use=lambda name: name != "a")) == ["g", "b", "c"]


def test_a_long_prompt_goes_to_its_own_fallbacks_only():
    settings = rules(
        place("a"),
        place("b", "h"),
        place("c", "i"),
        fallbacks={"g": ("h",)},
        context_fallbacks={"g": ("i",)},
    )
    trip = journey(settings, groups_of(settings))
    assert name_of(trip.next_stop(0.0)) == "a"
    assert trip.failed(Trouble.CONTEXT)
    assert name_of(trip.next_stop(0.0)) == "c"
    assert not trip.failed(Trouble.CONTEXT)


def test_without_lists_for_long_prompts_one_goes_to_the_usual_fallbacks():
    settings = rules(place("a"), place("b", "h"), fallbacks={"*": ("h",)})
    assert stops(journey(settings, groups_of(settings)), trouble=Trouble.CONTEXT) == ["a", "b"]


def test_a_list_for_another_groups_long_prompts_is_not_this_ones():
    settings = rules(
        place("a"), place("b", "h"), fallbacks={"g": ("h",)}, context_fallbacks={"h": ("g",)}
    )
    assert stops(journey(settings, groups_of(settings)), trouble=Trouble.CONTEXT) == ["a"]


def test_a_mistake_of_the_client_ends_the_way():
    settings = rules(place("a"), place("b"), fallbacks={"g": ("g",)})
    assert stops(journey(settings, groups_of(settings)), trouble=Trouble.REQUEST) == ["a"]


def test_a_full_group_is_left_for_its_fallback():
    settings = rules(place("a", rpm=1), place("b", "h"), fallbacks={"g": ("h",)})
    groups = groups_of(settings)
    groups["g"].deployments[0].begin(1, 0.0)
    assert name_of(journey(settings, groups).next_stop(1.0)) == "b"


@pytest.mark.parametrize("duration_s", [0.3, 2.0, 6.0])
def test_a_crowd_of_twice_as_many_as_a_group_may_have_is_served_when_told(duration_s):
    """Each comes back twice at most. All were told to come in a second, when nothing had ended yet."""
    settings = rules(place("a", max_parallel_requests=5), place("b", max_parallel_requests=5))
    groups = groups_of(settings)
    order = itertools.count()
    events: list[Any] = [(0.0, next(order), 3, None) for _ in range(20)]
    served = 0
    while events:
        now_s, _, tries, held = heapq.heappop(events)
        if held is not None:
            held[0].succeeded(held[1], 1, now_s)
            served += 1
            continue
        way = Journey.begin(settings, groups, "g", lambda _: True, 1)
        if (stop := way.next_stop(now_s)) is not None:
            end_s = now_s + duration_s
            heapq.heappush(events, (end_s, next(order), 0, (stop, stop.begin(1, now_s))))
        elif tries > 1:
            heapq.heappush(events, (way.promise_s(now_s), next(order), tries - 1, None))
    assert served >= 19


def test_callers_of_a_full_minute_are_told_one_after_the_other():
    groups = groups_of(rules(place("a", rpm=4)))
    place_a = groups["g"].deployments[0]
    for second in range(4):
        place_a.begin(1, second)
    assert [place_a.promise_s(1, 10.0) for _ in range(4)] == [60.0, 61.0, 62.0, 63.0]
    assert place_a.free_at_s(1, 10.0) == 60.0
