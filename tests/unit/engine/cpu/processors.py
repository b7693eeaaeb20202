"""Which kinds of kernels the processor that runs the tests can run."""

from __future__ import annotations

import platform
from pathlib import Path

_NEEDS = {
    "native": set(),
    "avx512_bf16": {"avx512f", "avx512vl", "avx512bw", "avx512dq", "avx512_bf16"},
    "avx512": {"avx512f", "avx512vl", "avx512bw", "avx512dq"},
    "avx2": {"avx2", "fma", "bmi2"},
    "portable": set(),
}


def runnable_targets() -> list[str]:
    """Keys of engine.cpu.kernel_library.TARGETS; the flags of other machines mean nothing here."""
    if platform.machine() != "x86_64":
        return ["native", "portable"]
    lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    flags = set(next(line for line in lines if line.startswith("flags")).split())
    return [name for name, needed in _NEEDS.items() if needed <= flags]
