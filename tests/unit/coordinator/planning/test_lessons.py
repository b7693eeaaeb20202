"""Blame needs proof beyond chance, misses that workers could have prevented, and a lesson that helped."""

from __future__ import annotations

import random

import pytest

from coordinator.planning.lessons import CHANCE, Lessons, binomial_tail, is_beyond_chance
from coordinator.planning.observations import Held
from protocol.roles import Role
from tests.unit.coordinator.planning.planner_rig import observe, sights

LOOK_S = 2.0


def look(lessons: Lessons, now_s: float, *, workers: int, misses: float) -> None:
    """Five looks, of which the fifth decides."""
    for tick in range(5):
        seen = observe(now_s + tick * LOOK_S, workers=sights(prefill=workers, decode=1))
        lessons.judge(seen, Role.PREFILL, 1.0, Held(100, 1.0 - misses, misses))


@pytest.mark.parametrize("count", [20, 60, 500])
@pytest.mark.parametrize("chance", [0.01, 0.1, 0.5])
def test_the_tail_is_that_of_a_binomial(count: int, chance: float) -> None:
    draw = random.Random(count)
    sums = [sum(draw.random() < chance for _ in range(count)) for _ in range(4000)]
    for least in (0, 1, count // 10, int(count * chance) + 1, count):
        seen = sum(number >= least for number in sums) / len(sums)
        assert binomial_tail(count, chance, least) == pytest.approx(seen, abs=0.03)


def test_the_tail_has_its_ends() -> None:
    assert binomial_tail(10, 0.0, 1) == 0.0
    assert binomial_tail(10, 1.0, 10) == 1.0
    assert binomial_tail(10, 0.5, 11) == 0.0


def test_noise_is_not_blamed() -> None:
    """60 judged a minute, a share of 0.01 missed by chance: in an hour of looks that is hardly ever blamed."""
    draw = random.Random(7)
    blamed = 0
    for _ in range(3600):
        missed = sum(draw.random() < 0.01 for _ in range(60))
        blamed += is_beyond_chance(Held(60, 1 - missed / 60, missed / 60), 0.01)
    assert blamed <= 3600 * CHANCE * 3


def test_misses_that_no_worker_could_prevent_are_not_blamed() -> None:
    assert is_beyond_chance(Held(100, 0.8, 0.2), 0.05)
    assert not is_beyond_chance(Held(100, 0.8, 0.02), 0.05)


def test_a_few_requests_prove_nothing() -> None:
    assert not is_beyond_chance(Held(10, 0.0, 1.0), 0.1)


def test_a_lesson_that_helped_stays() -> None:
    lessons = Lessons()
    look(lessons, 1000.0, workers=2, misses=0.3)
    look(lessons, 1200.0, workers=3, misses=0.1)
    lesson = lessons.of(Role.PREFILL, 1300.0)
    assert lesson is not None
    assert lesson.workers == 3, "it is told again of what is still missed, with more"


def test_a_lesson_that_did_not_help_is_taken_back_and_not_learned_again() -> None:
    lessons = Lessons()
    look(lessons, 1000.0, workers=2, misses=0.3)
    assert lessons.of(Role.PREFILL, 1100.0) is not None
    for hundred in range(12, 40):
        look(lessons, hundred * 100.0, workers=3, misses=0.3)
        assert lessons.of(Role.PREFILL, hundred * 100.0 + 20) is None


def test_roles_learn_apart() -> None:
    lessons = Lessons()
    look(lessons, 1000.0, workers=2, misses=0.3)
    assert lessons.of(Role.DECODE, 1100.0) is None
