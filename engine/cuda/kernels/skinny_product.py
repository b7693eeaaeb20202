"""Products of at most 16 rows, which take as long as reading the weight: read it once, in order, and do the rest beside it.

    x [T, in] ─ (norm) ─► · weight [out, in]ᵀ ─► (+ bias) ─► (silu · up) ─► (+ residual) ─► [T, out]

The norm needs no pass of its own: a row's scale is known when its products are, and multiplies them. A program
owns some outputs and all of `in`, so sums need no second kernel and come out the same every time.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import triton
import triton.language as tl

MAX_ROWS = 16
_OUTS = (32, 16)
_INS = (256, 128, 64, 32, 16)


@dataclass(frozen=True, slots=True)
class ProductTiles:
    """Outputs and inputs of a tile, warps and stages of a program."""

    outs: int
    ins: int
    warps: int = 4
    stages: int = 5


@triton.jit
def _skinny_product(
    x, gain, weight, bias, output, num_rows, epsilon,
    IN: tl.constexpr, OUT: tl.constexpr, OUTS: tl.constexpr, INS: tl.constexpr,
    ROWS: tl.constexpr, NORMED: tl.constexpr, GATED: tl.constexpr, ADDS: tl.constexpr,
    HAS_BIAS: tl.constexpr,
):  # fmt: skip
    dtype: tl.constexpr = output.dtype.element_ty
    rows, ins = tl.arange(0, ROWS), tl.arange(0, INS)
    outs = tl.program_id(0) * OUTS + tl.arange(0, OUTS)
    is_row = (rows < num_rows)[:, None]
    lines = weight + outs.to(tl.int64)[None, :] * IN
    total = tl.zeros([ROWS, OUTS], tl.float32)
    up_total = tl.zeros([ROWS, OUTS], tl.float32)
    squares = tl.zeros([ROWS], tl.float32)
    for start in range(0, IN, INS):
        columns = start + ins
        part = tl.load(lines + columns[:, None], eviction_policy="evict_first")
        a = tl.load(x + rows[:, None] * IN + columns[None, :], mask=is_row, other=0.0)
        if NORMED:
            wide = a.to(tl.float32)
            squares += tl.sum(wide * wide, axis=1)
            a = (wide * tl.load(gain + columns).to(tl.float32)[None, :]).to(dtype)
        total = tl.dot(a, part, total, input_precision="ieee")
        if GATED:
            part = tl.load(lines + OUT * IN + columns[:, None], eviction_policy="evict_first")
            up_total = tl.dot(a, part, up_total, input_precision="ieee")
    if NORMED:
        scale = tl.rsqrt(squares / IN + epsilon)[:, None]
        total *= scale
        up_total *= scale
    if HAS_BIAS:
        total += tl.load(bias + outs).to(tl.float32)[None, :]
        if GATED:
            up_total += tl.load(bias + OUT + outs).to(tl.float32)[None, :]
    total = total.to(dtype).to(tl.float32)
    if GATED:
        silu = (total / (1.0 + tl.exp(-total))).to(dtype).to(tl.float32)
        total = silu * up_total.to(dtype).to(tl.float32)
    places = output + rows[:, None] * OUT + outs[None, :]
    if ADDS:
        total += tl.load(places, mask=is_row, other=0.0).to(tl.float32)
    tl.store(places, total.to(dtype), mask=is_row)


def tiles_for(out_size: int, in_size: int) -> ProductTiles | None:
    """A tile that divides both sizes; None when there is none."""
    outs = next((size for size in _OUTS if out_size % size == 0), None)
    ins = next((size for size in _INS if in_size % size == 0), None)
    return None if outs is None or ins is None else ProductTiles(outs, ins)


def skinny_product(
    x: torch.Tensor,
    weight: torch.Tensor,
    bias: torch.Tensor | None,
    *,
    norm: tuple[torch.Tensor, float] | None = None,
    gated: bool = False,
    into: torch.Tensor | None = None,
    tiles: ProductTiles | None = None,
) -> torch.Tensor:
    """[T, out] of [T, in] contiguous rows, T at most 16, and [out, in] contiguous weight.

    `norm` is (gain [in], epsilon) of an RMS norm before the product. With `gated` the weight's first half makes
    gates and its second half what they multiply: out is half its rows. The result is added `into` a tensor, in
    place, when one is given.
    """
    num_rows, in_size = x.shape
    out_size = weight.shape[0] // 2 if gated else weight.shape[0]
    if tiles is None:
        tiles = tiles_for(out_size, in_size)
    assert tiles is not None
    output = into
    if output is None:
        output = torch.empty(num_rows, out_size, dtype=x.dtype, device=x.device)
    gain, epsilon = norm if norm is not None else (x, 0.0)
    _skinny_product[(out_size // tiles.outs,)](
        x, gain, weight, weight if bias is None else bias, output, num_rows, epsilon,
        IN=in_size, OUT=out_size, OUTS=tiles.outs, INS=tiles.ins, ROWS=MAX_ROWS,
        NORMED=norm is not None, GATED=gated, ADDS=into is not None, HAS_BIAS=bias is not None,
        num_warps=tiles.warps, num_stages=tiles.stages,
    )  # fmt: skip
    return output
