"""The C kernels against plain torch, element by element."""

from __future__ import annotations

import shutil
from typing import Any

import numpy as np
import pytest
import torch

from engine.cpu.backend import CpuBackend
from engine.model.decoder import LayerWeights
from engine.model.ragged_batch import RaggedBatch
from engine.reference.backend import TorchBackend
from protocol.model_config import ModelConfig

pytestmark = pytest.mark.skipif(shutil.which("cc") is None, reason="needs a C compiler")


@pytest.fixture(scope="session")
def kernel_cache(tmp_path_factory: Any) -> Any:
    return tmp_path_factory.mktemp("kernels")


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


def both(config: Any, dtype: Any, block_size: Any, num_blocks: Any, kernel_cache: Any) -> Any:
    shape = (num_blocks, config.num_layers, 2, config.num_kv_heads, block_size, config.head_dim)
    kv = torch.randn(shape).to(dtype)
    # what was never written must never be read
    fast = CpuBackend(config, kv.clone(), {}, kernel_cache)
    assert fast.kernels is not None, fast.description
    return TorchBackend(config, kv), fast


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
    kernel_cache: Any,
) -> None:
    torch.manual_seed(0)
    config = make_config(heads, kv_heads, head_dim, window)
    reference, fast = both(config, dtype, block_size, 200, kernel_cache)
    batch = make_batch(spans, block_size, 200)
    weights = layer_weights(config, dtype, normed=kv_heads == 1)
    qkv = torch.randn(batch.num_tokens, (heads + 2 * kv_heads) * head_dim).to(dtype)
    expected = reference.begin(batch).attend(qkv.clone(), 1, weights)
    found = fast.begin(batch).attend(qkv.clone(), 1, weights)
    torch.testing.assert_close(found, expected, **tolerance(dtype))
    torch.testing.assert_close(fast.kv, reference.kv, **tolerance(dtype))


def test_stale_nan_beyond_a_context_does_not_spread(kernel_cache: Any) -> None:
    config = make_config(4, 2, 64)
    _, fast = both(config, torch.float32, 16, 8, kernel_cache)
    fast.kv.fill_(float("nan"))
    batch = make_batch([(0, 5)], 16, 8)
    weights = layer_weights(config, torch.float32, normed=False)
    output = fast.begin(batch).attend(torch.randn(5, 8 * 64), 0, weights)
    assert torch.isfinite(output).all()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["f32", "bf16"])
@pytest.mark.parametrize("rows", [1, 7])
def test_small_operations_equal_the_reference(dtype: Any, rows: Any, kernel_cache: Any) -> None:
    torch.manual_seed(0)
    config = make_config(9, 3, 64)
    reference, fast = both(config, dtype, 16, 4, kernel_cache)
    batch = make_batch([(0, rows)], 16, 4)
    plain, kernels = reference.begin(batch), fast.begin(batch)
    x, delta = torch.randn(2, rows, 576).to(dtype)
    weight = torch.rand(576).to(dtype)
    for first, second in zip(
        kernels.add_norm(x.clone(), delta, weight), plain.add_norm(x, delta, weight), strict=True
    ):
        torch.testing.assert_close(first, second, **tolerance(dtype))
    gate_up = (torch.randn(rows, 256) * 30).to(dtype)
    torch.testing.assert_close(
        kernels.silu_mul(gate_up), plain.silu_mul(gate_up), **tolerance(dtype)
    )


def test_threads_do_not_change_the_result(kernel_cache: Any) -> None:
    torch.manual_seed(0)
    config = make_config(9, 3, 64)
    _, fast = both(config, torch.bfloat16, 16, 64, kernel_cache)
    batch = make_batch([(40, 1), (0, 200), (3, 30)], 16, 64)
    weights = layer_weights(config, torch.bfloat16, normed=False)
    qkv = torch.randn(batch.num_tokens, 15 * 64).bfloat16()
    outputs = []
    for fast.num_threads in (1, 2, 3):
        outputs.append(fast.begin(batch).attend(qkv, 0, weights))
    assert torch.equal(outputs[0], outputs[1])
    assert torch.equal(outputs[0], outputs[2])


