"""Windows, budgets and parallel requests of one key: never more than the limit, true waits, clocks that jump."""

from __future__ import annotations

import heapq
import itertools
import math
import random

import pytest

from coordinator.accounts.limits import Budget, KeyMeter, spell_duration
from coordinator.accounts.prices import Prices, parse_price
from coordinator.accounts.terms import KeyTerms, make_key
from coordinator.planning.windows import Window
from protocol.errors import LimitReached


def meter_of(**terms) -> KeyMeter:
    return KeyMeter(make_key(KeyTerms(**terms), 1000.0).record)


def test_no_sixty_seconds_hold_more_than_the_limit():
    chance, window = random.Random(7), Window(10)
    now_s, taken = 0.0, []
    for _ in range(2000):
        now_s += chance.expovariate(1.0)
        wait_s = window.wait_s(1, now_s)
        if wait_s == 0.0:
            window.add(1, now_s)
            taken.append(now_s)
        else:
            assert window.wait_s(1, now_s + wait_s - 0.01) > 0.0
            now_s += wait_s + 1e-9
            assert window.wait_s(1, now_s) == 0.0
    for first in taken:
        assert sum(first <= at_s < first + 60 for at_s in taken) <= 10


def test_an_entry_that_left_the_window_changes_nothing():
    window = Window(10)
    entry = window.add(8, 0.0)
    assert window.used(61.0) == 0
    window.change(entry, 3)
    window.remove(entry)
    assert window.used(61.0) == 0


def test_what_never_fits_says_so_and_need_not_come_back():
    meter = meter_of(tokens_per_minute=100)
    with pytest.raises(LimitReached) as raised:
        meter.reserve(101, 0, 0.0, 1000.0)
    assert math.isinf(raised.value.retry_after_s)
    assert not raised.value.may_retry


def test_the_truth_takes_the_reservations_place():
    meter = meter_of(tokens_per_minute=100, requests_per_minute=9)
    held = meter.reserve(90, 0, 0.0, 1000.0)
    with pytest.raises(LimitReached) as raised:
        meter.reserve(20, 0, 1.0, 1001.0)
    assert raised.value.retry_after_s == pytest.approx(59.0)
    meter.settle(held, 30, 30, 0, 1.0, 1001.0)
    meter.reserve(70, 0, 1.0, 1001.0)
    assert meter.headers(1.0)["x-ratelimit-remaining-tokens"] == "0"
    assert meter.headers(1.0)["x-ratelimit-remaining-requests"] == "7"
    assert meter.headers(1.0)["x-ratelimit-reset-requests"] == "1m0s"


def test_what_is_refused_after_all_was_never_there():
    meter = meter_of(
        tokens_per_minute=100, requests_per_minute=1, parallel_requests=1, budget_tokens=100
    )
    for _ in range(3):
        meter.cancel(meter.reserve(100, 0, 0.0, 1000.0), 0.0)
    assert meter.running == 0


def test_requests_at_once_are_counted():
    meter = meter_of(parallel_requests=2)
    first = meter.reserve(1, 0, 0.0, 0.0)
    meter.reserve(1, 0, 0.0, 0.0)
    with pytest.raises(LimitReached):
        meter.reserve(1, 0, 0.0, 0.0)
    meter.settle(first, 1, 1, 0, 0.0, 0.0)
    meter.reserve(1, 0, 0.0, 0.0)


def test_a_spent_budget_names_its_next_period_and_asks_for_no_retry():
    meter = meter_of(budget_tokens=100, budget_period_s=3600.0)
    held = meter.reserve(100, 0, 0.0, 1000.0)
    with pytest.raises(LimitReached) as raised:
        meter.reserve(1, 0, 0.0, 1000.0)
    assert raised.value.may_retry  # what runs may leave something
    meter.settle(held, 100, 100, 0, 600.0, 1600.0)
    with pytest.raises(LimitReached) as raised:
        meter.reserve(1, 0, 0.0, 1600.0)
    assert (raised.value.may_retry, raised.value.code) == (False, "insufficient_quota")
    assert raised.value.retry_after_s == pytest.approx(3000.0)
    meter.reserve(100, 0, 0.0, 4600.0)


def test_money_is_held_at_its_worst_and_settled_at_its_price():
    price = Prices(["tiny=0.0375/2"]).of("tiny")
    meter = meter_of(budget=0.001)
    worst = price.cost_nano(1000, 0, 400)
    assert worst == 37_500 + 800_000
    held = meter.reserve(1400, worst, 0.0, 1000.0)
    meter.settle(held, 1400, 1400, price.cost_nano(1000, 0, 10), 0.0, 1000.0)
    assert meter.money is not None
    assert (meter.money.spent, meter.money.reserved) == (57_500, 0)


