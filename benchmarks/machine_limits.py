"""What one process can do at most on this machine: memory bandwidth and matrix products. Owns how both are measured."""

from __future__ import annotations

import mmap
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch

if TYPE_CHECKING:
    from collections.abc import Callable

    from protocol.model_config import ModelConfig

BUFFER_BYTES = 512 << 20
GEMM_ROWS = 512
REPEATS = 5
MOST_S = 3.0
"""Of one limit's repeats: a product in a dtype that the processor only emulates takes seconds."""


@dataclass(frozen=True)
class Limits:
    """Best of some repeats, in GB/s and GFLOP/s (10⁹); `gemm_gflops` by dtype."""

    read_gb_per_s: float
    copy_gb_per_s: float
    gemm_gflops: dict[str, float]


def measure_limits(config: ModelConfig) -> Limits:
    """Read and copy of buffers far larger than the caches; products of 512 rows at the model's shapes."""
    source, target = _huge_page_buffer(), _huge_page_buffer()
    source.fill_(1)
    target.fill_(2)
    read_s = _best_s(lambda: torch.sum(source))
    copy_s = _best_s(lambda: target.copy_(source))
    dtypes = (torch.bfloat16, torch.float32)
    return Limits(
        read_gb_per_s=BUFFER_BYTES / read_s / 1e9,
        copy_gb_per_s=2 * BUFFER_BYTES / copy_s / 1e9,
        gemm_gflops={str(dtype).removeprefix("torch."): _gemm(config, dtype) for dtype in dtypes},
    )


def _huge_page_buffer() -> torch.Tensor:
    """Zeros in huge pages where the kernel gives them: page tables are no limit of the memory."""
    room = mmap.mmap(-1, BUFFER_BYTES)
    room.madvise(mmap.MADV_HUGEPAGE)
    return torch.from_numpy(np.frombuffer(room, dtype=np.float32))


def layer_shapes(config: ModelConfig) -> list[tuple[int, int]]:
    """(rows, columns) of one layer's four matrices."""
    hidden, inner, wide = config.hidden_size, config.intermediate_size, config.head_dim
    qkv = (config.num_heads + 2 * config.num_kv_heads) * wide
    return [(qkv, hidden), (hidden, config.num_heads * wide), (2 * inner, hidden), (hidden, inner)]


def _gemm(config: ModelConfig, dtype: torch.dtype) -> float:
    """GFLOP/s over one layer's matrices, one after the other, by torch.matmul."""
    pairs = [
        (torch.randn(GEMM_ROWS, columns).to(dtype), torch.randn(columns, rows).to(dtype))
        for rows, columns in layer_shapes(config)
    ]

    def once() -> None:
        for left, right in pairs:
            torch.matmul(left, right)

    flops = sum(2 * GEMM_ROWS * rows * columns for rows, columns in layer_shapes(config))
    return flops / _best_s(once, 4 * REPEATS) / 1e9


def _best_s(work: Callable[[], object], repeats: int = REPEATS) -> float:
    """Seconds of the quickest of some runs, after one that is not counted; of one at least, and then of what `MOST_S` has room for."""
    times: list[float] = []
    with torch.inference_mode():
        while len(times) < 2 or (len(times) <= repeats and sum(times) < MOST_S):
            start_s = time.perf_counter()
            work()
            times.append(time.perf_counter() - start_s)
    return min(times[1:])
