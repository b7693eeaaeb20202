"""Scores of prompts are transformers' to 1e-3, and the same bits however a prompt was cut, cached, batched, preempted or begun again."""

from __future__ import annotations

import warnings
from typing import Any

import pytest
import torch

from decode.scheduler import DecodeScheduler
from deploy.config.topology import cache_directory
from engine.checkpoints.prepare import prepare
from engine.kv.allocation import Allocator
from engine.kv.block_pool import BlockPool
from engine.kv.sequence import Sequence
from engine.sampling.scoring import scores_of
from engine.step_limits import MOST_SCORED_TOKENS, SCORED_BYTES, scored_tokens
from prefill.scheduler import PrefillScheduler
from protocol.errors import InternalError
from protocol.sampling import SamplingParams, ScoredToken
from tests.greedy import load, random_prompts
from tests.unit.engine.test_model_grid import VOCAB, build, save

with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    pytest.importorskip("transformers")

NUM_BLOCKS, BLOCK_SIZE, TOP = 128, 16, 5
PROMPTS = random_prompts((70, 33, 2, 1), VOCAB)


@pytest.fixture(scope="module")
def model() -> Any:
    return build("Llama", {})


@pytest.fixture(scope="module")
def runner(model: Any, tmp_path_factory: pytest.TempPathFactory) -> Any:
    source = tmp_path_factory.mktemp("model")
    save(model, source)
    cache = tmp_path_factory.mktemp("prepared")
    prepared = prepare(source, cache, "float32", lambda stage, fraction: None)
    runner = load(prepared, "auto", cache_directory() / "kernels", BLOCK_SIZE, NUM_BLOCKS)
    yield runner
    runner.close()


def sequence(pool: BlockPool, tokens: list[int], scored: int = 1, max_tokens: int = 0) -> Sequence:
    sampling = SamplingParams(max_tokens=max_tokens, temperature=0.0, prompt_logprobs=TOP)
    hold = pool.empty_hold("seq:test")
    return Sequence(
        "r", 1, list(tokens), len(tokens), sampling, b"", hold, num_scored_tokens=scored
    )


def prefill(allocator: Allocator, budget: int = 512, scored: int = 4096) -> PrefillScheduler:
    return PrefillScheduler(
        allocator, max_num_batched_tokens=budget, max_num_seqs=8, max_scored_tokens=scored
    )


def run(runner: Any, scheduler: Any, sequences: list[Sequence]) -> list[list[ScoredToken]]:
    """All scores of prompts that are computed together."""
    for index, one in enumerate(sequences):
        one.request_id = f"r{index}"
        is_local = isinstance(scheduler, DecodeScheduler)
        scheduler.add(one, remote=False) if is_local else scheduler.add(one)
    left = len(sequences)
    while left:
        batch = scheduler.schedule()
        assert batch
        runner.execute(batch)
        for done in scheduler.update(batch):
            scheduler.remove(done.key)
            done.hold.release()
            left -= 1
    assert not any(one.lacks_scores for one in sequences)
    return [one.take_scores()[1] for one in sequences]


@pytest.fixture(scope="module")
def oracle(runner: Any) -> list[list[ScoredToken]]:
    """Each prompt alone, in one piece."""
    found = []
    for prompt in PROMPTS:
        pool = BlockPool(NUM_BLOCKS)
        found += run(runner, prefill(Allocator(pool, BLOCK_SIZE)), [sequence(pool, prompt)])
    return found


def test_scores_are_those_of_transformers(model: Any, oracle: list[list[ScoredToken]]) -> None:
    for prompt, scores in zip(PROMPTS, oracle, strict=True):
        assert len(scores) == len(prompt) - 1
        with torch.inference_mode():
            logits = model(torch.tensor([prompt])).logits[0].float()
        logprobs = torch.log_softmax(logits, dim=-1)
        for position, score in enumerate(scores):
            row, token_id = logprobs[position], prompt[position + 1]
            assert score.logprob == pytest.approx(float(row[token_id]), abs=1e-3)
            values, ids = row.topk(TOP)
            assert [value for _, value in score.top] == pytest.approx(values.tolist(), abs=1e-3)
            near = (row >= row[token_id] + 1e-3).sum(), (row >= row[token_id] - 1e-3).sum()
            assert near[0] <= score.rank <= near[1]
            assert {it for it, _ in score.top} >= {
                it
                for it, value in zip(ids.tolist(), values, strict=True)
                if value > values[-1] + 2e-3
            }


