"""Causal attention of many new tokens a sequence over its blocks: chunks of prompts, with or without a prefix.

A program takes one tile of queries of one head; keys before the tile are seen whole, those in it by a mask.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import triton
import triton.language as tl

from engine.cuda.kernels.softmax import averaged, fold

_LOG2_E = 1.4426950408889634


@dataclass(frozen=True, slots=True)
class PrefillTiles:
    """Queries and keys of a tile, warps and stages of a program."""

    queries: int = 128
    tokens: int = 64
    warps: int = 4
    stages: int = 3


DEFAULT_TILES = PrefillTiles()
WIDE_ELEMENT_TILES = PrefillTiles(queries=32, tokens=32, warps=4, stages=2)
"""For float32, whose tiles take twice the room."""


@triton.jit
def _attend_chunk(
    query, kv, block_tables, query_starts, contexts, output,
    query_stride, table_stride, layer, num_layers, window, scale,
    NUM_HEADS: tl.constexpr, GROUP: tl.constexpr, NUM_KV_HEADS: tl.constexpr, DIM: tl.constexpr,
    BLOCK_SIZE: tl.constexpr, QUERIES: tl.constexpr, TOKENS: tl.constexpr, WINDOWED: tl.constexpr,
):  # fmt: skip
    sequence, head = tl.program_id(1), tl.program_id(2)
    start = tl.load(query_starts + sequence)
    count = tl.load(query_starts + sequence + 1) - start
    tile = tl.cdiv(count, QUERIES) - 1 - tl.program_id(0)  # the longest first
    if tile < 0:
        return
    context = tl.load(contexts + sequence)
    rows = tile * QUERIES + tl.arange(0, QUERIES)
    positions = context - count + rows
    columns, offsets = tl.arange(0, DIM), tl.arange(0, TOKENS)
    is_row = (rows < count)[:, None]
    q = tl.load(
        query + (start + rows).to(tl.int64)[:, None] * query_stride + head * DIM + columns[None, :],
        mask=is_row, other=0.0,
    )  # fmt: skip
    table = block_tables + sequence.to(tl.int64) * table_stride
    side: tl.constexpr = NUM_KV_HEADS * BLOCK_SIZE * DIM
    base = kv + (layer * 2 * NUM_KV_HEADS + head // GROUP) * (BLOCK_SIZE * DIM)
    best = tl.full([QUERIES], float("-inf"), tl.float32)
    weight = tl.zeros([QUERIES], tl.float32)
    total = tl.zeros([QUERIES, DIM], tl.float32)
    tile_start = context - count + tile * QUERIES
    end = tl.minimum(tile_start + QUERIES, context)
    begin, whole_end = 0, tile_start // TOKENS * TOKENS
    if WINDOWED:
        begin = tl.maximum(tile_start - window + 1, 0) // TOKENS * TOKENS
        whole_end = begin
    for first in range(begin, whole_end, TOKENS):
        tokens = first + offsets
        blocks = tl.load(table + tokens // BLOCK_SIZE).to(tl.int64)
        places = blocks * (num_layers * 2 * side) + (tokens % BLOCK_SIZE) * DIM
        keys = tl.load(base + places[None, :] + columns[:, None])
        values = tl.load(base + side + places[:, None] + columns[None, :])
        scores = tl.dot(q, keys, input_precision="ieee") * scale
        best, weight, total = fold(scores, values, best, weight, total)
    for first in range(whole_end, end, TOKENS):
        tokens = first + offsets
        known = tokens < context
        blocks = tl.load(table + tokens // BLOCK_SIZE, mask=known, other=0).to(tl.int64)
        places = blocks * (num_layers * 2 * side) + (tokens % BLOCK_SIZE) * DIM
        keys = tl.load(base + places[None, :] + columns[:, None], mask=known[None, :], other=0.0)
        values = tl.load(
            base + side + places[:, None] + columns[None, :], mask=known[:, None], other=0.0
        )
        seen = (tokens[None, :] <= positions[:, None]) & known[None, :]
        if WINDOWED:
            seen = seen & (tokens[None, :] > positions[:, None] - window)
        scores = tl.dot(q, keys, input_precision="ieee") * scale
        scores = tl.where(seen, scores, float("-inf"))
        best, weight, total = fold(scores, values, best, weight, total)
    total = averaged(weight, total)
    places = output + ((start + rows).to(tl.int64)[:, None] * NUM_HEADS + head) * DIM
    tl.store(places + columns[None, :], total.to(output.dtype.element_ty), mask=is_row)


def prefill_attention(
    query: torch.Tensor,
    kv: torch.Tensor,
    layer: int,
    block_tables: torch.Tensor,
    query_starts: torch.Tensor,
    contexts: torch.Tensor,
    max_queries: int,
    num_heads: int,
    window: int | None,
    tiles: PrefillTiles | None = None,
) -> torch.Tensor:
    """[T, heads * dim]: each sequence's queries are the last tokens of its context, whose KV is in the blocks.

    `query` is [T, any], its first heads * dim columns the rotated queries; `query_starts` [S + 1] and `contexts`
    [S] are int32 on the device, `max_queries` the most queries of one sequence.
    """
    if tiles is None:
        tiles = WIDE_ELEMENT_TILES if query.dtype == torch.float32 else DEFAULT_TILES
    num_kv_heads, block_size, dim = kv.shape[3:]
    output = torch.empty(query.shape[0], num_heads * dim, dtype=query.dtype, device=query.device)
    grid = (triton.cdiv(max_queries, tiles.queries), contexts.shape[0], num_heads)
    _attend_chunk[grid](
        query, kv, block_tables, query_starts, contexts, output,
        query.stride(0), block_tables.stride(0), layer, kv.shape[1], window or 0, _LOG2_E * dim**-0.5,
        NUM_HEADS=num_heads, GROUP=num_heads // num_kv_heads, NUM_KV_HEADS=num_kv_heads, DIM=dim,
        BLOCK_SIZE=block_size, QUERIES=tiles.queries, TOKENS=tiles.tokens,
        WINDOWED=window is not None, num_warps=tiles.warps, num_stages=tiles.stages,
    )  # fmt: skip
    return output
