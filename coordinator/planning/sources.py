"""Where each run of a prompt's blocks comes from: whoever has it cheapest by what was measured, or computing. Owns the
choice; pure.

The least sum of seconds over all ways through the spans, which are blocks that the same workers have in the same tiers. Of ways
that end at the same source and have asked the same ones only the cheapest goes on. A run of one source pays once for the
question, and nobody is asked twice.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence, Set

    from coordinator.planning.read_costs import ReadCost

COMPUTE = ""
MOST_SOURCES = 4
"""Of those who have anything, so many that have most of it are looked at."""


@dataclass(frozen=True, slots=True)
class Span:
    """Tokens `begin` to `end`, and what reading them costs by who has them."""

    begin: int
    end: int
    costs: Mapping[str, ReadCost]


@dataclass(frozen=True, slots=True)
class SourceRun:
    """Tokens `begin` to `end` are read from `source`; computing them takes `worth_s`."""

    source: str
    begin: int
    end: int
    worth_s: float


@dataclass(frozen=True, slots=True)
class _Way:
    """A way through the spans so far: its seconds, the source of each span, and who was asked."""

    seconds: float
    sources: tuple[str, ...]
    asked: frozenset[str]

    @property
    def last(self) -> str:
        return self.sources[-1] if self.sources else COMPUTE


def plan_sources(spans: Sequence[Span], compute_s: Callable[[int, int], float]) -> list[SourceRun]:
    """The runs to read, in order, each source once; what lies between and behind them is computed. `compute_s(begin, end)`
    are the seconds that those tokens take."""
    asked = _with_most(spans)
    ways = [_Way(0.0, (), frozenset())]
    for span in spans:
        computed_s = compute_s(span.begin, span.end)
        reached: dict[tuple[str, frozenset[str]], _Way] = {}
        for way in ways:
            for longer in _next(way, span, computed_s, asked):
                key = (longer.last, longer.asked)
                if key not in reached or longer.seconds < reached[key].seconds:
                    reached[key] = longer
        ways = list(reached.values())
    best = min(ways, key=lambda way: way.seconds)
    return _runs(spans, best.sources, compute_s)


def _with_most(spans: Sequence[Span]) -> set[str]:
    """Of several that have as much, those that are cheapest for all of it."""
    tokens: Counter[str] = Counter()
    seconds: defaultdict[str, float] = defaultdict(float)
    for span in spans:
        for source, cost in span.costs.items():
            tokens[source] += span.end - span.begin
            seconds[source] += cost.seconds(span.end - span.begin)
    return set(sorted(tokens, key=lambda s: (-tokens[s], seconds[s]))[:MOST_SOURCES])


def _next(way: _Way, span: Span, computed_s: float, asked: Set[str]) -> Iterator[_Way]:
    """How the way may go on. A source that was left is not asked again."""
    yield _Way(way.seconds + computed_s, (*way.sources, COMPUTE), way.asked)
    size = span.end - span.begin
    for source, cost in span.costs.items():
        if source == way.last:
            yield _Way(way.seconds + cost.token_s * size, (*way.sources, source), way.asked)
        elif source in asked and source not in way.asked:
            seconds = way.seconds + cost.seconds(size)
            yield _Way(seconds, (*way.sources, source), way.asked | {source})


def _runs(
    spans: Sequence[Span], sources: Sequence[str], compute_s: Callable[[int, int], float]
) -> list[SourceRun]:
    runs: list[tuple[str, int, int]] = []
    for span, source in zip(spans, sources, strict=True):
        if runs and runs[-1][0] == source and runs[-1][2] == span.begin:
            runs[-1] = (source, runs[-1][1], span.end)
        else:
            runs.append((source, span.begin, span.end))
    return [
        SourceRun(source, begin, end, compute_s(begin, end))
        for source, begin, end in runs
        if source != COMPUTE
    ]
