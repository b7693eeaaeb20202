"""Products of at most 16 rows, which take as long as reading the weight: read it once, in order, and do the rest beside it.

    x [T, in] · weight [out, in]ᵀ ─► (+ bias) ─► (+ residual) ─► [T, out]

A program owns some outputs and all of `in`, so sums need no second kernel and come out the same every time.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import triton
import triton.language as tl

MAX_ROWS = 16
_INS = (128, 64, 32, 16)
_FEW_PROGRAMS = 160
"""About as many as there are multiprocessors: then one program has one to itself."""


@dataclass(frozen=True, slots=True)
class ProductTiles:
    """Outputs and inputs of a tile, warps and stages of a program."""

    outs: int
    ins: int
    warps: int = 4
    stages: int = 5


@triton.jit
def _skinny_product(
    x, weight, bias, output, num_rows,
    IN: tl.constexpr, OUT: tl.constexpr, OUTS: tl.constexpr, INS: tl.constexpr,
    ROWS: tl.constexpr, ADDS: tl.constexpr, HAS_BIAS: tl.constexpr,
):  # fmt: skip
    dtype: tl.constexpr = output.dtype.element_ty
    rows, ins = tl.arange(0, ROWS), tl.arange(0, INS)
    outs = tl.program_id(0) * OUTS + tl.arange(0, OUTS)
    is_row = (rows < num_rows)[:, None]
    lines = weight + outs.to(tl.int64)[None, :] * IN
    total = tl.zeros([ROWS, OUTS], tl.float32)
    for start in range(0, IN, INS):
        columns = start + ins
        part = tl.load(lines + columns[:, None], eviction_policy="evict_first")
        a = tl.load(x + rows[:, None] * IN + columns[None, :], mask=is_row, other=0.0)
        total = tl.dot(a, part, total, input_precision="ieee")
    if HAS_BIAS:
        total += tl.load(bias + outs).to(tl.float32)[None, :]
    total = total.to(dtype).to(tl.float32)
    places = output + rows[:, None] * OUT + outs[None, :]
    if ADDS:
        total += tl.load(places, mask=is_row, other=0.0).to(tl.float32)
    tl.store(places, total.to(dtype), mask=is_row)


def tiles_for(out_size: int, in_size: int) -> ProductTiles | None:
    """A tile that divides both sizes; None when there is none. Where programs are few each needs more in flight."""
    outs = next((size for size in (32, 16) if out_size % size == 0), None)
    ins = next((size for size in _INS if in_size % size == 0), None)
    if outs is None or ins is None:
        return None
    if in_size % 256 == 0 and out_size // outs <= _FEW_PROGRAMS:
        ins = 256
    return ProductTiles(outs, ins)


def skinny_product(
    x: torch.Tensor,
    weight: torch.Tensor,
    bias: torch.Tensor | None,
    *,
    into: torch.Tensor | None = None,
    tiles: ProductTiles | None = None,
) -> torch.Tensor:
    """[T, out] of [T, in] contiguous rows, T at most 16, and [out, in] contiguous weight.

    The result is added `into` a tensor, in place, when one is given.
    """
    num_rows, in_size = x.shape
    out_size = weight.shape[0]
    if tiles is None:
        tiles = tiles_for(out_size, in_size)
    assert tiles is not None
    output = into
    if output is None:
        output = torch.empty(num_rows, out_size, dtype=x.dtype, device=x.device)
    _skinny_product[(out_size // tiles.outs,)](
        x, weight, weight if bias is None else bias, output, num_rows,
        IN=in_size, OUT=out_size, OUTS=tiles.outs, INS=tiles.ins, ROWS=MAX_ROWS,
        ADDS=into is not None, HAS_BIAS=bias is not None,
        num_warps=tiles.warps, num_stages=tiles.stages,
    )  # fmt: skip
    return output
