"""Products of bytes: to the bit what numpy computes step by step, on every kind of processor, and near the product that they stand for."""

from __future__ import annotations

import shutil
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np
import pytest
import torch

from engine.cpu.quantized import quantized_words
from engine.cpu.quantized_sizes import GROUP, quantized_bytes
from protocol.quantization import Quantization
from tests.unit.engine.cpu.driving import PackedMatrix, kernels_for
from tests.unit.engine.cpu.processors import runnable_targets

if TYPE_CHECKING:
    import numpy.typing as npt

pytestmark = pytest.mark.skipif(shutil.which("cc") is None, reason="needs a C compiler")

REPEATS = [pytest.mark.slow, pytest.mark.deep]
TARGETS = ["native", *(pytest.param(name, marks=REPEATS) for name in runnable_targets()[1:])]
BOTH = pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["f32", "bf16"])
SHAPES = [(1, 16), (15, 96), (64, 48), (100, 576), (33, 1504)]
ROWS = (1, 2, 3, 5, 6, 7, 8, 9, 13, 14, 15, 16, 17, 31, 32, 33, 47, 100)
Floats: TypeAlias = "npt.NDArray[np.float32]"


def matrix(weight: Any, bias: Any, target: str, *, gated: bool = False) -> PackedMatrix:
    kernels = kernels_for(weight.dtype, target, Quantization.INT8)
    return PackedMatrix(kernels, weight, bias, gated=gated)


def in_groups(values: Floats) -> tuple[Floats, Floats]:
    """[rows, groups, GROUP] and [rows, groups] scales, in numpy's float32."""
    padded = np.pad(values, ((0, 0), (0, -values.shape[1] % GROUP)))
    groups = padded.reshape(len(padded), -1, GROUP)
    largest = np.abs(groups).max(axis=2)
    scale = largest / np.float32(127)
    return groups, scale


def rows_as_bytes(values: Floats) -> tuple[npt.NDArray[np.int64], Floats]:
    groups, scale = in_groups(values)
    largest = np.abs(groups).max(axis=2)
    factor = np.divide(np.float32(127), largest, where=largest > 0, out=np.zeros_like(largest))
    return np.rint(groups * factor[..., None]).astype(np.int64), scale


def weights_as_bytes(values: Floats) -> tuple[npt.NDArray[np.int64], Floats]:
    groups, scale = in_groups(values)
    divided = np.divide(
        groups, scale[..., None], where=scale[..., None] > 0, out=np.zeros_like(groups)
    )
    return np.rint(divided).astype(np.int64), scale


