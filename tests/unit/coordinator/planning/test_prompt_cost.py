"""The curve is found from prompts of mixed lengths and cached beginnings, and is never nonsense."""

from __future__ import annotations

import random

import pytest

from coordinator.planning.prompt_cost import MIN_PROMPTS, PromptCost, PromptCostFit

TRUE = PromptCost(1e-4, 3e-9)


def fitted(lengths: list[int], *, noise: float = 0.0, cached: float = 0.0) -> PromptCost:
    draw, fit = random.Random(1), PromptCostFit()
    for length in lengths:
        begin = int(length * cached * draw.random())
        fit.add(length, begin, TRUE.seconds(length, begin) * draw.lognormvariate(0, noise))
    found = fit.cost()
    assert found is not None
    return found


def mixed(count: int) -> list[int]:
    draw = random.Random(2)
    return [int(min(draw.lognormvariate(8.6, 1.1), 60_000)) + 1 for _ in range(count)]


def test_a_long_prompts_token_costs_more() -> None:
    assert TRUE.seconds(100_000) / 100_000 > 2 * TRUE.seconds(1000) / 1000
    assert TRUE.seconds(2000, 1000) == pytest.approx(TRUE.seconds(2000) - TRUE.seconds(1000))
    assert TRUE.seconds(10, 20) == 0.0


@pytest.mark.parametrize("cached", [0.0, 1.0])
def test_the_curve_is_found(cached: float) -> None:
    found = fitted(mixed(400), noise=0.1, cached=cached)
    for length in (500, 5000, 50_000):
        assert found.seconds(length) == pytest.approx(TRUE.seconds(length), rel=0.1)


def test_equal_prompts_tell_what_they_cost() -> None:
    found = fitted([2048] * 50)
    assert found.seconds(2048) == pytest.approx(TRUE.seconds(2048))
    assert found.per_pair_s == 0.0


def test_noise_never_makes_a_weight_negative() -> None:
    for seed in range(50):
        draw, fit = random.Random(seed), PromptCostFit()
        for _ in range(20):
            length = draw.randrange(1, 4000)
            fit.add(length, 0, draw.uniform(0.01, 1.0))
        found = fit.cost()
        assert found is not None
        assert min(found.per_token_s, found.per_pair_s) >= 0.0
        assert found.seconds(5000) >= found.seconds(1000)


def test_too_few_prompts_tell_nothing() -> None:
    fit = PromptCostFit()
    for _ in range(MIN_PROMPTS - 1):
        fit.add(100, 0, 0.01)
    fit.add(100, 100, 0.01)
    fit.add(100, 0, 0.0)
    assert fit.cost() is None
    fit.add(100, 0, 0.01)
    assert fit.cost() is not None


def test_a_faster_model_is_noticed() -> None:
    fit = PromptCostFit()
    for scale in (1.0, 0.25):
        for length in mixed(600):
            fit.add(length, 0, scale * TRUE.seconds(length))
    found = fit.cost()
    assert found is not None
    assert found.seconds(5000) == pytest.approx(0.25 * TRUE.seconds(5000), rel=0.1)
