"""Steps of the GPU runner on random weights: decode against the copy bandwidth, prefill against the GEMM rate.

usage: python -m benchmarks.gpu_bench.step_times [--shape llama-8b] [--batches 1,16,64,256] [--profile]
"""

from __future__ import annotations

import argparse
import json
import time
import traceback
from typing import TYPE_CHECKING, Any

import torch

from benchmarks.gpu_bench.shapes import SHAPES, head_parameters, product_parameters
from benchmarks.gpu_bench.timing import ceilings, device_ms
from engine.cuda.dummy_weights import DummyWeights
from engine.cuda.runner import CudaRunner
from engine.kv.block_pool import BlockPool
from engine.kv.sequence import Scheduled, Sequence
from engine.model.ragged_batch import ragged_batch
from protocol.sampling import SamplingParams

if TYPE_CHECKING:
    from collections.abc import Callable

    from protocol.model_config import ModelConfig

BLOCK_SIZE = 16
ELEMENT_BYTES = 2


class TorchPool:
    """Blocks in memory that torch allocates."""

    def __init__(self, num_blocks: int, block_bytes: int) -> None:
        self.num_blocks = num_blocks
        self.block_bytes = block_bytes
        self._bytes = torch.zeros(num_blocks * block_bytes, dtype=torch.uint8, device="cuda")

    def tensor(self) -> torch.Tensor:
        """All bytes."""
        return self._bytes