def product(x: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
    """float32 [rows, outputs]: integers of a group, times the weights' scale, times the row's, added group after group."""
    own, row_scales = rows_as_bytes(x.float().numpy())
    kept, scales = weights_as_bytes(weight.float().numpy())
    total = np.zeros((len(own), len(kept)), dtype=np.float32)
    for g in range(own.shape[1]):
        integers = (own[:, g] @ kept[:, g].T).astype(np.float32)
        total += (integers * scales[None, :, g]) * row_scales[:, g, None]
    return torch.from_numpy(total)


def drawn(outputs: int, inputs: int, dtype: torch.dtype, rows: int = max(ROWS)) -> tuple[Any, Any]:
    """A weight, and rows with some large values among them, as activations have."""
    torch.manual_seed(inputs)
    weight = (torch.randn(outputs, inputs) * inputs**-0.5).to(dtype)
    x = torch.randn(rows, inputs) * torch.where(torch.rand(inputs) < 0.05, 20.0, 1.0)
    return weight, x.to(dtype)


@BOTH
@pytest.mark.parametrize("biased", [False, True])
@pytest.mark.parametrize(("outputs", "inputs"), SHAPES)
@pytest.mark.parametrize("target", TARGETS)
def test_a_product_of_bytes_has_the_bits_of_its_definition_for_every_number_of_rows(
    dtype: Any, biased: Any, outputs: Any, inputs: Any, target: Any
) -> None:
    weight, x = drawn(outputs, inputs, dtype)
    bias = torch.randn(outputs).to(dtype) if biased else None
    multiply = matrix(weight, bias, target)
    expected = product(x, weight)
    if bias is not None:
        expected = expected + bias.float()
    expected = expected.to(dtype)
    for rows in ROWS:
        multiply.num_threads = 1 + rows % 3
        first = max(ROWS) - rows
        assert torch.equal(multiply(x[first:]), expected[first:]), rows
    assert multiply(x[:0]).shape == (0, outputs)
    residual = torch.randn(expected.shape).to(dtype)
    assert torch.equal(multiply(x, residual), residual + expected)


@BOTH
@pytest.mark.parametrize("biased", [False, True])
@pytest.mark.parametrize("inputs", [48, 192])
@pytest.mark.parametrize("target", TARGETS)
def test_a_gated_product_of_bytes_is_gated_after_its_sums(
    dtype: Any, biased: Any, inputs: Any, target: Any
) -> None:
    weight, x = drawn(2 * 80, inputs, dtype, 33)
    bias = torch.randn(2 * 80).to(dtype) if biased else None
    sums = product(x, weight) + (0 if bias is None else bias.float())
    gate, up = sums.to(dtype).chunk(2, dim=-1)
    multiply = matrix(weight, bias, target, gated=True)
    whole = multiply(x)
    close: Any = (
        {"atol": 1e-5, "rtol": 1e-5} if dtype == torch.float32 else {"atol": 2e-2, "rtol": 2e-2}
    )
    torch.testing.assert_close(whole, torch.nn.functional.silu(gate) * up, **close)
    for row in range(33):
        assert torch.equal(multiply(x[row : row + 1])[0], whole[row])


@BOTH
def test_a_product_of_bytes_is_near_the_product(dtype: Any) -> None:
    weight, x = drawn(256, 1536, dtype)
    found, expected = matrix(weight, None, "native")(x).float(), x.float() @ weight.float().T
    error = (found - expected).square().mean().sqrt() / expected.square().mean().sqrt()
    assert error < 0.03


@BOTH
@pytest.mark.parametrize("target", TARGETS)
def test_a_product_of_many_blocks_of_rows_has_the_bits_of_its_definition(
    dtype: Any, target: Any
) -> None:
    """More rows than stay in the cache while a matrix passes by."""
    weight, x = drawn(40, 1536, dtype, 700)
    assert torch.equal(matrix(weight, None, target)(x), product(x, weight).to(dtype))


@BOTH
@pytest.mark.parametrize("odd", [float("nan"), float("inf"), -float("inf")])
@pytest.mark.parametrize("rows", [5, 40])
@pytest.mark.parametrize("target", TARGETS)
def test_what_is_no_number_stays_in_its_row(dtype: Any, odd: Any, rows: Any, target: Any) -> None:
    weight, x = drawn(48, 192, dtype, rows)
    multiply = matrix(weight, None, target)
    expected = multiply(x)
    x[3, 100] = odd
    found = multiply(x)
    assert found[3].isnan().all()
    others = [row for row in range(rows) if row != 3]
    assert torch.equal(found[others], expected[others])


@BOTH
@pytest.mark.parametrize("scale", [0.0, 1e-38, 1e-30, 1e30])
def test_rows_of_any_size_are_scaled(dtype: Any, scale: Any) -> None:
    weight, x = drawn(48, 192, dtype, 20)
    multiply = matrix(weight, None, "native")
    found = multiply((x.float() * scale).to(dtype)).float()
    assert found.isfinite().all()
    if scale > 1e-32:
        expected = multiply(x).float() * scale
        assert (found - expected).abs().max() <= 0.02 * expected.abs().max()


def test_a_weight_comes_back_within_half_a_step_of_its_group() -> None:
    weight = torch.randn(7, 200)
    weight[2, 64:128] = 0.0
    words = quantized_words(weight)
    assert words.shape == (7, 4 * (GROUP // 4 + 1))
    assert words.numel() * 4 == quantized_bytes(weight.shape)
    groups = words.view(7, 4, GROUP // 4 + 1)
    scales = groups[:, :, -1].contiguous().view(torch.float32)
    values = groups[:, :, :-1].contiguous().view(torch.uint8).view(7, 4, GROUP).float() - 128
    found = (values * scales[..., None]).flatten(1)[:, :200]
    step = scales.repeat_interleave(GROUP, 1)[:, :200]
    assert ((found - weight).abs() <= step * 0.5001).all()


def test_a_weight_that_is_no_number_spoils_its_output_and_no_other() -> None:
    weight, x = drawn(48, 192, torch.float32, 4)
    expected = matrix(weight, None, "native")(x)
    weight[5, 70] = float("inf")
    found = matrix(weight, None, "native")(x)
    assert found[:, 5].isnan().all()
    assert torch.equal(found[:, 6:], expected[:, 6:])


def test_a_vector_is_kept_as_it_is() -> None:
    assert quantized_bytes((576,)) == 0


def test_bytes_have_an_arithmetic_and_panels_of_their_own() -> None:
    plain, quantized = (kernels_for(torch.bfloat16, "native", q) for q in Quantization)
    assert quantized.arithmetic == f"{plain.arithmetic}+int8/1"
    assert quantized.layout != plain.layout
