"""How the tiles of the attention kernels and the products of few rows do, one after another, for choosing defaults.

usage: python -m benchmarks.gpu_bench.kernel_candidates [PART …]       parts: hash, cublas, skinny, decode, prefill
       BATON_COMPILE_ONLY=1 runs each once, so that several processes can fill Triton's cache before the timing
"""

from __future__ import annotations

import os
import sys
from typing import TYPE_CHECKING, Any

import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.functional import linear, scaled_dot_product_attention

from benchmarks.gpu_bench.timing import copy_gb_per_s, device_ms
from engine.cuda.kernels.block_hash import BlockHash, HashTiles
from engine.cuda.kernels.decode_attention import DecodeTiles, decode_attention, new_arrivals
from engine.cuda.kernels.prefill_attention import PrefillTiles, prefill_attention
from engine.cuda.kernels.skinny_product import ProductTiles, skinny_product

if TYPE_CHECKING:
    from collections.abc import Callable

HEADS, KV_HEADS, DIM, BLOCK_SIZE, CONTEXT, LAYERS = 32, 8, 128, 16, 2048, 8
COMPILE_ONLY = bool(os.environ.get("BATON_COMPILE_ONLY"))
PRODUCTS = {
    "qkv": (6144, 4096),
    "out": (4096, 4096),
    "gate_up": (28672, 4096),
    "down": (4096, 14336),
    "head": (128256, 4096),
}


def graph_ms(work: Callable[[], Any], calls: int) -> float:
    """Time of one of the `calls` that `work` makes, launched by a CUDA graph."""
    if COMPILE_ONLY:
        work()
        return 1.0
    stream = torch.cuda.Stream()
    with torch.cuda.stream(stream):
        work()
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        work()
    return device_ms(graph.replay, repeats=7) / calls


def pool(num_blocks: int) -> torch.Tensor:
    shape = (num_blocks, LAYERS, 2, KV_HEADS, BLOCK_SIZE, DIM)
    return torch.randn(*shape, device="cuda", dtype=torch.bfloat16)


def tables_of(count: int, width: int) -> torch.Tensor:
    order = torch.randperm(count * width, device="cuda").to(torch.int32)
    return order.view(count, width)


def attempt(name: str, measure: Callable[[], str]) -> None:
    try:
        print(name, measure(), flush=True)
    except Exception as error:  # noqa: BLE001 - a candidate that cannot run is a finding
        print(name, "failed:", f"{type(error).__name__}: {error}"[:160], flush=True)


