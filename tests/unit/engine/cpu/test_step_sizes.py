"""What the largest step takes: counted before a start, taken at the start, and no more than that later."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from engine.cpu.kernel_model import KernelModel
from engine.cpu.step_sizes import StepLimits, step_bytes
from protocol.model_config import ModelConfig
from protocol.quantization import Quantization
from tests.unit.engine.cpu.driving import kernels_for
from tests.unit.engine.cpu.test_cpu_kernels import make_batch
from tests.unit.engine.cpu.test_kernel_model import VOCAB, RandomWeights

LIMITS = StepLimits(tokens=96, samples=20)


def config_of(**sizes: Any) -> ModelConfig:
    fields: dict[str, Any] = {
        "family": "llama",
        "vocab_size": VOCAB,
        "hidden_size": 64,
        "intermediate_size": 192,
        "num_layers": 2,
        "num_heads": 4,
        "num_kv_heads": 2,
        "head_dim": 32,
        "rms_norm_eps": 1e-5,
        "rope_theta": 1e4,
        "max_position_embeddings": 512,
    }
    return ModelConfig(**(fields | sizes))


def model_of(config: ModelConfig, dtype: torch.dtype) -> KernelModel:
    heads, dim = config.num_kv_heads, config.head_dim
    kv = torch.zeros(64, config.num_layers, 2, heads, 16, dim, dtype=dtype)
    weights = RandomWeights(config, dtype, biased=False, normed=False)
    return KernelModel(config, weights, kv, kernels_for(dtype, "native"), {})


SHAPES: list[dict[str, Any]] = [
    {},
    {"intermediate_size": 1536, "hidden_size": 576, "num_heads": 9, "num_kv_heads": 3},
    {"num_heads": 16, "num_kv_heads": 1, "hidden_size": 16, "intermediate_size": 16},
]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["f32", "bf16"])
@pytest.mark.parametrize("sizes", SHAPES)
@pytest.mark.parametrize("lent", [0, 1, 15])
@pytest.mark.parametrize("adapts", [False, True])
def test_what_is_counted_is_what_the_kernels_ask_for(
    dtype: torch.dtype, sizes: dict[str, Any], lent: int, *, adapts: bool
) -> None:
    config = config_of(**sizes)
    model = model_of(config, dtype)
    for limits in (StepLimits(512, 64, adapts), StepLimits(1, 1, adapts)):
        adapted = limits.tokens if adapts else 0
        rows = limits.tokens, limits.samples, lent, adapted
        scratch = model._kernels.scratch_bytes(model._decoder, *rows)
        spare = scratch if lent else 0
        logits = limits.tokens * config.vocab_size * (dtype.itemsize + 4)
        counted = step_bytes(config, dtype.itemsize, limits, lent, num_scored=512)
        assert counted >= scratch + logits
        assert counted <= 3 * (scratch + spare + logits) + 4096 * (lent + 2)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["f32", "bf16"])
def test_no_step_takes_more_than_was_reserved(dtype: torch.dtype) -> None:
    model = model_of(config_of(), dtype)
    model.reserve(LIMITS)
    reserved, size = model._scratch.data_ptr(), len(model._scratch)
    for spans in ([(0, 96)], [(0, 90), (7, 1), (40, 1)], [(3, 1)], [(0, 1)] * 60):
        batch = make_batch(spans, 16, 64, 1)
        batch.token_ids[:] = 7
        model.forward(batch)
        assert (model._scratch.data_ptr(), len(model._scratch)) == (reserved, size)
    assert len(model._spare) == len(model._passing) == 0


def test_limits_hold_a_token_of_every_sequence() -> None:
    assert StepLimits.of(512, 64) == StepLimits(512, 64)
    assert StepLimits.of(16, 64) == StepLimits(64, 64)


def test_matrices_of_bytes_need_no_more_than_is_counted() -> None:
    config = config_of()
    kernels = kernels_for(torch.float32, "native", Quantization.INT8)
    weights = RandomWeights(config, torch.float32, biased=False, normed=False)
    kv = torch.zeros(64, 2, 2, 2, 16, 32)
    model = KernelModel(config, weights, kv, kernels, {})
    scratch = model._kernels.scratch_bytes(model._decoder, 96, 20, 0, 0)
    assert step_bytes(config, 4, LIMITS) >= scratch