@pytest.mark.parametrize("budget", [1, 7, 16, 40, 512])
@pytest.mark.parametrize("scored", [1, 5, 64])
def test_any_chunks_give_the_same_bits(
    runner: Any, oracle: list[list[ScoredToken]], budget: int, scored: int
) -> None:
    pool = BlockPool(NUM_BLOCKS)
    scheduler = prefill(Allocator(pool, BLOCK_SIZE), budget, scored)
    assert run(runner, scheduler, [sequence(pool, prompt) for prompt in PROMPTS]) == oracle


@pytest.mark.parametrize("max_tokens", [0, 1])
def test_a_decode_worker_tells_the_same_of_a_prompt_it_computes(
    runner: Any, oracle: list[list[ScoredToken]], max_tokens: int
) -> None:
    pool = BlockPool(NUM_BLOCKS)
    scheduler = DecodeScheduler(
        Allocator(pool, BLOCK_SIZE), max_num_batched_tokens=64, max_num_seqs=8, max_scored_tokens=9
    )
    sequences = [sequence(pool, prompt, max_tokens=max_tokens) for prompt in PROMPTS]
    sequences[1].chunk_tokens = 4
    assert run(runner, scheduler, sequences) == oracle


def test_a_cached_prefix_is_computed_again_where_it_is_scored(
    runner: Any, oracle: list[list[ScoredToken]]
) -> None:
    pool = BlockPool(NUM_BLOCKS)
    scheduler = prefill(Allocator(pool, BLOCK_SIZE))
    first, second = sequence(pool, PROMPTS[0]), sequence(pool, PROMPTS[0])
    assert run(runner, scheduler, [first]) == run(runner, scheduler, [second]) == [oracle[0]]
    assert second.num_cached_tokens == 0
    third = sequence(pool, PROMPTS[0])
    third.sampling = SamplingParams(max_tokens=1)
    run(runner, scheduler, [third])
    assert third.num_cached_tokens == 64


@pytest.mark.parametrize("told", [1, 2, 17, 40, 69, 70])
def test_a_replay_computes_only_what_nobody_told_and_the_cache_lacks(
    runner: Any, oracle: list[list[ScoredToken]], told: int
) -> None:
    pool = BlockPool(NUM_BLOCKS)
    scheduler = prefill(Allocator(pool, BLOCK_SIZE))
    run(runner, scheduler, [sequence(pool, PROMPTS[0])])
    again = sequence(pool, PROMPTS[0], scored=told)
    assert run(runner, scheduler, [again]) == [oracle[0][told - 1 :]]
    assert again.num_cached_tokens == (min(told - 1, 69) // BLOCK_SIZE) * BLOCK_SIZE


def test_a_preempted_prompt_is_not_scored_twice(
    runner: Any, oracle: list[list[ScoredToken]]
) -> None:
    pool = BlockPool(NUM_BLOCKS)
    scheduler = DecodeScheduler(
        Allocator(pool, BLOCK_SIZE), max_num_batched_tokens=40, max_num_seqs=8, max_scored_tokens=40
    )
    one = sequence(pool, PROMPTS[0])
    scheduler.add(one, remote=False)
    batch = scheduler.schedule()
    runner.execute(batch)
    scheduler.update(batch)
    scheduler._preempt(one)
    while one.lacks_scores:
        batch = scheduler.schedule()
        runner.execute(batch)
        scheduler.update(batch)
    assert one.take_scores() == (1, oracle[0])
    one.hold.release()


def test_scores_do_not_depend_on_the_rows_beside_them() -> None:
    torch.manual_seed(5)
    for width in (300, 1000, 49152):
        logits = torch.randn(70, width) * 4
        targets = torch.randint(0, width, (70,)).tolist()
        whole = scores_of(logits, targets, 7)
        for step in (1, 3, 32):
            pieces = [
                scores_of(logits[at : at + step], targets[at : at + step], 7)
                for at in range(0, 70, step)
            ]
            assert [score for piece in pieces for score in piece] == whole


def test_logits_that_are_no_numbers_are_an_error() -> None:
    with pytest.raises(InternalError):
        scores_of(torch.full((1, 4), float("nan")), [1], 0)


@pytest.mark.parametrize(
    ("vocab_size", "rows"),
    [(49_152, 341), (151_936, 110), (10**9, 1), (100, MOST_SCORED_TOKENS)],
)
def test_logits_of_a_step_are_bounded(vocab_size: int, rows: int) -> None:
    assert scored_tokens(vocab_size) == rows
    assert rows == 1 or rows * vocab_size * 4 <= SCORED_BYTES
