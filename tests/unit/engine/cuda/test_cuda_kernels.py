"""Triton kernels against plain torch: on a GPU where there is one, else in Triton's interpreter."""

from __future__ import annotations

import itertools
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest
import torch

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
pytest.importorskip("triton")

from engine.cuda.kernels.activations import silu_mul  # noqa: E402
from engine.cuda.kernels.block_hash import BlockHash, reference_hash  # noqa: E402
from engine.cuda.kernels.decode_attention import DecodeTiles, decode_attention, new_arrivals  # noqa: E402
from engine.cuda.kernels.norms import add_rms_norm  # noqa: E402
from engine.cuda.kernels.prefill_attention import prefill_attention  # noqa: E402
from engine.cuda.kernels.rope_store import rope_and_store  # noqa: E402
from engine.cuda.kernels.skinny_product import ProductTiles, skinny_product, tiles_for  # noqa: E402
from engine.model.ragged_batch import RaggedBatch  # noqa: E402
from engine.model.rope import rotate  # noqa: E402
from engine.reference.attention import paged_attention, token_slots  # noqa: E402
from engine.reference.backend import rms_norm  # noqa: E402

BLOCK_SIZE = 16
DTYPES = [torch.float32, torch.float16]  # the interpreter cuts bfloat16 off instead of rounding it
if DEVICE == "cuda":
    DTYPES.append(torch.bfloat16)
SHAPES = [(6, 2, 64), (4, 4, 128), (16, 2, 64)]


def attention_cases(*shapes: tuple[int, int, int]) -> list[Any]:
    """(heads, kv_heads, dim, dtype, window): the first shape in all its variants; the others' repeat them."""
    product = itertools.product(shapes, DTYPES, (None, 20))
    return [
        pytest.param(
            *shape,
            dtype,
            window,
            marks=[pytest.mark.deep]
            * (shape != shapes[0] and (dtype, window) != (DTYPES[0], None)),
        )
        for shape, dtype, window in product
    ]


TOLERANCE = {torch.float32: 2e-5, torch.float16: 4e-3, torch.bfloat16: 2e-2}


