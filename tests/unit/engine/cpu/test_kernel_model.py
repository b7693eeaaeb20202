"""A whole step in the kernels against the decoder in plain torch, on random shapes, batches and weights."""

from __future__ import annotations

import gc
import os
import shutil
import weakref
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from engine.cpu.kernel_model import KernelModel
from engine.cpu.lending import LentCores
from engine.model.decoder import Model
from engine.model.weights import load_weights
from engine.reference.backend import TorchBackend
from protocol.model_config import ModelConfig
from tests.unit.engine.cpu.driving import kernels_for, turned, turned_back
from tests.unit.engine.cpu.processors import runnable_targets
from tests.unit.engine.cpu.test_cpu_kernels import make_batch

pytestmark = pytest.mark.skipif(shutil.which("cc") is None, reason="needs a C compiler")
REPEATS = [pytest.mark.slow, pytest.mark.deep]
TARGETS = ["native", *(pytest.param(name, marks=REPEATS) for name in runnable_targets()[1:])]
VOCAB = 90


class RandomWeights:
    """Satisfies WeightSource. Vectors near one, matrices that keep the size of what they multiply."""

    def __init__(
        self, config: ModelConfig, dtype: torch.dtype, *, biased: bool, normed: bool
    ) -> None:
        hidden, inner, dim = config.hidden_size, config.intermediate_size, config.head_dim
        heads = config.num_heads * dim
        shapes: dict[str, tuple[int, ...]] = {"embed": (VOCAB, hidden), "norm": (hidden,)}
        for index in range(config.num_layers):
            layer: dict[str, tuple[int, ...]] = {
                "input_norm": (hidden,),
                "post_norm": (hidden,),
                "qkv": (heads + 2 * config.num_kv_heads * dim, hidden),
                "out": (hidden, heads),
                "gate_up": (2 * inner, hidden),
                "down": (hidden, inner),
            }
            if biased:
                layer |= {f"{name}_bias": layer[name][:1] for name in ("qkv", "out", "gate_up")}
            if normed:
                layer |= {"q_norm": (dim,), "k_norm": (dim,)}
            shapes |= {f"layers.{index}.{name}": shape for name, shape in layer.items()}
        self._tensors = {name: self._random(shape, dtype) for name, shape in shapes.items()}

    @staticmethod
    def _random(shape: tuple[int, ...], dtype: torch.dtype) -> torch.Tensor:
        wide = torch.rand(shape) + 0.5 if len(shape) == 1 else torch.randn(shape) * shape[1] ** -0.5
        return wide.to(dtype)

    def find(self, name: str) -> torch.Tensor | None:
        return self._tensors.get(name)

    def get(self, name: str) -> torch.Tensor:
        return self._tensors[name]


@st.composite
def configs(draw: Any) -> ModelConfig:
    kv_heads = draw(st.integers(1, 3))
    return ModelConfig(
        family="llama",
        vocab_size=VOCAB,
        hidden_size=16 * draw(st.integers(1, 12)),
        intermediate_size=16 * draw(st.integers(1, 20)),
        num_layers=draw(st.integers(1, 3)),
        num_heads=kv_heads * draw(st.integers(1, 5)),
        num_kv_heads=kv_heads,
        head_dim=draw(st.sampled_from([32, 64, 96, 128])),
        rms_norm_eps=1e-5,
        rope_theta=10000.0,
        max_position_embeddings=512,
        sliding_window=draw(st.sampled_from([None, None, 1, 40])),
    )


spans = st.lists(st.tuples(st.integers(0, 90), st.integers(1, 70)), min_size=1, max_size=5)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["f32", "bf16"])
@pytest.mark.parametrize("target", TARGETS)
@settings(max_examples=25, deadline=None, suppress_health_check=list(HealthCheck))
@given(
    config=configs(),
    spans=spans,
    block_size=st.sampled_from([1, 8, 16, 32]),
    seed=st.integers(0, 1 << 20),
    flags=st.tuples(st.booleans(), st.booleans()),
)
def test_a_step_equals_the_reference(
    target: str,
    dtype: torch.dtype,
    config: ModelConfig,
    spans: list[tuple[int, int]],
    block_size: int,
    seed: int,
    flags: tuple[bool, bool],
) -> None:
    torch.manual_seed(seed)
    weights = RandomWeights(config, dtype, biased=flags[0], normed=flags[1])
    batch = make_batch(spans, block_size, 1024 // block_size, seed)
    batch.token_ids[:] = torch.randint(0, VOCAB, (batch.num_tokens,)).numpy()
    shape = (1024 // block_size, config.num_layers, 2, config.num_kv_heads, block_size, -1)
    kv = torch.randn(shape[0], shape[1] * 2 * shape[3] * block_size * config.head_dim)
    kv = kv.to(dtype).view(shape)
    fast = KernelModel(config, weights, turned(kv), kernels_for(dtype, target), {})
    reference = TorchBackend(config, kv)
    expected = Model(config, load_weights(weights, config.num_layers, reference), reference)
    close: Any = (
        {"atol": 1e-3, "rtol": 1e-3} if dtype == torch.float32 else {"atol": 0.2, "rtol": 0.1}
    )
    torch.testing.assert_close(fast.forward(batch), expected.forward(batch), **close)
    torch.testing.assert_close(turned_back(fast._kv), kv, **close)


def own_threads() -> set[int]:
    return {int(task.name) for task in Path("/proc/self/task").iterdir()}


def test_threads_on_lent_cores_end_with_the_model_that_they_read(tmp_path: Path) -> None:
    """Whoever let it go: one that was left behind would read memory that is another's by then, or nobody's."""
    config = ModelConfig(
        family="llama",
        vocab_size=VOCAB,
        hidden_size=32,
        intermediate_size=32,
        num_layers=1,
        num_heads=1,
        num_kv_heads=1,
        head_dim=32,
        rms_norm_eps=1e-5,
        rope_theta=10000.0,
        max_position_embeddings=512,
    )
    weights = RandomWeights(config, torch.float32, biased=False, normed=False)
    kv, kernels = turned(torch.zeros(4, 1, 2, 1, 16, 32)), kernels_for(torch.float32)
    before, core = own_threads(), min(os.sched_getaffinity(0))
    cores = LentCores(tmp_path / "cores", (), (core,))
    model = KernelModel(config, weights, kv, kernels, {}, cores)
    assert len(own_threads() - before) == 1
    left_at_its_end: list[set[int]] = []
    weakref.finalize(model._scratch, lambda: left_at_its_end.append(own_threads() - before))
    del model
    gc.collect()
    assert left_at_its_end == [set()]
