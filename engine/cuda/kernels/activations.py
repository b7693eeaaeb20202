"""The gated activation of the feed-forward part."""

from __future__ import annotations

import torch
import triton
import triton.language as tl

_BLOCK = 1024


@triton.jit
def _silu_mul(gate_up, output, num_columns, BLOCK: tl.constexpr):
    row = tl.program_id(0).to(tl.int64)
    columns = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    inside = columns < num_columns
    gates = gate_up + row * 2 * num_columns + columns
    gate = tl.load(gates, mask=inside, other=0.0).to(tl.float32)
    up = tl.load(gates + num_columns, mask=inside, other=0.0).to(tl.float32)
    silu = (gate / (1.0 + tl.exp(-gate))).to(output.dtype.element_ty).to(tl.float32)
    product = (silu * up).to(output.dtype.element_ty)
    tl.store(output + row * num_columns + columns, product, mask=inside)


def silu_mul(gate_up: torch.Tensor) -> torch.Tensor:
    """silu(first half) * second half of each row: [T, 2 * size] to [T, size]."""
    num_rows, num_columns = gate_up.shape[0], gate_up.shape[1] // 2
    output = torch.empty(num_rows, num_columns, dtype=gate_up.dtype, device=gate_up.device)
    grid = (num_rows, triton.cdiv(num_columns, _BLOCK))
    _silu_mul[grid](gate_up, output, num_columns, BLOCK=_BLOCK, num_warps=4)
    return output
