"""Attention of one new token a sequence over its blocks, the context split among programs.

program (sequence, kv head, split): the query heads of one kv head share every key that is read
splits of one head are joined by a second kernel (flash-decoding, Dao et al. 2023)
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import triton
import triton.language as tl

from engine.cuda.kernels.softmax import averaged, fold

_LOG2_E = 1.4426950408889634
MIN_ROWS = 16
"""The smallest tile that tensor cores multiply."""
MAX_SPLITS = 32


@dataclass(frozen=True, slots=True)
class DecodeTiles:
    """How the work is cut: tokens an iteration, warps and stages of a program, and how many programs to aim at."""

    tokens: int = 64
    warps: int = 2
    stages: int = 3
    programs: int = 512


DEFAULT_TILES = DecodeTiles()
WIDE_ELEMENT_TILES = DecodeTiles(tokens=32, warps=4, stages=2)
"""For float32, which tensor cores do not multiply exactly: fewer products for each thread to write out."""


@triton.jit
def _join(
    partial, logs, output, first, GROUP: tl.constexpr, DIM: tl.constexpr, SPLITS: tl.constexpr
):
    """The parts of GROUP heads, `first` being the first part of the first, weighted by their logarithms."""
    splits, columns = tl.arange(0, SPLITS), tl.arange(0, DIM)
    for member in tl.static_range(GROUP):
        parts = first + member * SPLITS + splits
        log = tl.load(logs + parts, cache_modifier=".cg")
        best = tl.max(log, axis=0)
        weights = tl.exp2(log - tl.where(best == float("-inf"), 0.0, best))
        found = tl.load(partial + parts[:, None] * DIM + columns[None, :], cache_modifier=".cg")
        weight = tl.sum(weights, axis=0)
        joined = tl.sum(found * weights[:, None], axis=0) / tl.where(weight > 0, weight, 1.0)
        row = first // SPLITS + member
        tl.store(output + row * DIM + columns, joined.to(output.dtype.element_ty))


@triton.jit
def _attend_split(
    query, kv, block_tables, contexts, output, partial, logs, arrivals,
    query_stride, table_stride, layer, num_layers, window, scale,
    GROUP: tl.constexpr, ROWS: tl.constexpr, NUM_KV_HEADS: tl.constexpr, DIM: tl.constexpr,
    BLOCK_SIZE: tl.constexpr, TOKENS: tl.constexpr, SPLITS: tl.constexpr,
    WINDOWED: tl.constexpr,
):  # fmt: skip
    sequence, kv_head, split = tl.program_id(0), tl.program_id(1), tl.program_id(2)
    context = tl.load(contexts + sequence)
    begin = 0
    if WINDOWED:
        begin = tl.maximum(context - window, 0)
    share = tl.cdiv(tl.cdiv(context - begin, SPLITS), TOKENS) * TOKENS
    first = begin + split * share
    end = tl.minimum(first + share, context)
    rows, columns, offsets = tl.arange(0, ROWS), tl.arange(0, DIM), tl.arange(0, TOKENS)
    heads = kv_head * GROUP + rows
    is_head = (rows < GROUP)[:, None]
    q = tl.load(
        query + sequence.to(tl.int64) * query_stride + heads[:, None] * DIM + columns[None, :],
        mask=is_head, other=0.0,
    )  # fmt: skip
    table = block_tables + sequence.to(tl.int64) * table_stride
    side: tl.constexpr = NUM_KV_HEADS * BLOCK_SIZE * DIM
    base = kv + (layer * 2 * NUM_KV_HEADS + kv_head) * (BLOCK_SIZE * DIM)
    best = tl.full([ROWS], float("-inf"), tl.float32)
    weight = tl.zeros([ROWS], tl.float32)
    total = tl.zeros([ROWS, DIM], tl.float32)
    for start in range(first, end, TOKENS):
        tokens = start + offsets
        known = tokens < end
        blocks = tl.load(table + tokens // BLOCK_SIZE, mask=known, other=0).to(tl.int64)
        places = blocks * (num_layers * 2 * side) + (tokens % BLOCK_SIZE) * DIM
        keys = tl.load(
            base + places[None, :] + columns[:, None], mask=known[None, :], other=0.0
        )  # fmt: skip
        values = tl.load(
            base + side + places[:, None] + columns[None, :], mask=known[:, None], other=0.0
        )  # fmt: skip
        scores = tl.dot(q, keys, input_precision="ieee") * scale
        scores = tl.where(known[None, :], scores, float("-inf"))
        best, weight, total = fold(scores, values, best, weight, total)
    total = averaged(weight, total)
    if SPLITS == 1:
        places = output + (sequence.to(tl.int64) * NUM_KV_HEADS * GROUP + heads[:, None]) * DIM
        tl.store(places + columns[None, :], total.to(output.dtype.element_ty), mask=is_head)
    else:
        row = (sequence.to(tl.int64) * NUM_KV_HEADS * GROUP + heads) * SPLITS + split
        tl.store(partial + row[:, None] * DIM + columns[None, :], total, mask=is_head)
        log = tl.where(weight > 0, best + tl.log2(tl.where(weight > 0, weight, 1.0)), float("-inf"))
        tl.store(logs + row, log, mask=rows < GROUP)
        tl.debug_barrier()  # what all threads wrote comes before the arrival of one
        arrival = arrivals + sequence * NUM_KV_HEADS + kv_head
        if tl.atomic_add(arrival, 1, sem="acq_rel") == SPLITS - 1:
            head_parts = (sequence.to(tl.int64) * NUM_KV_HEADS + kv_head) * GROUP * SPLITS
            _join(partial, logs, output, head_parts, GROUP, DIM, SPLITS)
            tl.store(arrival, 0)


def new_arrivals(device: torch.device, tiles: DecodeTiles = DEFAULT_TILES) -> torch.Tensor:
    """Counters of programs that are done; zero between steps."""
    return torch.zeros(tiles.programs, dtype=torch.int32, device=device)


def num_splits(num_sequences: int, num_kv_heads: int, programs: int) -> int:
    """A power of two that brings about `programs` programs; of the batch alone, so that a CUDA graph holds."""
    wanted = triton.cdiv(programs, num_sequences * num_kv_heads)
    return min(triton.next_power_of_2(max(wanted, 1)), MAX_SPLITS)


def decode_attention(
    query: torch.Tensor,
    kv: torch.Tensor,
    layer: int,
    block_tables: torch.Tensor,
    contexts: torch.Tensor,
    num_heads: int,
    window: int | None,
    arrivals: torch.Tensor,
    tiles: DecodeTiles | None = None,
) -> torch.Tensor:
    """[S, heads * dim]: softmax(q k / sqrt(dim)) v over the first contexts[s] tokens of each sequence.

    `query` is [S, any], its first heads * dim columns the rotated queries; `contexts` [S] int32 count the new
    token too, 0 marks a padding row, which gives zeros. With `window`, only the last so many tokens are seen.
    """
    if tiles is None:
        tiles = WIDE_ELEMENT_TILES if query.dtype == torch.float32 else DEFAULT_TILES
    num_sequences = query.shape[0]
    num_kv_heads, block_size, dim = kv.shape[3:]
    group = num_heads // num_kv_heads
    splits = num_splits(num_sequences, num_kv_heads, tiles.programs)
    output = torch.empty(num_sequences, num_heads * dim, dtype=query.dtype, device=query.device)
    partial, logs = output, output
    if splits > 1:
        shape = (num_sequences * num_heads, splits)
        partial = torch.empty(*shape, dim, dtype=torch.float32, device=query.device)
        logs = torch.empty(shape, dtype=torch.float32, device=query.device)
    _attend_split[(num_sequences, num_kv_heads, splits)](
        query, kv, block_tables, contexts, output, partial, logs, arrivals,
        query.stride(0), block_tables.stride(0), layer, kv.shape[1], window or 0, _LOG2_E * dim**-0.5,
        GROUP=group, ROWS=max(MIN_ROWS, triton.next_power_of_2(group)), NUM_KV_HEADS=num_kv_heads,
        DIM=dim, BLOCK_SIZE=block_size, TOKENS=tiles.tokens, SPLITS=splits,
        WINDOWED=window is not None, num_warps=tiles.warps, num_stages=tiles.stages,
    )  # fmt: skip
    return output
