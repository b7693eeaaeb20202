"""How long a piece of a prompt is: it costs the same wherever it lies, by what steps were seen to take."""

from __future__ import annotations

import pytest

from engine.kv.block_pool import BlockPool
from engine.kv.sequence import Scheduled, Sequence
from engine.pace import Pace
from protocol.sampling import SamplingParams

FULL, BLOCK = 512, 16
TOKEN_S, PAIR_S = 3e-4, 1.5e-7


def prompt(num_tokens: int, computed: int = 0) -> Sequence:
    pool = BlockPool(1)
    sampling = SamplingParams(max_tokens=1)
    made = Sequence("r", 1, [0] * num_tokens, num_tokens, sampling, b"", pool.empty_hold("r"))
    made.num_computed_tokens = computed
    return made


def seconds(begin: int, num_tokens: int) -> float:
    return TOKEN_S * num_tokens + PAIR_S * num_tokens * (begin + num_tokens / 2)


def learned() -> Pace:
    pace = Pace(FULL)
    for begin in range(0, 60_000, 300):
        pace.took([Scheduled(prompt(60_000, begin), 256)], seconds(begin, 256))
    return pace


@pytest.mark.parametrize("begin", [0, 4096, 20_000, 55_000])
def test_a_piece_costs_half_a_fresh_step_wherever_it_lies(begin: int) -> None:
    size = learned().chunk(prompt(60_000, begin), BLOCK)
    assert size % BLOCK == 0
    assert seconds(begin, size) <= max(1.3 * seconds(0, FULL // 2), seconds(begin, BLOCK))
    assert seconds(begin, size + BLOCK) >= 0.7 * seconds(0, FULL // 2)


def test_nothing_known_pieces_become_smaller_all_the_same() -> None:
    pace = Pace(FULL)
    assert pace.chunk(prompt(60_000), BLOCK) == FULL // 2
    assert BLOCK <= pace.chunk(prompt(60_000, 40_000), BLOCK) < FULL // 8


def test_what_fits_two_steps_is_not_cut() -> None:
    assert learned().chunk(prompt(700), BLOCK) == 700
    assert not learned().is_long(prompt(700))


def test_a_short_rest_after_a_deep_prefix_is_computed_by_its_cost() -> None:
    pace = learned()
    rest = prompt(50_000, 49_900)
    assert pace.is_long(rest), "100 tokens that cost as much as 2,600"
    assert pace.chunk(rest, BLOCK) <= 2 * BLOCK
    assert pace.chunk(prompt(50_000, 49_999), BLOCK) == 1


def test_steps_that_write_or_that_are_small_teach_nothing() -> None:
    pace = learned()
    before = pace.chunk(prompt(60_000, 20_000), BLOCK)
    for _ in range(100):
        pace.took([Scheduled(prompt(600), 200), Scheduled(prompt(9, 8), 1)], 10.0)
        pace.took([Scheduled(prompt(20), 20)], 10.0)
        pace.took([Scheduled(prompt(600), 300)], 0.0)
    assert pace.chunk(prompt(60_000, 20_000), BLOCK) == before


def test_a_limit_is_a_limit_at_every_depth() -> None:
    pace = learned()
    for begin in (0, 4096, 30_000):
        size = pace.chunk(prompt(60_000, begin), BLOCK, limit=64)
        assert seconds(begin, size) <= max(1.3 * seconds(0, 64), seconds(begin, BLOCK))
