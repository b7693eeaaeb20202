"""Which revision answers: shares that are kept, conversations that stay, and what other weights move."""

from __future__ import annotations

from collections import Counter

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from coordinator.cluster import traffic_split
from coordinator.cluster.traffic_split import LEAD, Affinity, TrafficSplit

NAMES = ("v1", "v2", "v3")


def new(number: int) -> Affinity:
    return Affinity(f"conversation {number}")


@pytest.mark.parametrize("weights", [(90, 10), (50, 50), (99, 1), (1, 2, 7), (3, 0, 3)])
@pytest.mark.parametrize("has_keys", [True, False])
def test_ten_thousand_requests_are_within_one_per_cent(
    weights: tuple[float, ...], has_keys: bool
) -> None:
    shares = dict(zip(NAMES, weights, strict=False))
    split = TrafficSplit(shares)
    keys = [new(number) if has_keys else Affinity() for number in range(10_000)]
    got = Counter(split.choose(key, NAMES) for key in keys)
    for name, weight in shares.items():
        assert abs(got[name] - 10_000 * weight / sum(weights)) < 100


def test_a_conversation_stays_where_it_began() -> None:
    split = TrafficSplit({"v1": 50, "v2": 50})
    first = [split.choose(new(number), NAMES) for number in range(2_000)]
    assert [split.choose(new(number), NAMES) for number in range(2_000)] == first


def test_who_waits_for_its_revision_is_served_elsewhere_and_comes_back() -> None:
    split = TrafficSplit({"v1": 50, "v2": 50})
    homes = {number: split.choose(new(number), NAMES) for number in range(200)}
    assert {split.choose(new(number), ["v1"]) for number in homes} == {"v1"}
    assert {number: split.choose(new(number), NAMES) for number in homes} == homes


def test_nobody_is_ready_then_all_count_as_ready() -> None:
    split = TrafficSplit({"v1": 50, "v2": 50, "v3": 0})
    assert {split.choose(new(number), ()) for number in range(100)} == {"v1", "v2"}


def test_other_weights_move_only_who_must_move() -> None:
    split = TrafficSplit({"v1": 90, "v2": 10})
    homes = {number: split.choose(new(number), NAMES) for number in range(1_000)}
    split.weigh({"v1": 50, "v2": 50})
    assert {number: split.choose(new(number), NAMES) for number in homes} == homes
    split.weigh({"v1": 0, "v2": 100})
    assert {split.choose(new(number), NAMES) for number in homes} == {"v2"}


def test_a_coordinator_that_starts_again_sends_what_goes_on_where_it_was() -> None:
    weights = {"v1": 90, "v2": 10}
    before, after = TrafficSplit(weights), TrafficSplit(weights)
    homes = {number: before.choose(new(number), NAMES) for number in range(2_000)}
    again = {
        n: after.choose(Affinity(f"conversation {n}", is_continued=True), NAMES) for n in homes
    }
    moved = sum(homes[number] != again[number] for number in homes)
    assert moved < 0.03 * len(homes)


def test_more_conversations_than_are_remembered_forget_the_oldest(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(traffic_split, "MAX_REMEMBERED", 10)
    split = TrafficSplit({"v1": 1, "v2": 1})
    for number in range(1_000):
        split.choose(new(number), NAMES)
    last = {number: split.choose(new(number), NAMES) for number in range(995, 1_000)}
    assert {number: split.choose(new(number), NAMES) for number in last} == last


class Plain:
    """The rules, written again without a hash: where a new conversation may go."""

    def __init__(self) -> None:
        self.homes: dict[str, str] = {}
        self.counts: Counter[str] = Counter()
        self.able: frozenset[str] = frozenset()

    def check(self, key: str, chosen: str, weights: dict[str, int], ready: set[str]) -> None:
        weighted = {name for name, weight in weights.items() if weight}
        able = frozenset(weighted & ready or weighted)
        if able != self.able:
            self.able, self.counts = able, Counter()
        assert chosen in able
        home = self.homes.get(key)
        if home in able:
            assert chosen == home
        elif home is None or not weights.get(home):
            self.homes[key] = chosen
        self.counts[chosen] += 1


@given(st.data())
@settings(max_examples=60, deadline=None)
def test_no_history_breaks_the_rules(data: st.DataObject) -> None:
    positive = st.lists(st.integers(0, 9), min_size=3, max_size=3).filter(any)
    weights = dict(zip(NAMES, data.draw(positive), strict=True))
    split, plain, ready = TrafficSplit(weights), Plain(), set(NAMES)
    for _ in range(data.draw(st.integers(1, 40))):
        match data.draw(st.sampled_from(("ask", "ask", "ask", "weigh", "ready"))):
            case "ask":
                key = str(data.draw(st.integers(0, 12)))
                plain.check(key, split.choose(Affinity(key), ready), weights, ready)
            case "weigh":
                weights = dict(zip(NAMES, data.draw(positive), strict=True))
                split.weigh(weights)
                plain.able = frozenset()
            case "ready":
                ready = data.draw(st.sets(st.sampled_from(NAMES)))


@given(st.lists(st.integers(1, 99), min_size=2, max_size=3), st.integers(1, 600))
@settings(max_examples=50, deadline=None)
def test_no_revision_is_ever_far_ahead_of_its_share(weights: list[int], count: int) -> None:
    shares = dict(zip(NAMES, weights, strict=False))
    split, got = TrafficSplit(shares), Counter[str]()
    for number in range(1, count + 1):
        got[split.choose(new(number), NAMES)] += 1
        for name, weight in shares.items():
            assert got[name] - number * weight / sum(weights) <= LEAD + 1


def test_weights_of_one_key_are_fair_over_many_keys_without_any_correction(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(traffic_split, "LEAD", float("inf"))
    split = TrafficSplit({"v1": 75, "v2": 25})
    got = Counter(split.choose(new(number), NAMES) for number in range(4_000))
    assert 0.22 < got["v2"] / 4_000 < 0.28
