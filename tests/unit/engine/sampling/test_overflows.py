"""Whom logits that are no numbers end."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any, cast

import pytest
import torch

from engine.kv.sequence import Scheduled, Sequence
from engine.sampling.overflows import without_overflows
from protocol.adapters import HeldAdapter

VOCABULARY = 77


def entry(*, adapted: bool, scored: int = 0) -> Scheduled:
    adapter = cast("HeldAdapter", object()) if adapted else None
    sequence = SimpleNamespace(adapter=adapter, has_overflown=False)
    found: Any = SimpleNamespace(sequence=sequence, scored=range(scored), samples=True)
    return cast("Scheduled", found)


def sequence_of(scheduled: Scheduled) -> Sequence:
    return scheduled.sequence


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), float("-inf")])
@pytest.mark.parametrize("place", [0, 40, VOCABULARY - 1])
def test_one_number_without_a_size_ends_the_answer_that_has_it(bad: float, place: int) -> None:
    batch = [entry(adapted=False), entry(adapted=True, scored=2), entry(adapted=True)]
    logits = torch.randn(5, VOCABULARY)
    logits[2, place] = bad
    before = logits.clone()
    found = without_overflows(logits, batch)
    assert [sequence_of(one).has_overflown for one in batch] == [False, True, False]
    assert not found[1:4].any()
    assert torch.equal(found[[0, 4]], before[[0, 4]])


def test_the_largest_numbers_are_numbers() -> None:
    batch = [entry(adapted=True)]
    logits = torch.full((1, VOCABULARY), torch.finfo(torch.float32).max)
    logits[0, ::2] *= -1
    assert torch.equal(without_overflows(logits.clone(), batch), logits)
    assert not sequence_of(batch[0]).has_overflown


def test_a_step_of_a_prompt_that_tells_nothing_has_no_rows() -> None:
    batch = [entry(adapted=True)]
    cast("Any", batch[0]).samples = False
    without_overflows(torch.empty(0, VOCABULARY), batch)
    assert not sequence_of(batch[0]).has_overflown
