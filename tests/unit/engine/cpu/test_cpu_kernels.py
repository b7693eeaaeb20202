"""The C kernels against plain torch, element by element."""

from __future__ import annotations

import platform
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from engine.cpu.backend import PlainBackend, find_kernels
from engine.cpu.kernel_library import (
    Kernels,
    KernelsUnavailable,
    asking_ahead,
    without_slow_products,
)
from engine.model.decoder import LayerWeights
from engine.model.ragged_batch import RaggedBatch
from engine.model.rope import rope_table
from engine.reference.backend import TorchBackend, rms_norm
from protocol.model_config import ModelConfig
from tests.unit.engine.cpu.driving import (
    Attention,
    PackedMatrix,
    kernels_for,
    norm,
    turned,
    turned_back,
)
from tests.unit.engine.cpu.processors import runnable_targets

pytestmark = pytest.mark.skipif(shutil.which("cc") is None, reason="needs a C compiler")


REPEATS = [pytest.mark.slow, pytest.mark.deep]
OTHERS = [pytest.param(name, marks=REPEATS) for name in runnable_targets()[1:]]
TARGETS = ["native", *OTHERS]


def make_config(heads: Any, kv_heads: Any, head_dim: Any, window: Any = None) -> Any:
    return ModelConfig(
        family="llama",
        vocab_size=64,
        hidden_size=heads * head_dim,
        intermediate_size=128,
        num_layers=2,
        num_heads=heads,
        num_kv_heads=kv_heads,
        head_dim=head_dim,
        rms_norm_eps=1e-5,
        rope_theta=10000.0,
        max_position_embeddings=4096,
        sliding_window=window,
    )


