"""Timing on the device, and the two ceilings everything is compared with."""

from __future__ import annotations

from statistics import median
from typing import TYPE_CHECKING, Any

import torch

if TYPE_CHECKING:
    from collections.abc import Callable

_COPY_BYTES = 4 << 30
_GEMM_SIZE = 8192


def device_ms(work: Callable[[], Any], repeats: int = 10, warm_ups: int = 2) -> float:
    """Median time of `work` between two events of the stream."""
    for _ in range(warm_ups):
        work()
    times = []
    for _ in range(repeats):
        start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        start.record()
        work()
        end.record()
        end.synchronize()
        times.append(start.elapsed_time(end))
    return median(times)


def copy_gb_per_s() -> float:
    """Device-to-device copy, bytes read and bytes written both counted."""
    source = torch.empty(_COPY_BYTES, dtype=torch.uint8, device="cuda")
    target = torch.empty_like(source)
    return 2 * _COPY_BYTES / device_ms(lambda: target.copy_(source)) / 1e6


def gemm_tflop_per_s(dtype: torch.dtype = torch.bfloat16) -> float:
    """Product of two square matrices of random numbers."""
    left, right = (
        torch.randn(_GEMM_SIZE, _GEMM_SIZE, device="cuda", dtype=dtype) for _ in range(2)
    )
    return 2 * _GEMM_SIZE**3 / device_ms(lambda: left @ right, repeats=20) / 1e9


def ceilings() -> dict[str, Any]:
    """What this card does at best."""
    return {
        "device": torch.cuda.get_device_name(),
        "torch": torch.__version__,
        "copy_gb_per_s": copy_gb_per_s(),
        "bf16_gemm_tflop_per_s": gemm_tflop_per_s(),
    }
