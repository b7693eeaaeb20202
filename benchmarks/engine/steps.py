"""The process in which `baton bench engine` measures: prefill and decode steps of the real runner, no HTTP, no scheduler.

usage: python -m benchmarks.engine.steps SPEC    SPEC is JSON, an EngineSpec; the last line written is JSON
"""

from __future__ import annotations

import statistics
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import torch

from benchmarks.engine.spec import EngineSpec
from benchmarks.machine_limits import Limits, layer_shapes, measure_limits
from engine.checkpoints.prepared import ELEMENT_BYTES, read_manifest
from engine.cpu.lending import FILE_NAME, LentCores
from engine.kv.block_pool import BlockPool
from engine.kv.sequence import Scheduled, Sequence
from engine.model import shared_weights
from engine.runner import ModelRunner, RunnerOptions
from protocol.sampling import SampledToken, SamplingParams

WARM_UP_STEPS = 3
KV_PATTERN_BYTES = 8 << 20
GREEDY = SamplingParams(max_tokens=1 << 20, temperature=0.0, ignore_eos=True)


class Engine:
    """One runner and a pool whose blocks all hold KV-like numbers, so that any context can be claimed."""

    def __init__(self, spec: EngineSpec) -> None:
        directory = Path(spec.directory)
        self.spec = spec
        self.manifest = read_manifest(directory)
        self.config = self.manifest.config
        longest = max(*spec.prompts, max(spec.batches) * (max(spec.contexts) + spec.steps + 16))
        options = RunnerOptions(
            num_blocks=-(-longest // spec.block_size) + max(spec.batches),
            block_size=spec.block_size,
            backend=spec.backend,
            num_threads=spec.threads,
            quantization=spec.quantization,
            kernel_cache=Path(spec.kernel_cache),
            shared_weights_fd=shared_weights.create(),
            lent_cores=_lent(spec.lent_cores),
        )
        self.runner = ModelRunner.load(directory, options)
        self.runner.warm_up()
        self.pool = BlockPool(options.num_blocks)
        self._fill()

    def _fill(self) -> None:
        """Normally distributed keys and values everywhere."""
        numbers = np.random.default_rng(7).standard_normal(KV_PATTERN_BYTES // 4, np.float32)
        pattern = numbers.view(np.uint8)
        if self.manifest.dtype == "bfloat16":
            pattern = (numbers.view(np.uint32) >> 16).astype(np.uint16).view(np.uint8)
        memory = np.frombuffer(self.runner.kv_memory.buffer, dtype=np.uint8)
        for start in range(0, len(memory), len(pattern)):
            memory[start : start + len(pattern)] = pattern[: len(memory) - start]

    def sequence(self, name: str, num_tokens: int, room: int) -> Sequence:
        """`num_tokens` random tokens, blocks for `room` more."""
        choose = np.random.default_rng(len(name) + num_tokens)
        token_ids = choose.integers(0, self.config.vocab_size, num_tokens).tolist()
        hold = self.pool.allocate(-(-(num_tokens + room) // self.spec.block_size), name)
        assert hold is not None, "the pool was sized for every case"
        return Sequence(name, 0, token_ids, num_tokens, GREEDY, b"", hold)

    def prefill_s(self, num_tokens: int) -> float:
        """Seconds for one prompt, chunk by chunk, until its first token."""
        sequence = self.sequence("prefill", num_tokens, 1)
        start_s = time.perf_counter()
        while sequence.num_computed_tokens < num_tokens:
            rest = num_tokens - sequence.num_computed_tokens
            chunk = Scheduled(sequence, min(rest, self.spec.chunk))
            self.runner.execute([chunk])
            sequence.num_computed_tokens += chunk.num_tokens
        seconds = time.perf_counter() - start_s
        sequence.hold.release()
        return seconds

    def decode_s(self, batch: int, context: int) -> list[float]:
        """Seconds of each step of `batch` sequences that have `context` tokens behind them."""
        steps = WARM_UP_STEPS + self.spec.steps
        sequences = [self.sequence(f"decode-{i}", context + 1, steps) for i in range(batch)]
        for sequence in sequences:
            sequence.num_computed_tokens = context
        times = [self._step_s(sequences) for _ in range(steps)]
        for sequence in sequences:
            sequence.hold.release()
        return times[WARM_UP_STEPS:]

    def _step_s(self, sequences: list[Sequence]) -> float:
        start_s = time.perf_counter()
        chosen = self.runner.execute([Scheduled(sequence, 1) for sequence in sequences])
        seconds = time.perf_counter() - start_s
        for sequence, token in zip(sequences, chosen, strict=True):
            assert isinstance(token, SampledToken)
            sequence.num_computed_tokens += 1
            sequence.append(token)
        return seconds


def _lent(cores: tuple[int, ...]) -> LentCores | None:
    """Cores whose owner sleeps from now on."""
    if not cores:
        return None
    with tempfile.TemporaryDirectory() as directory:
        lent = LentCores(Path(directory, FILE_NAME), cores, cores)
    lent.lend()
    return lent


class Work:
    """What steps must at least move and compute, and how long that takes at the machine's limits."""

    def __init__(self, engine: Engine, limits: Limits) -> None:
        config, dtype = engine.config, engine.manifest.dtype
        self._config, self._element_bytes = config, ELEMENT_BYTES[dtype]
        self._layers = config.num_layers * sum(rows * cols for rows, cols in layer_shapes(config))
        self._head = config.vocab_size * config.hidden_size
        self._flops_per_s = limits.gemm_gflops[dtype] * 1e9
        self._bytes_per_s = limits.read_gb_per_s * 1e9

    def _attention_flops(self, pairs: float) -> float:
        """Of `pairs` of a query and a key: two products of a head's width, for every head and layer."""
        config = self._config
        return 4.0 * pairs * config.num_heads * config.head_dim * config.num_layers

    def prefill_limit_s(self, num_tokens: int) -> float:
        """Arithmetic of a prompt: every matrix for every token, causal attention, one row of the head."""
        attention = self._attention_flops(num_tokens * (num_tokens + 1) / 2)
        flops = 2.0 * self._layers * num_tokens + attention + 2.0 * self._head
        return flops / self._flops_per_s

    def decode_limit_s(self, batch: int, context: int) -> tuple[float, str]:
        """The slower of reading weights and KV once, and the arithmetic; and which of them it is."""
        kv_bytes = batch * (context + 1) * self._config.kv_bytes_per_token(self._element_bytes)
        weight_bytes = (self._layers + self._head) * self._element_bytes
        memory_s = (weight_bytes + kv_bytes) / self._bytes_per_s
        flops = 2.0 * (self._layers + self._head) * batch + self._attention_flops(batch * context)
        compute_s = flops / self._flops_per_s
        return max((memory_s, "memory"), (compute_s, "compute"))


def measure(spec: EngineSpec) -> dict[str, Any]:
    """All cases; the limits before and after, and the better of both counts."""
    engine = Engine(spec)
    first = measure_limits(engine.config)
    prefill = {n: [engine.prefill_s(n) for _ in range(spec.repeats)] for n in spec.prompts}
    cases = [(batch, context) for context in spec.contexts for batch in spec.batches]
    decode = {case: engine.decode_s(*case) for case in cases}
    limits = _better(first, measure_limits(engine.config))
    work = Work(engine, limits)
    return {
        "backend": engine.runner.backend,
        "dtype": engine.manifest.dtype,
        "torch": str(torch.__version__),
        "limits": {
            "read_gb_per_s": round(limits.read_gb_per_s, 2),
            "copy_gb_per_s": round(limits.copy_gb_per_s, 2),
            "gemm_gflops": {name: round(value, 1) for name, value in limits.gemm_gflops.items()},
        },
        "prefill": [_prefill_entry(n, times, work) for n, times in prefill.items()],
        "decode": [_decode_entry(*case, times, work) for case, times in decode.items()],
    }


def _better(one: Limits, two: Limits) -> Limits:
    return Limits(
        max(one.read_gb_per_s, two.read_gb_per_s),
        max(one.copy_gb_per_s, two.copy_gb_per_s),
        {name: max(value, two.gemm_gflops[name]) for name, value in one.gemm_gflops.items()},
    )


def _prefill_entry(num_tokens: int, times: list[float], work: Work) -> dict[str, Any]:
    seconds, limit_s = statistics.median(times), work.prefill_limit_s(num_tokens)
    return {
        "prompt_tokens": num_tokens,
        "tokens_per_s": round(num_tokens / seconds, 1),
        "ms": round(seconds * 1e3, 2),
        "best_ms": round(min(times) * 1e3, 2),
        "limit_ms": round(limit_s * 1e3, 2),
        "of_limit": round(limit_s / seconds, 3),
    }


def _decode_entry(batch: int, context: int, times: list[float], work: Work) -> dict[str, Any]:
    seconds, (limit_s, bound) = statistics.median(times), work.decode_limit_s(batch, context)
    return {
        "batch": batch,
        "context_tokens": context,
        "tokens_per_s": round(batch / seconds, 1),
        "step_ms": round(seconds * 1e3, 2),
        "best_step_ms": round(min(times) * 1e3, 2),
        "limit_ms": round(limit_s * 1e3, 2),
        "of_limit": round(limit_s / seconds, 3),
        "bound_by": bound,
    }


if __name__ == "__main__":
    print(msgspec.json.encode(measure(msgspec.json.decode(sys.argv[1], type=EngineSpec))).decode())