def make_batch(spans: Any, block_size: Any, num_blocks: Any, seed: Any = 0) -> Any:
    """`spans` are (computed, new) tokens of each sequence; blocks are dealt out at random."""
    free = np.random.default_rng(seed).permutation(num_blocks).tolist()
    width = max(-(-(computed + new) // block_size) for computed, new in spans)
    tables = np.zeros((len(spans), width), dtype=np.int32)
    for row, (computed, new) in zip(tables, spans, strict=True):
        for index in range(-(-(computed + new) // block_size)):
            row[index] = free.pop()
    counts = [new for _, new in spans]
    ends = np.cumsum([0, *counts], dtype=np.int32)
    positions = [np.arange(computed, computed + new) for computed, new in spans]
    return RaggedBatch(
        token_ids=np.zeros(ends[-1], dtype=np.int64),
        positions=np.concatenate(positions).astype(np.int32),
        query_starts=ends,
        context_lengths=np.array([computed + new for computed, new in spans], dtype=np.int32),
        block_tables=tables,
        sample_rows=(ends[1:] - 1).astype(np.int64),
    )


def layer_weights(config: Any, dtype: Any, *, normed: Any) -> Any:
    norm = torch.rand(config.head_dim).add(0.5).to(dtype) if normed else None
    nothing = torch.zeros(1)
    return LayerWeights(
        input_norm=nothing,
        qkv=torch.nn.Identity(),
        q_norm=norm,
        k_norm=norm,
        out=torch.nn.Identity(),
        post_norm=nothing,
        gate_up=torch.nn.Identity(),
        down=torch.nn.Identity(),
    )


def pool_of(config: Any, dtype: Any, block_size: Any, num_blocks: Any) -> Any:
    shape = (num_blocks, config.num_layers, 2, config.num_kv_heads, block_size, config.head_dim)
    return torch.randn(shape).to(dtype)  # what was never written must never be read


def tolerance(dtype: Any) -> Any:
    return {"atol": 2e-5, "rtol": 2e-5} if dtype == torch.float32 else {"atol": 2e-2, "rtol": 2e-2}


SPANS = {
    "decode": [(0, 1), (1, 1), (15, 1), (16, 1), (63, 1), (64, 1), (300, 1)],
    "prefill": [(0, 1), (0, 15), (0, 16), (0, 17), (0, 130)],
    "chunk": [(16, 48), (33, 17), (100, 100), (250, 3)],
    "mixed": [(77, 1), (0, 70), (31, 33), (200, 1)],
}


ATTENTION = [
    (9, 3, 64, 16, None),
    (7, 1, 96, 8, 20),
    (4, 4, 128, 32, None),
    (8, 1, 32, 16, None),
    (9, 3, 64, 16, 64),
    (2, 2, 256, 16, 1),
    (3, 1, 64, 1, None),
    (20, 1, 64, 4, None),
    (6, 2, 64, 128, 100),
]
BOTH_DTYPES = ATTENTION[:2]


def attention_cases() -> list[Any]:
    """Every shape in float32 and bfloat16; most of the second are deep."""
    return [
        pytest.param(
            *shape,
            dtype,
            id="-".join(map(str, (*shape, name))),
            marks=[pytest.mark.deep] * (name == "bf16" and shape not in BOTH_DTYPES),
        )
        for shape in ATTENTION
        for name, dtype in (("f32", torch.float32), ("bf16", torch.bfloat16))
    ]


@pytest.mark.parametrize("target", TARGETS)
@pytest.mark.parametrize("spans", SPANS.values(), ids=SPANS.keys())
@pytest.mark.parametrize(
    ("heads", "kv_heads", "head_dim", "block_size", "window", "dtype"), attention_cases()
)
def test_attention_equals_the_reference(
    dtype: Any,
    spans: Any,
    heads: Any,
    kv_heads: Any,
    head_dim: Any,
    block_size: Any,
    window: Any,
    target: Any,
) -> None:
    torch.manual_seed(0)
    config = make_config(heads, kv_heads, head_dim, window)
    num_blocks = 3200 // block_size
    kv = pool_of(config, dtype, block_size, num_blocks)
    batch = make_batch(spans, block_size, num_blocks)
    weights = layer_weights(config, dtype, normed=kv_heads == 1)
    qkv = torch.randn(batch.num_tokens, (heads + 2 * kv_heads) * head_dim).to(dtype)
    fast = Attention(config, turned(kv), kernels_for(dtype, target), weights.q_norm)
    found = fast(batch, qkv, 1)
    expected = TorchBackend(config, kv).begin(batch).attend(qkv, 1, weights)
    torch.testing.assert_close(found, expected, **tolerance(dtype))
    torch.testing.assert_close(turned_back(fast.kv), kv, **tolerance(dtype))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["f32", "bf16"])
@pytest.mark.parametrize("block_size", [1, 16, 64])
@pytest.mark.parametrize("target", TARGETS)
def test_stale_nan_beyond_a_context_does_not_spread(
    dtype: Any, block_size: Any, target: Any
) -> None:
    config = make_config(4, 2, 64)
    kv = pool_of(config, dtype, block_size, 256 // block_size).fill_(float("nan"))
    batch = make_batch([(0, 5), (0, 64), (0, 81)], block_size, len(kv))
    attend = Attention(config, turned(kv), kernels_for(dtype, target))
    output = attend(batch, torch.randn(150, 8 * 64).to(dtype), 0)
    assert torch.isfinite(output).all()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["f32", "bf16"])
@pytest.mark.parametrize("block_size", [1, 2, 8, 16, 128])
def test_the_order_of_a_block_can_be_undone(dtype: Any, block_size: Any) -> None:
    kv = pool_of(make_config(4, 2, 64), dtype, block_size, 3)
    assert torch.equal(turned_back(turned(kv)), kv)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["f32", "bf16"])
@pytest.mark.parametrize("rows", [1, 7])
@pytest.mark.parametrize("target", TARGETS)
def test_a_norm_equals_the_reference(dtype: Any, rows: Any, target: Any) -> None:
    torch.manual_seed(0)
    x, weight = torch.randn(rows, 576).to(dtype), torch.rand(576).to(dtype)
    found = norm(kernels_for(dtype, target), x, weight, 1e-5)
    torch.testing.assert_close(found, rms_norm(x, weight, 1e-5), **tolerance(dtype))


def test_threads_do_not_change_the_result() -> None:
    torch.manual_seed(0)
    config = make_config(9, 3, 64)
    attend = Attention(config, pool_of(config, torch.bfloat16, 16, 64), kernels_for(torch.bfloat16))
    batch = make_batch([(40, 1), (0, 200), (3, 30)], 16, 64)
    qkv = torch.randn(batch.num_tokens, 15 * 64).bfloat16()
    outputs = []
    for attend.num_threads in (1, 2, 3):
        outputs.append(attend(batch, qkv, 0))
    assert torch.equal(outputs[0], outputs[1])
    assert torch.equal(outputs[0], outputs[2])


def plain_backend(reason: Any, dtype: Any = torch.float32) -> Any:
    return PlainBackend(make_config(9, 3, 64), torch.zeros(2, 2, 2, 3, 16, 64).to(dtype), reason)


def refused(config: Any, cache: Any) -> Any:
    found = find_kernels(config, torch.float32, cache)
    assert isinstance(found, KernelsUnavailable)
    backend = plain_backend(found)
    assert "not exact" in backend.description
    assert backend.arithmetic.startswith("torch-")
    return backend.description


def test_without_a_cache_directory_the_description_says_so() -> None:
    assert "no directory" in refused(make_config(9, 3, 64), None)


def test_sizes_that_the_kernels_do_not_know_are_not_called_exact(tmp_path: Any) -> None:
    assert "sizes" in refused(make_config(9, 3, 48), tmp_path)


def test_without_a_compiler_the_description_says_so(monkeypatch: Any, tmp_path: Any) -> None:
    monkeypatch.setattr("engine.cpu.kernel_library.shutil.which", lambda name: None)
    assert "no C compiler" in refused(make_config(9, 3, 64), tmp_path)


def test_a_failing_compiler_is_survived(monkeypatch: Any, tmp_path: Any) -> None:
    monkeypatch.setattr("engine.cpu.kernel_library._FLAGS", ("--no-such-flag",))
    assert "did not build" in refused(make_config(9, 3, 64), tmp_path)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["f32", "bf16"])
def test_without_kernels_products_are_still_right(dtype: Any) -> None:
    torch.manual_seed(0)
    weight, x = torch.randn(64, 96).to(dtype), torch.randn(5, 96).to(dtype)
    multiply = plain_backend(KernelsUnavailable("none"), dtype).linear("x", weight, None)
    expected = torch.nn.functional.linear(x, weight)
    torch.testing.assert_close(multiply(x), expected, **tolerance(dtype))


def test_arithmetic_names_what_the_bits_depend_on() -> None:
    names = {
        (dtype, target): kernels_for(dtype, target).arithmetic
        for dtype in (torch.float32, torch.bfloat16)
        for target in ("native", "portable")
    }
    plain = "neon/2" if platform.machine() == "aarch64" else "portable/2"
    assert names[torch.float32, "portable"] == names[torch.bfloat16, "portable"] == plain
    if "avx512_bf16" in runnable_targets():
        assert names[torch.float32, "native"] == "avx512/2"
        bfloat16 = names[torch.bfloat16, "native"]
        is_avoided = bool(without_slow_products(Path("/proc/cpuinfo").read_text(encoding="utf-8")))
        assert bfloat16 in (["avx512/2"] if is_avoided else ["avx512_bf16/2", "amx_bf16/2"])


@pytest.mark.parametrize(
    ("vendor", "flags", "is_avoided"),
    [
        ("GenuineIntel", "fpu avx512f avx512_bf16", True),
        ("GenuineIntel", "fpu avx512f avx512_bf16 amx_bf16 amx_tile", False),
        ("AuthenticAMD", "fpu avx512f avx512_bf16", False),
    ],
)
def test_bfloat16_products_that_are_slower_than_fused_ones_are_avoided(
    vendor: str, flags: str, is_avoided: bool
) -> None:
    cpuinfo = f"processor\t: 0\nvendor_id\t: {vendor}\nflags\t\t: {flags}\n"
    assert bool(without_slow_products(cpuinfo)) is is_avoided


@pytest.mark.parametrize(
    ("vendor", "family", "flags", "is_asked"),
    [
        ("AuthenticAMD", 25, "fpu avx512f avx512_bf16", True),
        ("AuthenticAMD", 25, "fpu avx2", False),
        ("AuthenticAMD", 26, "fpu avx512f avx512_bf16", False),
        ("GenuineIntel", 6, "fpu avx512f avx512_bf16", False),
    ],
)
def test_the_second_cache_is_asked_where_that_was_faster(
    vendor: str, family: int, flags: str, is_asked: bool
) -> None:
    cpuinfo = f"vendor_id\t: {vendor}\ncpu family\t: {family}\nflags\t\t: {flags}\n"
    assert asking_ahead(cpuinfo) == (("-DSECOND_CACHE_FIRST",) if is_asked else ())


def test_other_architectures_avoid_nothing() -> None:
    cpuinfo = "processor\t: 0\nFeatures\t: fp asimd bf16\n"
    assert (without_slow_products(cpuinfo), asking_ahead(cpuinfo)) == ((), ())


SHAPES = [(1, 16), (15, 96), (64, 48), (100, 576), (33, 1504)]
ROWS = (1, 2, 3, 5, 6, 7, 13, 14, 15, 16, 17, 31, 32, 33, 47, 100)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["f32", "bf16"])
@pytest.mark.parametrize("biased", [False, True])
@pytest.mark.parametrize(("outputs", "inputs"), SHAPES)
@pytest.mark.parametrize("target", TARGETS)
def test_a_product_is_right_and_a_row_of_it_alone_has_the_same_bits(
    dtype: Any, biased: Any, outputs: Any, inputs: Any, target: Any
) -> None:
    torch.manual_seed(0)
    weight = (torch.randn(outputs, inputs) * inputs**-0.5).to(dtype)
    bias = torch.randn(outputs).to(dtype) if biased else None
    multiply = PackedMatrix(kernels_for(dtype, target), weight, bias)
    x = torch.randn(max(ROWS), inputs).to(dtype)
    wide_bias = None if bias is None else bias.float()
    expected = torch.nn.functional.linear(x.float(), weight.float(), wide_bias).to(dtype)
    whole = multiply(x)
    torch.testing.assert_close(whole, expected, **tolerance(dtype))
    for rows in ROWS:
        multiply.num_threads = 1 + rows % 3
        first = max(ROWS) - rows
        assert torch.equal(multiply(x[first:]), whole[first:])
    assert multiply(x[:0]).shape == (0, outputs)
    residual = torch.randn(whole.shape).to(dtype)
    assert torch.equal(multiply(x, residual), residual + whole)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["f32", "bf16"])
