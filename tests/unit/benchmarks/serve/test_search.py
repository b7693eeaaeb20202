"""The search for the highest rate, against servers whose limit is known."""

from __future__ import annotations

import pytest

from benchmarks.serve.search import MAX_TRIALS, RateSearch


def run(search: RateSearch, limit: float) -> RateSearch:
    """A server that keeps the SLO up to `limit` requests a second."""
    while (rate := search.next_rate()) is not None:
        search.record(rate, 0.95 if rate <= limit else 0.5)
    return search


@pytest.mark.parametrize("limit", [0.07, 0.9, 1.0, 3.3, 47.0])
def test_the_answer_is_below_the_limit(limit: float) -> None:
    best = run(RateSearch(start=1.0), limit).best
    assert best is not None
    assert best <= limit


@pytest.mark.parametrize("limit", [0.07, 0.9, 1.0, 3.3, 47.0])
def test_the_answer_is_as_close_as_was_asked(limit: float) -> None:
    best = run(RateSearch(start=1.0, precision=0.02), limit).best
    assert best is not None
    assert best * 1.02 >= limit


def test_rates_double_until_one_fails() -> None:
    trials = run(RateSearch(start=1.0), limit=5.0).trials
    assert [trial.rate for trial in trials[:4]] == [1.0, 2.0, 4.0, 8.0]


def test_a_server_that_never_fails_is_not_bounded() -> None:
    assert not run(RateSearch(start=1.0, max_rate=10.0), limit=100.0).is_bounded


def test_no_rate_above_the_highest_is_tried() -> None:
    trials = run(RateSearch(start=1.0, max_rate=10.0), limit=100.0).trials
    assert max(trial.rate for trial in trials) == 10.0


def test_a_server_that_keeps_nothing_has_no_rate() -> None:
    assert run(RateSearch(start=1.0), limit=0.0).best is None


def test_a_pass_above_a_failure_does_not_count() -> None:
    search = RateSearch(start=1.0)
    for rate, share in ((1.0, 0.95), (2.0, 0.5), (4.0, 0.95)):
        search.record(rate, share)
    assert search.best == 1.0


def test_the_target_share_is_kept() -> None:
    search = RateSearch(start=1.0, target=0.99)
    search.record(1.0, 0.95)
    assert search.best is None


def test_an_undecided_server_ends_the_search() -> None:
    search = RateSearch(start=1.0, precision=0.0)
    assert len(run(search, limit=3.3).trials) == MAX_TRIALS


def test_a_rate_at_which_the_client_was_late_says_nothing_of_the_server() -> None:
    search = RateSearch(8.0)
    search.record(8.0, 1.0, reliable=False)
    search.record(4.0, 1.0)
    assert (search.best, search.is_bounded) == (4.0, False)


def test_a_client_that_stays_late_ends_the_search() -> None:
    search = RateSearch(8.0)
    for _ in range(3):
        rate = search.next_rate()
        assert rate is not None
        search.record(rate, 1.0, reliable=False)
    assert search.next_rate() is None
