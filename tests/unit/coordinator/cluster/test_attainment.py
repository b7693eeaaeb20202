"""What counts as held, and for how long."""

from __future__ import annotations

import msgspec
import pytest

from coordinator.cluster.attainment import SPAN_S, WINDOW_S, Attainment
from coordinator.planning.demand import FinishedRequest
from coordinator.planning.observations import Targets


class Clock:
    def __init__(self) -> None:
        self.at_s = 100.0

    def now_s(self) -> float:
        return self.at_s


def request(ttft_s: float, tpot_s: float, tokens: int = 11) -> FinishedRequest:
    return FinishedRequest(
        worker="p",
        is_prefilled_apart=True,
        num_prompt_tokens=8,
        num_output_tokens=tokens,
        submitted_s=10.0,
        dispatched_s=10.0,
        first_s=10.0 + ttft_s,
        last_s=10.0 + ttft_s + tpot_s * (tokens - 1),
        prefill_s=0.1,
        prefix_fetch_s=0.0,
        replays=0,
    )


def test_without_an_slo_nothing_is_told() -> None:
    book = Attainment(Clock())
    book.finished(request(1.0, 0.05))
    assert book.view() is None


def test_shares_are_of_all_that_came_and_goodput_is_what_held_both() -> None:
    clock = Clock()
    book = Attainment(clock)
    book.judge_by(Targets(2.0, 0.1, 0.9))
    clock.at_s += 50.0
    for ttft_s, tpot_s in ((1.0, 0.05), (1.9, 0.09), (3.0, 0.05), (1.0, 0.2)):
        book.finished(request(ttft_s, tpot_s))
    book.finished(request(0.5, 0.0, tokens=1))
    book.refused(2)
    book.failed()
    view = book.view()
    assert view is not None
    assert (view["requests"], view["refused"], view["failed"]) == (8, 2, 1)
    assert view["attained"] == 3 / 8
    assert view["ttft_attained"] == 4 / 8
    assert view["tpot_attained"] == 4 / 5
    assert view["goodput_per_s"] == pytest.approx(3 / 50)
    assert (view["ttft_ms"], view["tpot_ms"], view["goal"]) == (2000.0, 100.0, 0.9)


def test_what_is_older_than_the_window_is_forgotten_and_memory_is_bounded() -> None:
    clock = Clock()
    book = Attainment(clock)
    book.judge_by(Targets(2.0, 0.1))
    for _ in range(3 * int(WINDOW_S)):
        book.finished(request(1.0, 0.05))
        clock.at_s += 1.0
    view = book.view()
    assert view is not None
    assert WINDOW_S - SPAN_S <= view["requests"] <= WINDOW_S + SPAN_S
    assert len(book._spans) <= WINDOW_S / SPAN_S + 2
    clock.at_s += WINDOW_S + SPAN_S
    assert msgspec.json.decode(msgspec.json.encode(book.view()))["attained"] is None


def test_another_slo_judges_what_comes_after_it() -> None:
    book = Attainment(Clock())
    book.judge_by(Targets(2.0, 0.1))
    book.finished(request(1.0, 0.05))
    book.judge_by(Targets(0.5, 0.1))
    book.finished(request(1.0, 0.05))
    view = book.view()
    assert view is not None
    assert view["attained"] == 0.5