@pytest.mark.parametrize("biased", [False, True])
@pytest.mark.parametrize("inputs", [48, 192])
@pytest.mark.parametrize("target", TARGETS)
def test_a_gated_product_equals_the_reference_and_row_by_row_has_the_same_bits(
    dtype: Any, biased: Any, inputs: Any, target: Any
) -> None:
    torch.manual_seed(0)
    weight = (torch.randn(2 * 80, inputs) * inputs**-0.5).to(dtype)
    bias = torch.randn(2 * 80).to(dtype) if biased else None
    x = torch.randn(33, inputs).to(dtype)
    gate, up = torch.nn.functional.linear(x, weight, bias).chunk(2, dim=-1)
    multiply = PackedMatrix(kernels_for(dtype, target), weight, bias, gated=True)
    whole = multiply(x)
    torch.testing.assert_close(whole, torch.nn.functional.silu(gate) * up, **tolerance(dtype))
    for row in range(33):
        assert torch.equal(multiply(x[row : row + 1])[0], whole[row])


@pytest.mark.parametrize("target", TARGETS)
def test_a_product_of_many_row_blocks_is_right(target: Any) -> None:
    """More rows than stay in the cache while a matrix passes by."""
    torch.manual_seed(0)
    weight, x = torch.randn(40, 1536) / 40, torch.randn(300, 1536)
    found = PackedMatrix(kernels_for(torch.float32, target), weight, None)(x)
    torch.testing.assert_close(found, x @ weight.T, atol=1e-4, rtol=1e-4)


def test_kernels_of_both_types_are_one_library() -> None:
    assert isinstance(kernels_for(torch.float32), Kernels)
    assert kernels_for(torch.float32).layout == kernels_for(torch.bfloat16).layout


def test_a_position_turns_the_same_in_a_table_of_any_length() -> None:
    """Pools of unlike sizes make tables of unlike lengths; their KV must be the same."""
    config = make_config(9, 3, 64)
    longest = rope_table(config, 5000)
    for count in (1, 2, 3, 7, 16, 33, 511, 512, 513, 2047, 4096):
        assert torch.equal(rope_table(config, count), longest[:count])
