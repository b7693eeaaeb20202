"""The search over shapes of the pools."""

from __future__ import annotations

import pytest

from simulation.sizing import Point, Sizing


def hill(need_prefill: float, need_decode: float):
    """Each role attains in proportion, up to 1."""

    def measure(prefill: int, decode: int) -> Point:
        ttft, tpot = min(prefill / need_prefill, 1.0), min(decode / need_decode, 1.0)
        return Point(prefill, decode, min(ttft, tpot), ttft, tpot)

    return measure


@pytest.mark.parametrize(("prefill", "decode"), [(1, 1), (3, 1), (1, 5), (7, 4), (12, 12)])
def test_the_fewest_of_both_are_found(prefill, decode) -> None:
    best = Sizing(hill(prefill, decode), 1.0, 32).best()
    assert best is not None
    assert (best.prefill, best.decode) == (prefill, decode)


def test_every_shape_is_measured_once() -> None:
    seen: list[tuple[int, int]] = []
    slope = hill(5, 3)

    def measure(prefill: int, decode: int) -> Point:
        seen.append((prefill, decode))
        return slope(prefill, decode)

    sizing = Sizing(measure, 1.0, 32)
    sizing.best()
    assert len(seen) == len(set(seen)) == len(sizing.points)


def test_no_shape_is_larger_than_allowed() -> None:
    sizing = Sizing(hill(40, 1), 1.0, 16)
    assert sizing.best() is None
    assert max(point.workers for point in sizing.points) <= 16


def test_decode_that_relieves_prefill_is_traded() -> None:
    """Two prefill workers less for one decode worker more, where that attains the goal."""

    def measure(prefill: int, decode: int) -> Point:
        share = 1.0 if prefill + 2.5 * decode >= 8.5 else 0.5
        return Point(prefill, decode, share, share, 1.0)

    best = Sizing(measure, 1.0, 20).best()
    assert best is not None
    assert best.workers <= 5
