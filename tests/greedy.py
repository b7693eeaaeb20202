"""A runner by itself, and what transformers would have said: greedy tokens of both. Owns no assertion."""

from __future__ import annotations

from typing import Any

import torch

from engine.kv.block_pool import BlockPool
from engine.kv.sequence import Scheduled, Sequence
from engine.runner import ModelRunner, RunnerOptions
from protocol.sampling import SamplingParams


def load(
    prepared: Any, backend: Any, kernel_cache: Any, block_size: Any = 16, num_blocks: int = 128
) -> Any:
    options = RunnerOptions(
        num_blocks=num_blocks, block_size=block_size, backend=backend, kernel_cache=kernel_cache
    )
    runner = ModelRunner.load(prepared, options)
    runner.warm_up()
    return runner


def new_sequence(pool: Any, prompt: Any, num_output: Any, block_size: Any = 16) -> Any:
    hold = pool.allocate(-(-(len(prompt) + num_output) // block_size), "seq:test")
    assert hold is not None
    sampling = SamplingParams(max_tokens=num_output, temperature=0.0)
    return Sequence(
        request_id="r",
        attempt=0,
        token_ids=list(prompt),
        num_prompt_tokens=len(prompt),
        sampling=sampling,
        root=b"",
        hold=hold,
    )


def generate(runner: Any, prompts: Any, num_output: Any, chunk: Any = 512) -> Any:
    """Greedy tokens of all prompts, run as one batch with prompts in chunks."""
    pool = BlockPool(runner.kv_memory.num_blocks)
    sequences = [new_sequence(pool, prompt, num_output, runner.block_size) for prompt in prompts]
    while live := [one for one in sequences if one.num_output_tokens < num_output]:
        batch = [
            Scheduled(one, min(chunk, one.num_tokens - one.num_computed_tokens)) for one in live
        ]
        for entry, token in zip(batch, runner.execute(batch), strict=True):
            entry.sequence.num_computed_tokens += entry.num_tokens
            assert (token is not None) == (
                entry.sequence.num_computed_tokens == entry.sequence.num_tokens
            )
            if token is not None:
                entry.sequence.append(token)
    return [list(one.output_token_ids) for one in sequences]


def expected_tokens(model: Any, prompt: Any, num_output: Any) -> Any:
    """What `generate` of transformers gives."""
    ids = torch.tensor([prompt])
    with torch.inference_mode():
        found = model.generate(
            ids,
            attention_mask=torch.ones_like(ids),
            max_new_tokens=num_output,
            min_new_tokens=num_output,
            do_sample=False,
            pad_token_id=0,
            eos_token_id=None,
        )
    return found[0, len(prompt) :].tolist()


def random_prompts(lengths: Any, vocab_size: Any, seed: Any = 3) -> Any:
    generator = torch.Generator().manual_seed(seed)
    return [
        torch.randint(3, vocab_size, (length,), generator=generator).tolist() for length in lengths
    ]
