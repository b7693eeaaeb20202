"""What reading costs, by what readers told: a line through it, as long as it is fresh."""

from __future__ import annotations

import pytest

from coordinator.planning.read_costs import (
    DOUBTED_SHARE,
    MOST_RETRY_S,
    PRIOR_SHARE,
    RETRY_S,
    ReadCosts,
)

TOKEN_S = 1e-3


class Reads:
    """Of one store; computing a token takes TOKEN_S."""

    def __init__(self) -> None:
        self.costs = ReadCosts()
        self.now_s = 1000.0

    def tell(self, tokens: int, seconds: float, *, from_disk: bool = False) -> None:
        self.costs.told(
            "s", tokens, seconds, self.now_s, from_disk=from_disk, computing_s=1000 * TOKEN_S
        )

    @property
    def patience(self) -> float:
        return self.costs.patience("s", self.now_s)

    def seconds(self, tokens: int, *, from_disk: bool = False) -> float:
        return self.costs.cost("s", self.now_s, TOKEN_S, from_disk=from_disk).seconds(tokens)


def test_unknown_source_is_taken_to_be_quicker_than_computing() -> None:
    assert Reads().seconds(1000) == pytest.approx(TOKEN_S + 1000 * PRIOR_SHARE * TOKEN_S)


def test_two_lengths_tell_the_question_from_the_tokens() -> None:
    reads = Reads()
    for tokens in (100, 900):
        reads.tell(tokens, 0.02 + tokens * 1e-4)
    assert reads.seconds(0) == pytest.approx(0.02)
    assert reads.seconds(500) == pytest.approx(0.07)


def test_one_length_is_all_by_the_token() -> None:
    reads = Reads()
    reads.tell(500, 0.1)
    assert reads.seconds(1000) == pytest.approx(0.2)


def test_lengths_that_are_nearly_one_say_nothing_of_a_short_run() -> None:
    """The first read of a source connects to it; the next one is quicker. None of it is the price of the question."""
    reads = Reads()
    reads.tell(2080, 0.4)
    reads.tell(2096, 0.1)
    assert reads.seconds(48) < 0.01


def test_tiers_are_told_apart() -> None:
    reads = Reads()
    reads.tell(500, 0.9, from_disk=True)
    assert reads.seconds(500, from_disk=True) == pytest.approx(0.9)
    assert reads.seconds(500) < 0.1


def test_answer_that_never_came_costs_its_wait() -> None:
    reads = Reads()
    reads.tell(0, 1.5)
    assert reads.seconds(1) == reads.seconds(1000) == pytest.approx(1.5)


def test_neither_part_is_ever_negative() -> None:
    reads = Reads()
    for tokens, seconds in ((100, 0.9), (900, 0.1), (500, 0.5)):
        reads.tell(tokens, seconds)
    assert 0 <= reads.seconds(0) <= reads.seconds(2000)


def test_old_figures_do_not_count() -> None:
    reads = Reads()
    reads.tell(500, 0.5)
    reads.now_s += RETRY_S + 1
    assert reads.seconds(500) < 0.1


def test_source_that_stays_slow_is_tried_ever_more_rarely() -> None:
    reads, waits = Reads(), []
    for _ in range(8):
        reads.tell(0, 5.0)
        began_s = reads.now_s
        while reads.seconds(100) > 1.0:
            reads.now_s += 1.0
        waits.append(reads.now_s - began_s)
    assert waits == sorted(waits)
    assert waits[-1] > 8 * waits[0]
    assert waits[-1] <= MOST_RETRY_S + 1


def test_worker_that_left_is_unknown() -> None:
    reads = Reads()
    reads.tell(0, 5.0)
    reads.costs.forget("s")
    assert reads.seconds(100) < 0.1


def test_who_lets_one_wait_for_nothing_is_not_asked_again_for_what_it_did_before() -> None:
    """A disk that stalls after many quick reads costs one prompt, and not one for each of those."""
    reads = Reads()
    for tokens in (100, 900) * 8:
        reads.tell(tokens, tokens * 1e-4, from_disk=True)
    reads.tell(0, 1.5, from_disk=True)
    assert reads.seconds(1000, from_disk=True) > 1000 * TOKEN_S


def test_a_source_that_says_at_once_that_it_has_nothing_is_asked_again() -> None:
    reads = Reads()
    for tokens in (100, 900) * 8:
        reads.tell(tokens, tokens * 1e-4)
    reads.tell(0, 0.002)
    assert reads.seconds(1000) < 0.2


def test_who_was_slow_is_waited_for_briefly_when_it_is_tried_again_and_not_once_it_was_quick() -> (
    None
):
    reads = Reads()
    assert reads.patience == 1.0
    reads.tell(0, 1.0, from_disk=True)
    assert reads.patience == 1.0, "nobody asks it now"
    reads.now_s += 2 * RETRY_S + 1
    assert reads.patience == DOUBTED_SHARE
    reads.tell(500, 0.02, from_disk=True)
    assert reads.patience == 1.0


def test_who_gives_nothing_in_that_time_either_is_left_alone_for_longer() -> None:
    reads = Reads()
    reads.tell(0, 1.0, from_disk=True)
    reads.now_s += 2 * RETRY_S + 1
    reads.tell(0, DOUBTED_SHARE, from_disk=True)
    reads.now_s += 2 * RETRY_S + 1
    assert reads.seconds(999, from_disk=True) > 999 * TOKEN_S
    reads.now_s += 2 * RETRY_S
    assert reads.seconds(999, from_disk=True) < 0.2
