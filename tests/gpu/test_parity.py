"""The GPU runner against Hugging Face transformers on the same device and weights."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from engine.checkpoints.prepare import prepare
from engine.checkpoints.prepared import kv_block_bytes, read_manifest
from engine.kv.block_pool import BlockPool
from engine.kv.sequence import Scheduled, Sequence
from protocol.sampling import SamplingParams

BLOCK_SIZE = 16
NUM_BLOCKS = 256


def load(directory: Path, dtype: Any) -> Any:
    from engine.cuda.device_memory import DeviceMemory
    from engine.cuda.runner import CudaRunner

    prepared = prepare(directory, directory / "cache", dtype, lambda *_: None)
    size = kv_block_bytes(read_manifest(prepared).config, BLOCK_SIZE, dtype)
    memory = DeviceMemory(NUM_BLOCKS, size)
    runner = CudaRunner.load(prepared, memory, block_size=BLOCK_SIZE, max_num_seqs=24)
    runner.warm_up()
    return runner


def begin(pool: BlockPool, name: str, tokens: list[int], room: int) -> Sequence:
    hold = pool.empty_hold(name)
    assert hold.allocate(-(-(len(tokens) + room) // BLOCK_SIZE))
    return Sequence(
        request_id=name,
        attempt=1,
        token_ids=list(tokens),
        num_prompt_tokens=len(tokens),
        sampling=SamplingParams(max_tokens=room, temperature=0.0, logprobs=5),
        root=b"",
        hold=hold,
    )


def generate(runner: Any, prompts: list[list[int]], count: int, chunk: int) -> list[Sequence]:
    """Prompts in chunks, all at once, then decode steps of all."""
    pool = BlockPool(NUM_BLOCKS)
    sequences = [begin(pool, f"{i}", tokens, count) for i, tokens in enumerate(prompts)]
    for _ in range(count + max(len(tokens) for tokens in prompts) // chunk + 1):
        batch = []
        for sequence in sequences:
            left = sequence.num_tokens - sequence.num_computed_tokens
            if sequence.num_output_tokens < count:
                batch.append(Scheduled(sequence, min(chunk, left)))
        if not batch:
            break
        for entry, token in zip(batch, runner.execute(batch), strict=True):
            entry.sequence.num_computed_tokens += entry.num_tokens
            if token is not None:
                entry.sequence.append(token)
    return sequences


@pytest.mark.parametrize("chunk", [500, 48])
def test_greedy_tokens_are_those_of_transformers(family: Any, chunk: int) -> None:
    """In float32; where two logits are nearly equal the paths may part, and the reference must agree that they are."""
    reference, directory = family
    reference = reference.to("cuda")
    runner = load(directory, "float32")
    torch.manual_seed(3)
    prompts = [torch.randint(0, 384, (n,)).tolist() for n in (130, 1, 17, 64, 333)]
    for sequence in generate(runner, prompts, 20, chunk):
        with torch.inference_mode():
            logits = reference(torch.tensor([sequence.token_ids], device="cuda")).logits[0]
        start = sequence.num_prompt_tokens - 1
        for position, token in enumerate(sequence.output_token_ids, start):
            best = logits[position].max()
            assert best - logits[position, token] < 2e-3, f"token {position - start}"


@pytest.mark.parametrize("num_sequences", [3, 20])
def test_bfloat16_stays_near_the_reference(family: Any, num_sequences: int) -> None:
    """Decode by the few-row kernels (3) and by cuBLAS (20), in graphs."""
    reference, directory = family
    reference = reference.to("cuda")
    runner = load(directory, "bfloat16")
    torch.manual_seed(4)
    prompts = [torch.randint(0, 384, (40 + i,)).tolist() for i in range(num_sequences)]
    for sequence in generate(runner, prompts, 12, 500):
        with torch.inference_mode():
            logits = reference(torch.tensor([sequence.token_ids], device="cuda")).logits[0]
        start = sequence.num_prompt_tokens - 1
        for position, token in enumerate(sequence.output_token_ids, start):
            spread = logits[position].std()
            assert logits[position].max() - logits[position, token] < 0.1 * spread
