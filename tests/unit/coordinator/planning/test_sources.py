"""Where each run of a prompt's blocks comes from: the plan is the cheapest there is, by trying every one."""

from __future__ import annotations

import itertools

from hypothesis import given, settings
from hypothesis import strategies as st

from coordinator.planning.read_costs import ReadCost
from coordinator.planning.sources import SourceRun, Span, plan_sources

QUICK, SLOW = ReadCost(1.0, 0.1), ReadCost(5.0, 0.3)


def compute_s(begin: int, end: int) -> float:
    """A token costs more, the more are before it."""
    return (end - begin) + 0.001 * (end * end - begin * begin) / 2


def runs(*spans: Span) -> list[tuple[str, int, int]]:
    return [(run.source, run.begin, run.end) for run in plan_sources(spans, compute_s)]


def test_nothing_that_nobody_has_is_read() -> None:
    assert runs(Span(0, 16, {}), Span(16, 32, {})) == []


def test_the_cheapest_of_those_who_have_a_run_is_asked() -> None:
    assert runs(Span(0, 64, {"a": SLOW, "b": QUICK})) == [("b", 0, 64)]


def test_neighbouring_spans_of_one_source_are_one_run() -> None:
    assert runs(Span(0, 16, {"a": QUICK}), Span(16, 32, {"a": QUICK, "b": SLOW})) == [("a", 0, 32)]


def test_what_is_missing_in_the_middle_is_left_to_be_computed() -> None:
    spans = (Span(0, 32, {"a": QUICK}), Span(32, 48, {}), Span(48, 96, {"b": QUICK}))
    assert runs(*spans) == [("a", 0, 32), ("b", 48, 96)]


def test_what_costs_more_than_computing_is_computed() -> None:
    assert runs(Span(0, 32, {"a": ReadCost(0.0, 2.0)})) == []


def test_another_source_is_not_worth_a_question_for_a_few_tokens() -> None:
    spans = (Span(0, 64, {"a": QUICK}), Span(64, 65, {"b": SLOW}))
    assert runs(*spans) == [("a", 0, 64)]


def test_slow_tier_of_a_source_is_left_out_and_its_quick_one_read() -> None:
    spans = (Span(0, 32, {"a": QUICK}), Span(32, 64, {"a": ReadCost(1.0, 3.0)}))
    assert runs(*spans) == [("a", 0, 32)]


def test_a_run_says_what_computing_it_takes() -> None:
    assert plan_sources([Span(16, 32, {"a": QUICK})], compute_s) == [
        SourceRun("a", 16, 32, compute_s(16, 32))
    ]


COSTS = st.builds(ReadCost, st.floats(0.0, 8.0), st.floats(0.0, 2.0))
HOLDERS = st.dictionaries(st.sampled_from("abc"), COSTS, max_size=3)


@settings(max_examples=60, deadline=None)
@given(st.lists(st.tuples(st.integers(1, 9), HOLDERS), max_size=5))
def test_no_other_plan_is_cheaper(lengths: list[tuple[int, dict[str, ReadCost]]]) -> None:
    spans, at = [], 0
    for length, holders in lengths:
        spans.append(Span(at, at + length, holders))
        at += length
    chosen = plan_sources(spans, compute_s)
    ways = itertools.product(*(["", *span.costs] for span in spans))
    least = min(_seconds(spans, way) for way in ways if _asks_once(way))
    assert _seconds(spans, _way_of(spans, chosen)) <= least + 1e-9


def _asks_once(way: tuple[str, ...]) -> bool:
    groups = [source for source, _ in itertools.groupby(way) if source]
    return len(groups) == len(set(groups))


def _seconds(spans: list[Span], way: tuple[str, ...]) -> float:
    total, before = 0.0, ""
    for span, source in zip(spans, way, strict=True):
        size = span.end - span.begin
        if not source:
            total += compute_s(span.begin, span.end)
        elif source == before:
            total += span.costs[source].token_s * size
        else:
            total += span.costs[source].seconds(size)
        before = source
    return total


def _way_of(spans: list[Span], chosen: list[SourceRun]) -> tuple[str, ...]:
    def source_of(span: Span) -> str:
        found = (r.source for r in chosen if r.begin <= span.begin and span.end <= r.end)
        return next(found, "")

    return tuple(map(source_of, spans))
