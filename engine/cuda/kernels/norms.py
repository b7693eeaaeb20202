"""Residual sum and RMS norm in one pass. Owns the rounding: that of engine.reference.backend.rms_norm."""

from __future__ import annotations

import torch
import triton
import triton.language as tl


@triton.jit
def _add_rms_norm(
    residual, delta, weight, normed, num_columns, epsilon,
    HAS_DELTA: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    row = tl.program_id(0).to(tl.int64) * num_columns
    columns = tl.arange(0, BLOCK)
    inside = columns < num_columns
    total = tl.load(residual + row + columns, mask=inside, other=0.0).to(tl.float32)
    if HAS_DELTA:
        total += tl.load(delta + row + columns, mask=inside, other=0.0).to(tl.float32)
        rounded = total.to(residual.dtype.element_ty)
        tl.store(residual + row + columns, rounded, mask=inside)
        total = rounded.to(tl.float32)
    scale = tl.rsqrt(tl.sum(total * total, axis=0) / num_columns + epsilon)
    scaled = (total * scale).to(normed.dtype.element_ty).to(tl.float32)
    gain = tl.load(weight + columns, mask=inside, other=0.0).to(tl.float32)
    tl.store(normed + row + columns, (gain * scaled).to(normed.dtype.element_ty), mask=inside)


def add_rms_norm(
    residual: torch.Tensor,
    delta: torch.Tensor | None,
    weight: torch.Tensor,
    epsilon: float,
) -> tuple[torch.Tensor, torch.Tensor]:
    """(norm of residual + delta, residual + delta), both [T, hidden]; the sum replaces `residual`."""
    num_rows, num_columns = residual.shape
    normed = torch.empty_like(residual)
    block = triton.next_power_of_2(num_columns)
    _add_rms_norm[(num_rows,)](
        residual, residual if delta is None else delta, weight, normed, num_columns, epsilon,
        HAS_DELTA=delta is not None, BLOCK=block,
        num_warps=min(max(block // 512, 1), 16),
    )  # fmt: skip
    return normed, residual