def test_without_a_cache_directory_the_description_says_torch() -> None:
    config = make_config(9, 3, 64)
    kv = torch.zeros(2, 2, 2, 3, 16, 64)
    backend = CpuBackend(config, kv, {}, None)
    assert backend.kernels is None
    assert "torch attention" in backend.description


def test_without_a_compiler_the_description_says_so(monkeypatch: Any, tmp_path: Any) -> None:
    monkeypatch.setattr("engine.cpu.kernel_library.shutil.which", lambda name: None)
    backend = CpuBackend(make_config(9, 3, 64), torch.zeros(2, 2, 2, 3, 16, 64), {}, tmp_path)
    assert backend.kernels is None
    assert "no C compiler" in backend.description


def test_a_failing_compiler_is_survived(monkeypatch: Any, tmp_path: Any) -> None:
    monkeypatch.setattr("engine.cpu.kernel_library._FLAGS", ("--no-such-flag",))
    backend = CpuBackend(make_config(9, 3, 64), torch.zeros(2, 2, 2, 3, 16, 64), {}, tmp_path)
    assert backend.kernels is None
    assert "did not build" in backend.description


def test_portable_kernels_agree_too(monkeypatch: Any, tmp_path: Any) -> None:
    monkeypatch.setattr(
        "engine.cpu.kernel_library._FLAGS",
        ("-O3", "-march=x86-64-v2", "-fopenmp", "-fno-math-errno", "-shared", "-fPIC", "-w"),
    )
    torch.manual_seed(0)
    config = make_config(9, 3, 64)
    for dtype in (torch.float32, torch.bfloat16):
        reference, fast = both(config, dtype, 16, 200, tmp_path)
        batch = make_batch(SPANS["mixed"], 16, 200)
        weights = layer_weights(config, dtype, normed=False)
        qkv = torch.randn(batch.num_tokens, 15 * 64).to(dtype)
        expected = reference.begin(batch).attend(qkv, 0, weights)
        found = fast.begin(batch).attend(qkv, 0, weights)
        torch.testing.assert_close(found, expected, **tolerance(dtype))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["f32", "bf16"])
@pytest.mark.parametrize("biased", [False, True])
@pytest.mark.parametrize("outputs", [1, 15, 64])
def test_small_products_equal_torch_for_any_number_of_rows(
    dtype: Any, biased: Any, outputs: Any, kernel_cache: Any
) -> None:
    torch.manual_seed(0)
    kv = torch.zeros(2, 2, 2, 3, 16, 64, dtype=dtype)
    backend = CpuBackend(make_config(9, 3, 64), kv, {}, kernel_cache, multiply_plain=True)
    weight = torch.randn(outputs, 96).to(dtype)
    bias = torch.randn(outputs).to(dtype) if biased else None
    multiply = backend.linear("x", weight, bias)
    x = torch.randn(20, 96).to(dtype)
    expected = torch.nn.functional.linear(x, weight, bias)
    for rows in (*range(10), 20):
        torch.testing.assert_close(multiply(x[:rows]), expected[:rows], **tolerance(dtype))


def test_a_row_of_a_small_product_does_not_depend_on_the_others(kernel_cache: Any) -> None:
    torch.manual_seed(0)
    kv = torch.zeros(2, 2, 2, 3, 16, 64, dtype=torch.bfloat16)
    backend = CpuBackend(make_config(9, 3, 64), kv, {}, kernel_cache, multiply_plain=True)
    multiply = backend.linear("x", torch.randn(100, 576).bfloat16(), None)
    x = torch.randn(8, 576).bfloat16()
    for rows in range(1, 9):
        assert torch.equal(multiply(x[:rows])[0], multiply(x)[0])