def random(*shape: int, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    return torch.randn(*shape).to(dtype).to(DEVICE)


def check(found: torch.Tensor, expected: torch.Tensor) -> None:
    limit = TOLERANCE[expected.dtype]
    torch.testing.assert_close(found.float(), expected.float(), rtol=limit, atol=limit)


@dataclass
class Case:
    """Sequences with `news` new tokens each at the end of `contexts`, over scattered blocks."""

    news: list[int]
    contexts: list[int]
    heads: int = 6
    kv_heads: int = 2
    dim: int = 64
    layers: int = 2

    def __post_init__(self) -> None:
        sizes = [-(-context // BLOCK_SIZE) for context in self.contexts]
        self.num_blocks = sum(sizes) + 3
        order = torch.randperm(self.num_blocks).tolist()
        tables = np.zeros((len(sizes), max(sizes) + 1), dtype=np.int32)
        for row, size in enumerate(sizes):
            tables[row, :size] = [order.pop() for _ in range(size)]
        starts = np.concatenate([[0], np.cumsum(self.news)]).astype(np.int32)
        spans = zip(self.contexts, self.news, strict=True)
        positions = np.concatenate([np.arange(c - n, c) for c, n in spans]).astype(np.int32)
        self.batch = RaggedBatch(
            token_ids=np.zeros(len(positions), dtype=np.int64),
            positions=positions,
            query_starts=starts,
            context_lengths=np.array(self.contexts, dtype=np.int32),
            block_tables=tables,
            sample_rows=starts[1:].astype(np.int64) - 1,
        )

    def pool(self, dtype: torch.dtype) -> torch.Tensor:
        shape = (self.num_blocks, self.layers, 2, self.kv_heads, BLOCK_SIZE, self.dim)
        return random(*shape, dtype=dtype)

    def on_device(self) -> dict[str, torch.Tensor]:
        names = ("block_tables", "query_starts", "context_lengths", "positions")
        return {name: torch.from_numpy(getattr(self.batch, name)).to(DEVICE) for name in names}


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("size", [64, 576])
def test_norm_is_that_of_the_reference_to_the_bit_of_its_dtype(dtype, size) -> None:
    residual, delta, weight = (random(*s, dtype=dtype) for s in ((5, size), (5, size), (size,)))
    expected_total = residual + delta
    expected = rms_norm(expected_total, weight, 1e-5)
    check(add_rms_norm(residual.clone(), None, weight, 1e-5)[0], rms_norm(residual, weight, 1e-5))
    normed, total = add_rms_norm(residual, delta, weight, 1e-5)
    assert torch.equal(total, expected_total)
    check(normed, expected)


@pytest.mark.parametrize("dtype", DTYPES)
def test_gated_activation(dtype) -> None:
    gate_up = random(3, 2 * 1500, dtype=dtype)
    gate, up = gate_up.chunk(2, dim=-1)
    check(silu_mul(gate_up), torch.nn.functional.silu(gate) * up)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("with_norms", [False, True])
@pytest.mark.parametrize(("heads", "kv_heads", "dim"), [(9, 3, 64), (4, 4, 128), (16, 2, 64)])
def test_rotation_and_store(dtype, with_norms, heads, kv_heads, dim) -> None:
    case = Case([3, 1, 20], [10, 33, 20], heads, kv_heads, dim)
    kv = case.pool(dtype)
    expected_kv = kv.clone()
    rows = len(case.batch.positions)
    qkv = random(rows, (heads + 2 * kv_heads) * dim, dtype=dtype)
    rope = random(64, dim)
    norms = (random(dim, dtype=dtype), random(dim, dtype=dtype)) if with_norms else None
    slots = token_slots(case.batch, BLOCK_SIZE).to(DEVICE)
    q, k, v = torch.split(qkv.view(rows, -1, dim).clone(), [heads, kv_heads, kv_heads], dim=1)
    if norms is not None:
        q, k = rms_norm(q, norms[0], 1e-6), rms_norm(k, norms[1], 1e-6)
    table_rows = rope[torch.from_numpy(case.batch.positions).to(DEVICE).long()]
    q, k = rotate(q, table_rows), rotate(k, table_rows)
    blocks, offsets = slots // BLOCK_SIZE, slots % BLOCK_SIZE
    expected_kv[blocks[:-1], 1, 0, :, offsets[:-1]] = k[:-1]
    expected_kv[blocks[:-1], 1, 1, :, offsets[:-1]] = v[:-1]
    slots[-1] = -1
    positions = case.on_device()["positions"]
    rope_and_store(qkv, rope, positions, slots, kv, 1, heads, norms, 1e-6)
    check(qkv.view(rows, -1, dim), torch.cat((q, k, v), dim=1))
    check(kv, expected_kv)


@pytest.mark.parametrize(("heads", "kv_heads", "dim", "dtype", "window"), attention_cases(*SHAPES))
@pytest.mark.parametrize("programs", [1, 64])
def test_decode_attention(dtype, window, programs, heads, kv_heads, dim) -> None:
    case = Case([1, 1, 1, 1], [1, 16, 75, 130], heads, kv_heads, dim)
    kv = case.pool(dtype)
    query = random(4, heads, dim, dtype=dtype)
    on_device = case.on_device()
    expected = paged_attention(query, kv, 1, case.batch, window).reshape(4, -1)
    wide = torch.cat((query.reshape(4, -1), random(4, 32, dtype=dtype)), dim=1)
    tiles = DecodeTiles(tokens=32, programs=programs)
    arrivals = new_arrivals(torch.device(DEVICE), tiles)
    places = (on_device["block_tables"], on_device["context_lengths"], heads, window)
    for _ in range(3):  # the counters are as they were
        check(decode_attention(wide, kv, 1, *places, arrivals, tiles), expected)
    assert not arrivals.any()


@pytest.mark.parametrize("programs", [1, 64])
def test_padding_rows_of_decode_attention_give_zeros(programs) -> None:
    case = Case([1, 1], [40, 40])
    contexts = torch.tensor([40, 0], dtype=torch.int32, device=DEVICE)
    query = random(2, 6 * 64)
    tiles = DecodeTiles(tokens=32, programs=programs)
    tables = case.on_device()["block_tables"]
    places = (tables, contexts, 6, None, new_arrivals(torch.device(DEVICE), tiles))
    found = decode_attention(query, case.pool(torch.float32), 0, *places, tiles)
    assert found[0].abs().sum() > 0
    assert torch.equal(found[1], torch.zeros_like(found[1]))


@pytest.mark.parametrize(
    ("heads", "kv_heads", "dim", "dtype", "window"), attention_cases(*SHAPES[:2])
)
@pytest.mark.parametrize(
    ("news", "contexts"), [([140], [140]), ([70, 1, 33], [70, 90, 128]), ([100], [333])]
)
def test_prefill_attention(dtype, window, heads, kv_heads, dim, news, contexts) -> None:
    case = Case(news, contexts, heads, kv_heads, dim)
    kv = case.pool(dtype)
    query = random(sum(news), heads, dim, dtype=dtype)
    expected = paged_attention(query, kv, 1, case.batch, window).reshape(sum(news), -1)
    on_device = case.on_device()
    wide = torch.cat((query.reshape(sum(news), -1), random(sum(news), 32, dtype=dtype)), dim=1)
    arguments = (on_device["query_starts"], on_device["context_lengths"], max(news), heads, window)
    found = prefill_attention(wide, kv, 1, on_device["block_tables"], *arguments)
    check(found, expected)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("rows", [1, 5, 16])
@pytest.mark.parametrize("with_bias", [False, True])
def test_product_of_few_rows_added_to_the_residual(dtype, rows, with_bias) -> None:
    x, weight = random(rows, 192, dtype=dtype), random(96, 192, dtype=dtype) / 14
    bias = random(96, dtype=dtype) if with_bias else None
    residual = random(rows, 96, dtype=dtype)
    expected = residual + torch.nn.functional.linear(x, weight, bias)
    tiles = ProductTiles(16, 64)
    found = skinny_product(x, weight, bias, into=residual, tiles=tiles)
    assert found is residual
    check(found, expected)


def test_sizes_that_no_tile_divides_are_told() -> None:
    assert tiles_for(960, 576) == ProductTiles(32, 64)
    assert tiles_for(4096, 14336) == ProductTiles(32, 256)
    assert tiles_for(6144, 4096) == ProductTiles(32, 128)
    assert tiles_for(100, 576) is None


@pytest.mark.parametrize("block_bytes", [256, 8192, 23040, 100_000, 1 << 18])
def test_block_hash_is_that_of_the_reference(block_bytes) -> None:
    pool = torch.randint(0, 256, (3 * block_bytes,), dtype=torch.uint8).to(DEVICE)
    found = BlockHash(block_bytes, torch.device(DEVICE)).hash(
        pool, torch.tensor([2, 0], device=DEVICE)
    )
    rows = pool.cpu().numpy().reshape(3, -1)
    assert found.cpu().numpy().astype("<i8")[0].tobytes() == reference_hash(rows[2])
    assert found.cpu().numpy().astype("<i8")[1].tobytes() == reference_hash(rows[0])


def test_copy_gives_the_hash_of_what_it_wrote() -> None:
    size = 20_000
    source = torch.randint(0, 256, (4 * size,), dtype=torch.uint8).to(DEVICE)
    target = torch.zeros(3 * size, dtype=torch.uint8, device=DEVICE)
    ids = (torch.tensor([3, 1], device=DEVICE), torch.tensor([0, 2], device=DEVICE))
    found = BlockHash(size, torch.device(DEVICE)).copy(source, target, *ids).cpu().numpy()
    before, after = source.cpu().numpy().reshape(4, -1), target.cpu().numpy().reshape(3, -1)
    assert (after[0] == before[3]).all()
    assert (after[2] == before[1]).all()
    assert not after[1].any()
    assert found.astype("<i8")[0].tobytes() == reference_hash(before[3])


def test_block_hash_tells_blocks_apart_that_faults_make() -> None:
    block = np.random.default_rng(1).integers(0, 256, 40_960, dtype=np.uint8)
    faulty = [block.copy() for _ in range(7)]
    faulty[0][12345] ^= 1
    faulty[1][:4], faulty[1][4:8] = block[4:8], block[:4]
    faulty[2][:4096], faulty[2][4096:8192] = block[4096:8192], block[:4096]
    faulty[3][:8192], faulty[3][8192:16384] = block[8192:16384], block[:8192]
    faulty[4][-4096:] = 0
    faulty[5][:] = 0
    faulty[6] = np.roll(block, 4)
    assert len({reference_hash(b) for b in (block, *faulty)}) == 8