class Bench:
    """One runner of random weights, and batches for it."""

    def __init__(self, config: ModelConfig, max_num_seqs: int, num_tokens: int) -> None:
        block_bytes = BLOCK_SIZE * config.kv_bytes_per_token(ELEMENT_BYTES)
        self.config = config
        self.num_blocks = num_tokens // BLOCK_SIZE + 2 * max_num_seqs
        memory = TorchPool(self.num_blocks, block_bytes)
        device = torch.device("cuda")
        self.runner = CudaRunner(
            config, DummyWeights(config, torch.bfloat16, device), memory,
            block_size=BLOCK_SIZE, dtype=torch.bfloat16, max_num_seqs=max_num_seqs,
        )  # fmt: skip
        self.runner.warm_up()

    def batch(self, count: int, context: int, new_tokens: int) -> list[Scheduled]:
        """`count` sequences of `context` tokens, of which the last `new_tokens` are to be computed."""
        pool = BlockPool(self.num_blocks)
        entries = []
        for index in range(count):
            hold = pool.empty_hold(f"{index}")
            if not hold.allocate(-(-context // BLOCK_SIZE)):
                raise MemoryError(f"{count} contexts of {context} tokens do not fit")
            sequence = Sequence(
                request_id=f"{index}", attempt=1, token_ids=[(7 * i) % 1000 for i in range(context)],
                num_prompt_tokens=context, sampling=SamplingParams(max_tokens=9, temperature=0.0),
                root=b"", hold=hold, num_computed_tokens=context - new_tokens,
            )  # fmt: skip
            entries.append(Scheduled(sequence, new_tokens))
        return entries

    def decode(self, count: int, context: int, copy_gb_per_s: float) -> dict[str, Any]:
        """One step of `count` sequences: on the device, and as the worker's loop sees it."""
        batch = self.batch(count, context, 1)
        arrays = ragged_batch(batch, BLOCK_SIZE)
        kv_bytes = count * context * self.config.kv_bytes_per_token(ELEMENT_BYTES)
        parameters = product_parameters(self.config) + head_parameters(self.config)
        num_bytes = parameters * ELEMENT_BYTES + kv_bytes
        with torch.inference_mode():
            step_ms = device_ms(lambda: self.runner._start(arrays, batch))  # noqa: SLF001 - the device's part of execute
        wall_ms = _wall_ms(lambda: self.runner.execute(batch))
        limit_ms = num_bytes / copy_gb_per_s / 1e6
        return {
            "step": "decode", "batch": count, "context": context, "step_ms": step_ms,
            "execute_ms": wall_ms, "limit_ms": limit_ms, "share": limit_ms / step_ms,
            "share_of_execute": limit_ms / wall_ms, "gbytes": num_bytes / 1e9,
        }  # fmt: skip

    def prefill(self, tokens: int, chunk: int, tflop_per_s: float) -> dict[str, Any]:
        """A prompt of `tokens` in chunks, through `execute`."""
        flops = prefill_flops(self.config, tokens)
        ends = [*range(chunk, tokens, chunk), tokens]
        starts = [0, *ends[:-1]]
        batches = []
        for start, end in zip(starts, ends, strict=True):
            (entry,) = self.batch(1, end, end - start)
            batches.append([entry])

        def work() -> None:
            for batch in batches:
                self.runner.execute(batch)

        wall_ms = _wall_ms(work, repeats=5)
        limit_ms = flops / tflop_per_s / 1e9
        return {
            "step": "prefill", "tokens": tokens, "chunk": chunk, "execute_ms": wall_ms,
            "limit_ms": limit_ms, "share": limit_ms / wall_ms,
            "tflop_per_s": flops / wall_ms / 1e9, "tokens_per_s": tokens / wall_ms * 1000,
        }  # fmt: skip


def prefill_flops(config: ModelConfig, tokens: int) -> float:
    """Products of every token, causal attention, and the head for one row."""
    attention = 2 * tokens**2 * config.num_heads * config.head_dim * config.num_layers
    return 2.0 * product_parameters(config) * tokens + attention + 2 * head_parameters(config)


def _wall_ms(work: Callable[[], Any], repeats: int = 7) -> float:
    work()
    work()
    times = []
    for _ in range(repeats):
        started = time.perf_counter()
        work()
        times.append(time.perf_counter() - started)
    return 1000 * sorted(times)[repeats // 2]


def profile(work: Callable[[], Any], title: str) -> None:
    """The kernels of one step by device time, for people."""
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CUDA]) as found:
        work()
        torch.cuda.synchronize()
    rows = sorted(found.key_averages(), key=lambda row: -row.self_device_time_total)
    print(f"--- {title}")
    for row in rows[:14]:
        print(f"{row.self_device_time_total:>9.0f} us {row.count:>5} x  {row.key[:100]}")


def attempt(measure: Callable[[], dict[str, Any]]) -> dict[str, Any]:
    """The figure, or what went wrong: the others go on."""
    try:
        found = measure()
    except Exception as error:  # noqa: BLE001 - reported in the result
        traceback.print_exc()
        found = {"error": f"{type(error).__name__}: {error}"}
    print(json.dumps(found), flush=True)
    return found


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--shape", choices=SHAPES, default="llama-8b")
    parser.add_argument("--batches", default="1,16,64,256")
    parser.add_argument("--profile", action="store_true")
    arguments = parser.parse_args()
    batches = [int(word) for word in arguments.batches.split(",")]
    limits = ceilings()
    print(json.dumps(limits), flush=True)
    started = time.perf_counter()
    bench = Bench(SHAPES[arguments.shape], max(batches), max(max(batches) * 2048, 16384))
    print(f"ready after {time.perf_counter() - started:.1f} s", flush=True)
    graphs = bench.runner._graphs  # noqa: SLF001 - which way it chose for few rows
    print(json.dumps({"few_rows_ms": graphs.times_ms}), flush=True)
    copy, gemm = limits["copy_gb_per_s"], limits["bf16_gemm_tflop_per_s"]
    for count in batches:
        attempt(lambda count=count: bench.decode(count, 2048, copy))  # type: ignore[misc]
    for tokens, chunk in ((2048, 2048), (8192, 8192), (8192, 2048)):
        attempt(lambda t=tokens, c=chunk: bench.prefill(t, c, gemm))  # type: ignore[misc]
    if arguments.profile:
        for count in batches:
            batch = bench.batch(count, 2048, 1)
            profile(lambda batch=batch: bench.runner.execute(batch), f"decode {count}")  # type: ignore[misc]
        for tokens in (2048, 8192):
            batch = bench.batch(1, tokens, tokens)
            profile(lambda batch=batch: bench.runner.execute(batch), f"prefill {tokens}")  # type: ignore[misc]


if __name__ == "__main__":
    main()
