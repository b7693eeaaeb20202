"""Embeddings are transformers' pooled last states to 1e-3, and the same bits however a prompt was cut, cached or batched."""

from __future__ import annotations

import warnings
from typing import Any

import numpy as np
import pytest
import torch

from deploy.config.topology import cache_directory
from engine.attesting import AttestingRunner, attested_states
from engine.checkpoints.prepare import prepare
from engine.kv.allocation import Allocator
from engine.kv.block_pool import BlockPool
from engine.kv.sequence import Sequence
from engine.kv.state_pool import StatePool
from prefill.scheduler import PrefillScheduler
from protocol.errors import InternalError
from protocol.sampling import Pooling, SamplingParams
from tests.greedy import load, random_prompts
from tests.unit.engine.test_model_grid import VOCAB, build, save

with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    pytest.importorskip("transformers")

NUM_BLOCKS, BLOCK_SIZE, TOLERANCE = 128, 16, 1e-3
PROMPTS = random_prompts((70, 33, 16, 2, 1), VOCAB)


@pytest.fixture(scope="module")
def model() -> Any:
    return build("Llama", {})


@pytest.fixture(scope="module", params=["auto", "torch"])
def runner(request: Any, model: Any, tmp_path_factory: pytest.TempPathFactory) -> Any:
    source = tmp_path_factory.mktemp("model")
    save(model, source)
    cache = tmp_path_factory.mktemp("prepared")
    prepared = prepare(source, cache, "float32", lambda stage, fraction: None)
    runner = load(prepared, request.param, cache_directory() / "kernels", BLOCK_SIZE, NUM_BLOCKS)
    yield runner
    runner.close()


def sequence(pool: BlockPool, tokens: list[int], pooling: Pooling | None) -> Sequence:
    sampling = SamplingParams(max_tokens=0, temperature=0.0, pooling=pooling)
    states = None if pooling is None else StatePool()
    hold = pool.empty_hold("seq:test")
    return Sequence("r", 1, list(tokens), len(tokens), sampling, b"", hold, states=states)


def scheduler(pool: BlockPool, budget: int = 512) -> PrefillScheduler:
    allocator = Allocator(pool, BLOCK_SIZE)
    return PrefillScheduler(allocator, max_num_batched_tokens=budget, max_num_seqs=8)


def run(runner: Any, turns: PrefillScheduler, sequences: list[Sequence]) -> list[bytes]:
    """All embeddings of prompts that are computed together."""
    for index, one in enumerate(sequences):
        one.request_id = f"r{index}"
        turns.add(one)
    left = len(sequences)
    while left:
        batch = turns.schedule()
        assert batch
        runner.execute(batch)
        for done in turns.update(batch):
            done.hold.release()
            left -= 1
    return [one.embedding for one in sequences]


def vector(embedding: bytes) -> np.ndarray[Any, Any]:
    return np.frombuffer(embedding, dtype="<f4")


def expected(model: Any, prompt: list[int], pooling: Pooling) -> torch.Tensor:
    with torch.inference_mode():
        told = model.model(input_ids=torch.tensor([prompt])).last_hidden_state[0]
    return {"mean": told.mean(dim=0), "last": told[-1], "cls": told[0]}[pooling]


@pytest.mark.parametrize("pooling", Pooling)
def test_they_are_transformers_states(runner: Any, model: Any, pooling: Pooling) -> None:
    pool = BlockPool(NUM_BLOCKS)
    told = run(runner, scheduler(pool), [sequence(pool, prompt, pooling) for prompt in PROMPTS])
    for prompt, embedding in zip(PROMPTS, told, strict=True):
        own = torch.from_numpy(vector(embedding).copy())
        assert torch.allclose(own, expected(model, prompt, pooling), atol=TOLERANCE, rtol=0.0)


@pytest.mark.parametrize("pooling", Pooling)
@pytest.mark.parametrize("runner", ["auto"], indirect=True)
def test_chunks_company_and_caches_change_no_bit(runner: Any, pooling: Pooling) -> None:
    pool = BlockPool(NUM_BLOCKS)
    together = run(runner, scheduler(pool), [sequence(pool, it, pooling) for it in PROMPTS])
    for prompt, embedding in zip(PROMPTS, together, strict=True):
        for budget in (16, 48, 512):
            own = BlockPool(NUM_BLOCKS)
            assert run(runner, scheduler(own, budget), [sequence(own, prompt, pooling)]) == [
                embedding
            ]
            turns = scheduler(own, budget)
            again = sequence(own, prompt, pooling)
            assert run(runner, turns, [again]) == [embedding]
            is_cached = pooling is Pooling.LAST and len(prompt) > BLOCK_SIZE
            assert (again.num_cached_tokens > 0) == is_cached


def test_beside_prompts_that_are_answered_or_scored(runner: Any) -> None:
    def others(pool: BlockPool) -> list[Sequence]:
        scored = sequence(pool, PROMPTS[1], None)
        scored.sampling = SamplingParams(max_tokens=0, temperature=0.0, prompt_logprobs=0)
        return [scored, sequence(pool, PROMPTS[2], None)]

    alone, pool = BlockPool(NUM_BLOCKS), BlockPool(NUM_BLOCKS)
    pair = others(alone)
    run(runner, scheduler(alone), pair)
    beside = others(pool)
    embedded = [sequence(pool, PROMPTS[0], pooling) for pooling in Pooling]
    mixed = [embedded[0], beside[0], embedded[1], beside[1], embedded[2]]
    run(runner, scheduler(pool), mixed)
    own = [score.logprob for score in beside[0].take_scores()[1]]
    assert own == pytest.approx([score.logprob for score in pair[0].take_scores()[1]], abs=1e-4)
    assert [len(one.embedding) for one in embedded] == [4 * len(vector(embedded[0].embedding))] * 3


def test_the_mock_attests_every_token_of_a_prompt() -> None:
    memory = [bytearray(BLOCK_SIZE * 16) for _ in range(NUM_BLOCKS)]

    class Memory:
        def block(self, block_id: int) -> memoryview:
            return memoryview(memory[block_id])

    pool = BlockPool(NUM_BLOCKS)
    [mean] = run(
        AttestingRunner(Memory(), BLOCK_SIZE),
        scheduler(pool, 16),
        [sequence(pool, PROMPTS[0], Pooling.MEAN)],
    )
    states = np.stack(attested_states(b"", PROMPTS[0])).astype(np.float64)
    assert np.array_equal(vector(mean), states.mean(axis=0).astype("<f4"))


def test_states_that_are_not_numbers_are_no_embedding() -> None:
    with pytest.raises(InternalError, match="finite"):
        StatePool().take(np.array([[1.0, np.nan]], dtype=np.float32))
