"""Choosing tokens: filters and penalties against numpy, draws that depend on nothing but seed and position."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st

from engine.kv.block_pool import BlockPool
from engine.kv.sequence import Sequence
from engine.sampling.sampler import draw, sample, uniform_draw
from protocol.errors import InternalError
from protocol.sampling import SampledToken, SamplingParams

VOCABULARY = 40


def sequence(prompt: list[int], outputs: list[int], **params: Any) -> Sequence:
    return Sequence(
        request_id="r",
        attempt=0,
        token_ids=prompt + outputs,
        num_prompt_tokens=len(prompt),
        sampling=SamplingParams(max_tokens=100, **params),
        root=b"",
        hold=BlockPool(1).empty_hold("seq:r"),
    )


def logits(seed: int = 0, rows: int = 1) -> torch.Tensor:
    return torch.randn(rows, VOCABULARY, generator=torch.Generator().manual_seed(seed)) * 3


def one(values: torch.Tensor, prompt: list[int], outputs: list[int], **params: Any) -> SampledToken:
    (token,) = sample(values, [sequence(prompt, outputs, **params)])
    return token


def greedy(values: torch.Tensor, **params: Any) -> int:
    return one(values, [1, 2], [3, 3, 4], temperature=0.0, **params).token_id


def test_temperature_zero_takes_the_best() -> None:
    values = logits(rows=5)
    tokens = sample(values, [sequence([1], [], temperature=0.0) for _ in range(5)])
    assert [token.token_id for token in tokens] == values.argmax(dim=1).tolist()


@pytest.mark.parametrize("size", [40, 49_152])
def test_of_equal_logits_the_first_is_taken(size: int) -> None:
    values = torch.zeros(3, size)
    values[0, [9, 17, size - 1]] = 2.5
    values[1, [size - 2, size - 1]] = 2.5
    tokens = sample(values, [sequence([1], [], temperature=0.0) for _ in range(3)])
    assert [token.token_id for token in tokens] == [9, size - 2, 0]


def test_no_sequences_no_tokens() -> None:
    assert sample(torch.empty(0, VOCABULARY), []) == []


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_logits_that_are_not_numbers_are_our_error(bad: float) -> None:
    values = logits(rows=2)
    values[1, 7] = bad
    with pytest.raises(InternalError):
        sample(values, [sequence([1], [], temperature=0.0) for _ in range(2)])


def reference_probabilities(values: np.ndarray, params: SamplingParams) -> np.ndarray:
    """The filtered distribution, written the slow way."""
    scaled = values.astype(np.float64) / params.temperature
    weights = np.exp(scaled - scaled.max())
    weights[weights < params.min_p] = 0
    if params.top_k:
        weights[weights < np.sort(weights)[-params.top_k]] = 0
    total, share = weights.sum(), 0.0
    for token_id in np.argsort(-weights, kind="stable"):
        if share >= params.top_p and params.top_p < 1:
            weights[token_id] = 0
        share += weights[token_id] / total
    found: np.ndarray = weights / weights.sum()
    return found


@settings(deadline=None)
@example(seed=152, temperature=1.0, top_k=0, top_p=0.9, min_p=0.0)
@given(
    seed=st.integers(0, 1000),
    temperature=st.sampled_from([0.3, 1.0, 2.5]),
    top_k=st.sampled_from([0, 1, 3, VOCABULARY, 10 * VOCABULARY]),
    top_p=st.sampled_from([1e-6, 0.3, 0.9, 1.0]),
    min_p=st.sampled_from([0.0, 0.05, 1.0]),
)
def test_draw_follows_the_filtered_distribution(
    seed: int, temperature: float, top_k: int, top_p: float, min_p: float
) -> None:
    values = logits(seed)[0].numpy()
    params = SamplingParams(
        max_tokens=1, temperature=temperature, top_k=min(top_k, 2**31), top_p=top_p, min_p=min_p
    )
    if top_k > VOCABULARY:
        expected = reference_probabilities(
            values, SamplingParams(max_tokens=1, temperature=temperature, top_p=top_p, min_p=min_p)
        )
    else:
        expected = reference_probabilities(values, params)
    steps = 500
    counts = np.zeros(VOCABULARY)
    for index in range(steps):
        counts[draw(values, params, (index + 0.5) / steps)] += 1
    np.testing.assert_allclose(counts / steps, expected, atol=2 / steps)


def test_uniform_draws_are_uniform_and_known() -> None:
    draws = np.array([uniform_draw(7, position) for position in range(4000)])
    assert draws.min() >= 0
    assert draws.max() < 1
    histogram, _ = np.histogram(draws, bins=10, range=(0, 1))
    assert np.abs(histogram - 400).max() < 90
    assert uniform_draw(7, 5) == uniform_draw(7, 5)
    assert uniform_draw(7, 5) != uniform_draw(8, 5)
    assert uniform_draw(-1, 5) == uniform_draw(2**64 - 1, 5)


def test_a_draw_does_not_depend_on_its_batch() -> None:
    values = logits(rows=6)
    batch = [sequence([1] * (row + 1), [2], seed=row) for row in range(6)]
    together = sample(values, batch)
    alone = [sample(values[row : row + 1], [batch[row]])[0] for row in range(6)]
    assert together == alone


def test_a_replayed_sequence_draws_the_same_token() -> None:
    """What an earlier attempt emitted is part of token_ids, so position and draw stay the same."""
    values = logits()
    first = one(values, [1, 2, 3], [4, 5], seed=11)
    assert one(values, [1, 2, 3], [4, 5], seed=11) == first


def test_repetition_penalty_covers_prompt_and_output() -> None:
    values = torch.zeros(1, VOCABULARY)
    values[0, 1], values[0, 3], values[0, 9] = 5.0, 4.0, 3.0
    assert greedy(values) == 1
    assert greedy(values, repetition_penalty=2.0) == 9


def test_repetition_penalty_pushes_negative_logits_down() -> None:
    values = torch.full((1, VOCABULARY), -9.0)
    values[0, 1], values[0, 8] = -1.0, -1.5
    assert greedy(values, repetition_penalty=2.0) == 8


def test_presence_and_frequency_count_outputs_only() -> None:
    values = torch.zeros(1, VOCABULARY)
    values[0, 1], values[0, 3], values[0, 4] = 5.0, 6.0, 5.5
    assert greedy(values, presence_penalty=0.4) == 3
    assert greedy(values, presence_penalty=2.0) == 1
    assert greedy(values, frequency_penalty=0.4) == 3
    assert greedy(values, frequency_penalty=0.6) == 1


def test_bias_forces_and_forbids_up_to_the_last_id() -> None:
    values = logits()
    best = int(values.argmax())
    assert greedy(values, logit_bias={VOCABULARY - 1: 100.0}) == VOCABULARY - 1
    assert greedy(values, logit_bias={0: 100.0}) == 0
    assert greedy(values, logit_bias={best: -100.0}) != best
    assert greedy(values, logit_bias={VOCABULARY: 100.0, -1: 100.0}) == best


def test_min_tokens_forbids_every_end() -> None:
    values = torch.zeros(1, VOCABULARY)
    values[0, 5], values[0, 6], values[0, 7] = 9.0, 8.0, 7.0
    ends = {"eos_token_ids": (5,), "stop_token_ids": (6, 999)}
    assert greedy(values, **ends) == 5
    assert greedy(values, min_tokens=3, **ends) == 5
    assert greedy(values, min_tokens=4, **ends) == 7
    assert greedy(values, min_tokens=4, ignore_eos=True, **ends) == 5


def test_forbidding_everything_falls_back_to_the_best() -> None:
    values = logits()
    everything = tuple(range(VOCABULARY))
    assert greedy(values, min_tokens=9, stop_token_ids=everything) == int(values.argmax())


def test_logprobs_are_those_of_the_raw_model() -> None:
    values = logits()
    expected = torch.log_softmax(values[0], dim=0)
    token = one(values, [1], [], temperature=2.0, top_k=1, logprobs=3, logit_bias={4: 100.0})
    assert token.token_id == 4
    assert token.logprob is not None
    assert token.logprob.logprob == pytest.approx(float(expected[4]))
    assert [token_id for token_id, _ in token.logprob.top] == expected.topk(3).indices.tolist()


def test_zero_logprobs_tell_the_chosen_token_only() -> None:
    token = one(logits(), [1], [], temperature=0.0, logprobs=0)
    assert token.logprob is not None
    assert token.logprob.top == []
