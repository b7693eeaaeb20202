"""How much of a prompt that is scored one step may compute: only what it scores costs logits."""

from __future__ import annotations

import pytest

from engine.kv.block_pool import BlockPool
from engine.kv.sequence import Scheduled, Sequence
from engine.step_limits import room_to_score
from protocol.sampling import SamplingParams

MAX_SCORED, BUDGET = 30, 64


def prompt(num_tokens: int, scored: int = 1, computed: int = 0, top: int | None = 1) -> Sequence:
    sampling = SamplingParams(max_tokens=0, prompt_logprobs=top)
    made = Sequence(
        "r", 1, [0] * num_tokens, num_tokens, sampling, b"", BlockPool(1).empty_hold("r")
    )
    made.num_scored_tokens, made.num_computed_tokens = scored, computed
    return made


@pytest.mark.parametrize(
    ("sequence", "room"),
    [
        (prompt(200), MAX_SCORED),
        (prompt(200, scored=41, computed=40), MAX_SCORED),
        (prompt(200, scored=21), 20 + MAX_SCORED),
        (prompt(200, scored=101), BUDGET),
        (prompt(200, scored=180), BUDGET),
        (prompt(25), BUDGET),
        (prompt(200, top=None), BUDGET),
    ],
)
def test_only_what_is_scored_counts(sequence: Sequence, room: int) -> None:
    assert room_to_score(sequence, [], MAX_SCORED, BUDGET) == room
    assert len(Scheduled(sequence, room).scored) <= MAX_SCORED


@pytest.mark.parametrize(("scored", "room"), [(1, 0), (21, 20), (101, BUDGET)])
def test_a_step_that_scores_all_it_may_computes_what_was_scored(scored: int, room: int) -> None:
    full = [Scheduled(prompt(200), MAX_SCORED)]
    sequence = prompt(200, scored=scored)
    assert room_to_score(sequence, full, MAX_SCORED, BUDGET) == room
    assert len(Scheduled(sequence, room).scored) == 0
