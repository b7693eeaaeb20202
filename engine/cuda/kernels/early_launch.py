"""Kernels that start before the one in front has ended (programmatic dependent launch, compute capability 9.0).

    previous kernel  ████████▌
    this kernel            ▒▒▒│████████     ▒ what needs none of its results: reading weights ahead
                              └ await_previous

Every kernel of such a chain waits for the one before it, so that all earlier ones have ended too.
"""

from __future__ import annotations

from typing import Any

import triton
import triton.language as tl


def launch_options(*, early: bool) -> dict[str, Any]:
    """What the launch of a kernel is told; the interpreter knows nothing of it."""
    return {"launch_pdl": True} if early else {}


@triton.jit
def allow_next():
    """The next kernel may start once every program of this one has come here."""
    tl.extra.cuda.gdc_launch_dependents()


@triton.jit
def await_previous():
    """The kernel in front has ended, and what it wrote is there."""
    tl.extra.cuda.gdc_wait()


@triton.jit
def read_ahead(places):
    """Bring the 128 bytes around each address to the second-level cache, and wait for nothing."""
    tl.inline_asm_elementwise(
        "prefetch.global.L2 [$1]; mov.u32 $0, 0;",
        "=r,l",
        [places.to(tl.int64)],
        dtype=tl.int32,
        is_pure=False,
        pack=1,
    )
