"""Between the qkv product and attention: per-head norms, rotation, and keys and values into their blocks.

qkv row   [ q heads | k heads | v heads ]     a program takes one token and some heads
            rotated   rotated     as is
            in place  and into the pool
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import triton
import triton.language as tl

if TYPE_CHECKING:
    import torch

_HEADS = 8


@triton.jit
def _normed(first, second, weight, half_columns, epsilon, dtype: tl.constexpr, HALF: tl.constexpr):
    squares = tl.sum(first * first, axis=1) + tl.sum(second * second, axis=1)
    scale = tl.rsqrt(squares / (2 * HALF) + epsilon)[:, None]
    gain_first = tl.load(weight + half_columns).to(tl.float32)[None, :]
    gain_second = tl.load(weight + HALF + half_columns).to(tl.float32)[None, :]
    first = (gain_first * (first * scale).to(dtype).to(tl.float32)).to(dtype).to(tl.float32)
    second = (gain_second * (second * scale).to(dtype).to(tl.float32)).to(dtype).to(tl.float32)
    return first, second


@triton.jit
def _rope_store(
    qkv, rope, positions, slots, kv, q_norm, k_norm, epsilon, layer, num_layers,
    NUM_HEADS: tl.constexpr, NUM_KV_HEADS: tl.constexpr, HALF: tl.constexpr,
    BLOCK_SIZE: tl.constexpr, HEADS: tl.constexpr, HAS_NORM: tl.constexpr,
):  # fmt: skip
    dtype: tl.constexpr = qkv.dtype.element_ty
    dim: tl.constexpr = 2 * HALF
    all_heads: tl.constexpr = NUM_HEADS + 2 * NUM_KV_HEADS
    token = tl.program_id(0).to(tl.int64)
    heads = tl.program_id(1) * HEADS + tl.arange(0, HEADS)
    columns = tl.arange(0, HALF)
    inside = (heads < all_heads)[:, None]
    places = qkv + token * all_heads * dim + heads[:, None] * dim + columns[None, :]
    raw_first = tl.load(places, mask=inside, other=0.0)
    raw_second = tl.load(places + HALF, mask=inside, other=0.0)
    first, second = raw_first.to(tl.float32), raw_second.to(tl.float32)
    is_query, is_value = heads < NUM_HEADS, heads >= NUM_HEADS + NUM_KV_HEADS
    if HAS_NORM:
        q_first, q_second = _normed(first, second, q_norm, columns, epsilon, dtype, HALF)
        k_first, k_second = _normed(first, second, k_norm, columns, epsilon, dtype, HALF)
        first = tl.where(is_query[:, None], q_first, k_first)
        second = tl.where(is_query[:, None], q_second, k_second)
    position = tl.load(positions + token).to(tl.int64)
    cosines = tl.load(rope + position * dim + columns)[None, :]
    sines = tl.load(rope + position * dim + HALF + columns)[None, :]
    turned_first = (first * cosines - second * sines).to(dtype)
    turned_second = (second * cosines + first * sines).to(dtype)
    turns = inside & (heads < NUM_HEADS + NUM_KV_HEADS)[:, None]
    tl.store(places, turned_first, mask=turns)
    tl.store(places + HALF, turned_second, mask=turns)
    slot = tl.load(slots + token)
    if slot < 0:
        return
    side = is_value.to(tl.int64)
    kv_head = heads - NUM_HEADS - side * NUM_KV_HEADS
    block, offset = slot // BLOCK_SIZE, slot % BLOCK_SIZE
    row = ((block * num_layers + layer) * 2 + side) * NUM_KV_HEADS + kv_head
    targets = kv + (row * BLOCK_SIZE + offset)[:, None] * dim + columns[None, :]
    stored = inside & (heads >= NUM_HEADS)[:, None]
    tl.store(targets, tl.where(is_value[:, None], raw_first, turned_first), mask=stored)
    tl.store(targets + HALF, tl.where(is_value[:, None], raw_second, turned_second), mask=stored)


def rope_and_store(
    qkv: torch.Tensor,
    rope: torch.Tensor,
    positions: torch.Tensor,
    slots: torch.Tensor,
    kv: torch.Tensor,
    layer: int,
    num_heads: int,
    norms: tuple[torch.Tensor, torch.Tensor] | None,
    epsilon: float,
) -> None:
    """Rotate q and k of [T, (heads + 2 kv_heads) * dim] in place, and store k and v in the pool.

    `rope` is engine.model.rope's table on the device; `slots` [T] int64 is block * block_size + offset, -1 for a
    padding row, which is not stored; `norms` are the weights of q's and k's per-head norm.
    """
    num_kv_heads, block_size, head_dim = kv.shape[3:]
    q_norm, k_norm = norms if norms is not None else (qkv, qkv)
    grid = (qkv.shape[0], triton.cdiv(num_heads + 2 * num_kv_heads, _HEADS))
    _rope_store[grid](
        qkv, rope, positions, slots, kv, q_norm, k_norm, epsilon, layer, kv.shape[1],
        NUM_HEADS=num_heads, NUM_KV_HEADS=num_kv_heads, HALF=head_dim // 2, BLOCK_SIZE=block_size,
        HEADS=_HEADS, HAS_NORM=norms is not None, num_warps=4,

    )  # fmt: skip