def test_a_clock_that_goes_back_begins_no_earlier_period():
    budget = Budget(100, 3600.0, 1000.0)
    assert budget.begin_of(1000.0 + 7300.0) == 8200.0
    budget.spent = 100
    assert not budget.fits(1, 500.0)
    assert not budget.fits(1, 8300.0)
    assert budget.fits(100, 11_800.0)


def test_entries_from_before_the_start_count_by_their_age():
    meter = meter_of(requests_per_minute=3, tokens_per_minute=1000)
    for age_s in (70.0, 30.0, -5.0):
        meter.restore(age_s, 100, 500.0)
    assert meter.requests is not None
    assert meter.tokens is not None
    assert (meter.requests.used(500.0), meter.tokens.used(500.0)) == (2, 200)
    assert meter.requests.used(531.0) == 1


@pytest.mark.parametrize(
    ("seconds", "spelled"),
    [(0, "0s"), (0.02, "20ms"), (1.5, "1.5s"), (59.999, "59.999s"), (360, "6m0s"), (-1, "0s")],
)
def test_durations_are_spelled_as_clients_read_them(seconds, spelled):
    assert spell_duration(seconds) == spelled


@pytest.mark.parametrize(
    "text",
    ["tiny", "tiny=1", "=1/2", "tiny=a/b", "tiny=-1/2", "tiny=1/2/3/4", "tiny=nan/1", "t=1e-9/1"],
)
def test_what_is_no_price_is_refused(text):
    with pytest.raises(ValueError, match=r"price|number|outside|decimals"):
        parse_price(text)


def test_any_other_model_has_the_price_of_the_star():
    prices = Prices(["a=b=1/2/4", "*=8/8"])
    assert prices.of("a=b").cost_nano(10, 4, 1) == 6000 + 8000 + 4000
    assert prices.of("c").cost_nano(1, 1, 1) == 16_000
    assert Prices(()).of("c").cost_nano(9, 9, 9) == 0


# ---- a crowd with one key


def crowd(meter, count, duration_s, tokens=1, apart_s=0.0):
    """How many of so many callers are served who come back twice, each when told; an answer takes `duration_s`."""
    order = itertools.count()
    events = [(index * apart_s, next(order), "asks", 3) for index in range(count)]
    heapq.heapify(events)
    served = 0
    while events:
        now_s, _, what, detail = heapq.heappop(events)
        if what == "ends":
            meter.settle(detail, tokens, tokens, 0, now_s, now_s)
            served += 1
            continue
        try:
            held = meter.reserve(tokens, 0, now_s, now_s)
        except LimitReached as reached:
            if detail > 1 and reached.retry_after_s <= 60:
                again_s = now_s + math.ceil(reached.retry_after_s * 1000) / 1000
                heapq.heappush(events, (again_s, next(order), "asks", detail - 1))
        else:
            heapq.heappush(events, (now_s + duration_s, next(order), "ends", held))
    return served


@pytest.mark.parametrize("duration_s", [0.2, 1.0, 3.0, 8.0, 15.0])
@pytest.mark.parametrize("most", [4, 16])
def test_a_key_that_asks_twice_as_much_at_once_as_it_may_is_served(most, duration_s):
    """All were told to come back in a second, thrice; the answers before theirs took longer."""
    assert crowd(meter_of(parallel_requests=most), 2 * most, duration_s) >= 0.95 * 2 * most


def test_callers_of_a_full_minute_are_told_one_after_the_other():
    """Requests had come one a second; then sixty at once were all told the same second, in which one of them fits."""
    meter = meter_of(requests_per_minute=60)
    for second in range(60):
        meter.settle(meter.reserve(1, 0, second, second), 1, 1, 0, second, second)
    told = []
    for _ in range(60):
        with pytest.raises(LimitReached) as raised:
            meter.reserve(1, 0, 59.5, 59.5)
        told.append(raised.value.retry_after_s)
    assert told == [pytest.approx(0.5 + index) for index in range(60)]


def test_a_minute_of_tokens_is_promised_once():
    meter = meter_of(tokens_per_minute=100)
    for second in (0.0, 30.0):
        meter.reserve(50, 0, second, second)
    told = []
    for amount in (50, 50, 100):
        with pytest.raises(LimitReached) as raised:
            meter.reserve(amount, 0, 40.0, 40.0)
        told.append(raised.value.retry_after_s)
    assert told == [pytest.approx(20.0), pytest.approx(50.0), pytest.approx(110.0)]


def test_who_asks_again_and_again_is_kept_one_window_of_places():
    window = Window(10)
    for _ in range(10):
        window.add(1, 0.0)
    assert {window.promise_s(1, 1.0) for _ in range(1000)} == {59.0, 119.0}
    assert window.wait_s(1, 60.0) == 0.0