def decode_candidates() -> None:
    kv = pool(256 * CONTEXT // BLOCK_SIZE)
    for count in (1, 16, 64, 256):
        query = torch.randn(count, 6144, device="cuda", dtype=torch.bfloat16)
        tables = tables_of(count, CONTEXT // BLOCK_SIZE)
        contexts = torch.full((count,), CONTEXT, dtype=torch.int32, device="cuda")
        num_bytes = count * CONTEXT * KV_HEADS * DIM * 4
        for tokens, warps, stages, programs in (
            (64, 4, 3, 1024), (64, 2, 3, 1024), (64, 2, 3, 512), (64, 4, 3, 512), (32, 2, 3, 512),
            (32, 2, 3, 256), (128, 4, 3, 512), (64, 4, 2, 512), (64, 2, 4, 512), (32, 1, 3, 512),
        ):  # fmt: skip
            tiles = DecodeTiles(tokens, warps, stages, programs)
            arrivals = new_arrivals(query.device, tiles)

            def run(tiles: DecodeTiles = tiles) -> None:
                for layer in range(LAYERS):
                    decode_attention(
                        query, kv, layer, tables, contexts, HEADS, None, arrivals, tiles
                    )

            def told(run: Callable[[], None] = run) -> str:
                ms = graph_ms(run, LAYERS)
                return f"{1000 * ms:.1f} us {num_bytes / ms / 1e6:.0f} GB/s"

            attempt(f"decode {count} {tiles}", told)


def prefill_candidates() -> None:
    kv = pool(8192 // BLOCK_SIZE)
    for length in (2048, 8192):
        qkv = torch.randn(length, 6144, device="cuda", dtype=torch.bfloat16)
        tables = tables_of(1, length // BLOCK_SIZE)
        starts = torch.tensor([0, length], dtype=torch.int32, device="cuda")
        contexts = starts[1:].clone()
        flops = 2 * length**2 * HEADS * DIM

        def told(run: Callable[[], Any]) -> str:
            ms = device_ms(run, repeats=1 if COMPILE_ONLY else 5)
            return f"{1000 * ms:.0f} us {flops / ms / 1e9:.0f} TFLOP/s"

        for queries, tokens, warps, stages in (
            (128, 64, 8, 3), (128, 64, 8, 2), (128, 128, 8, 2), (128, 64, 4, 3),
            (64, 64, 4, 3), (64, 128, 4, 2), (128, 32, 4, 4),
        ):  # fmt: skip
            tiles = PrefillTiles(queries, tokens, warps, stages)
            arguments = (tables, starts, contexts, length, HEADS, None, tiles)
            attempt(
                f"prefill {length} {tiles}",
                lambda a=arguments: told(lambda: prefill_attention(qkv, kv, 1, *a)),  # type: ignore[misc]
            )
        q = qkv[:, :4096].view(1, length, HEADS, DIM).transpose(1, 2)
        k = qkv[:, 4096:5120].view(1, length, KV_HEADS, DIM).transpose(1, 2)
        v = qkv[:, 5120:].view(1, length, KV_HEADS, DIM).transpose(1, 2)
        for kind in (SDPBackend.FLASH_ATTENTION, SDPBackend.CUDNN_ATTENTION):

            def dense(kind: Any = kind, q: Any = q, k: Any = k, v: Any = v) -> torch.Tensor:
                with sdpa_kernel(kind):
                    return scaled_dot_product_attention(q, k, v, is_causal=True, enable_gqa=True)

            attempt(f"prefill {length} {kind}", lambda d=dense: told(d))  # type: ignore[misc]


def product_candidates() -> None:
    limit = copy_gb_per_s()
    for name, shape in PRODUCTS.items():
        copies = max(1, min(8, (400 << 20) // (2 * shape[0] * shape[1])))
        weights = [torch.randn(*shape, device="cuda", dtype=torch.bfloat16) for _ in range(copies)]
        for rows in (1, 4, 16, 64, 256):
            x = torch.randn(rows, shape[1], device="cuda", dtype=torch.bfloat16)

            def run(x: torch.Tensor = x, weights: list[torch.Tensor] = weights) -> None:
                for _ in range(4):
                    for weight in weights:
                        linear(x, weight)

            def told(
                run: Callable[[], None] = run, calls: int = 4 * copies, shape: Any = shape
            ) -> str:
                ms = graph_ms(run, calls)
                rate = 2 * shape[0] * shape[1] / ms / 1e6
                return f"{1000 * ms:.1f} us {rate:.0f} GB/s {rate / limit:.2f} of copy"

            attempt(f"cuBLAS {name} {rows}", told)


def skinny_candidates() -> None:
    limit = 1.0 if COMPILE_ONLY else copy_gb_per_s()
    for name, (rows_out, columns) in PRODUCTS.items():
        if name in ("head", "gate_up"):
            continue
        copies = max(1, (400 << 20) // (2 * rows_out * columns))
        shape = (rows_out, columns)
        weights = [torch.randn(*shape, device="cuda", dtype=torch.bfloat16) for _ in range(copies)]
        adds = name in ("out", "down")
        for outs, ins, warps, stages in (
            (32, 256, 4, 5), (32, 256, 4, 6), (32, 256, 4, 7), (32, 128, 4, 5), (32, 128, 4, 7), (32, 128, 8, 6),
        ):  # fmt: skip
            tiles = ProductTiles(outs, ins, warps, stages)
            for rows in (1, 16):
                x = torch.randn(rows, columns, device="cuda", dtype=torch.bfloat16)
                into = torch.zeros(rows, rows_out, device="cuda", dtype=x.dtype) if adds else None

                def run(x: Any = x, into: Any = into, tiles: ProductTiles = tiles) -> None:
                    for weight in weights:
                        skinny_product(x, weight, None, into=into, tiles=tiles)

                def told(run: Callable[[], None] = run) -> str:
                    ms = graph_ms(run, copies)
                    rate = 2 * rows_out * columns / ms / 1e6
                    return f"{1000 * ms:.1f} us {rate:.0f} GB/s {rate / limit:.2f} of copy"

                attempt(f"skinny {name} {rows} {tiles}", told)


def hash_candidates() -> None:
    size, count = 2 << 20, 256
    source, target = (torch.empty(count * size, dtype=torch.uint8, device="cuda") for _ in range(2))
    ids = torch.randperm(count, device="cuda")
    copy_ms = graph_ms(lambda: target.copy_(source), 1)
    for chunks, together, warps in (
        (8, 2, 8), (8, 1, 8), (8, 4, 8), (16, 2, 8), (4, 2, 8), (8, 2, 4), (8, 1, 4), (8, 2, 16),
        (16, 1, 8), (4, 4, 16), (4, 1, 8), (2, 2, 8),
    ):  # fmt: skip
        tiles = HashTiles(chunks, together, warps)
        made = BlockHash(size, source.device, tiles)

        def told(made: BlockHash = made) -> str:
            ms = graph_ms(lambda: made.copy(source, target, ids, ids), 1)
            return f"{1000 * ms:.1f} us {copy_ms / ms:.2f} of copy"

        attempt(f"hash {tiles}", told)


PARTS = {
    "hash": hash_candidates,
    "cublas": product_candidates,
    "skinny": skinny_candidates,
    "decode": decode_candidates,
    "prefill": prefill_candidates,
}


def main() -> None:
    for part in sys.argv[1:] or PARTS:
        PARTS[part]()


if __name__ == "__main__":
    main()
