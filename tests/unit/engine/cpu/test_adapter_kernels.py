"""What the kernels add for adapters, against plain torch, and each row against itself without company."""

from __future__ import annotations

import shutil
import tempfile
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import torch

from engine.cpu.kernel_model import KernelModel
from engine.model.decoder import Model
from engine.model.ragged_batch import AdapterRows, RaggedBatch
from engine.model.weights import load_weights
from engine.reference.backend import TorchBackend
from protocol.model_config import ModelConfig
from tests.adapter_contents import random_content
from tests.unit.engine.cpu.driving import kernels_for, turned, turned_back
from tests.unit.engine.cpu.processors import runnable_targets
from tests.unit.engine.cpu.test_cpu_kernels import make_batch
from tests.unit.engine.cpu.test_kernel_model import VOCAB, RandomWeights

if TYPE_CHECKING:
    from engine.adapters.content import Content

pytestmark = pytest.mark.skipif(shutil.which("cc") is None, reason="needs a C compiler")
REPEATS = [pytest.mark.slow, pytest.mark.deep]
TARGETS = ["native", *(pytest.param(name, marks=REPEATS) for name in runnable_targets()[1:])]
CONFIG = ModelConfig(
    family="llama",
    vocab_size=VOCAB,
    hidden_size=80,
    intermediate_size=784,  # more inputs than are floats at once
    num_layers=2,
    num_heads=3,
    num_kv_heads=1,
    head_dim=32,
    rms_norm_eps=1e-5,
    rope_theta=10000.0,
    max_position_embeddings=512,
)
HOW: tuple[dict[str, Any] | None, ...] = (
    None,
    {"rank": 64},
    {"rank": 5},
    {"rank": 16, "modules": r".*\.(q_proj|v_proj|up_proj)"},
    {"rank": 33, "modules": r".*1\..*"},
    {"rank": 1, "modules": r".*0\..*down_proj"},
)
SPANS = [(0, 2), (4, 9), (0, 1), (7, 1), (0, 6), (3, 2)]
"""Computed and new tokens of a sequence of each: whole items of one adapter, items of several, and a remainder."""
BLOCKS = 64


def batch_of(contents: list[Content | None], numbers: range) -> RaggedBatch:
    """The sequences of these numbers; their blocks and tokens are the same in every batch."""
    whole = make_batch(SPANS, 16, BLOCKS, 3)
    whole.token_ids[:] = torch.arange(whole.num_tokens).numpy() % VOCAB
    low, high = whole.query_starts[numbers.start], whole.query_starts[numbers.stop]
    starts = whole.query_starts[numbers.start : numbers.stop + 1] - low
    adapters = [
        AdapterRows(adapter, int(first), int(end), place, place + 1)
        for place, (adapter, first, end) in enumerate(
            zip((contents[n] for n in numbers), starts, starts[1:], strict=False)
        )
        if adapter is not None
    ]
    return replace(
        whole,
        token_ids=whole.token_ids[low:high],
        positions=whole.positions[low:high],
        query_starts=starts,
        context_lengths=whole.context_lengths[numbers.start : numbers.stop],
        block_tables=whole.block_tables[numbers.start : numbers.stop].copy(),
        sample_rows=(starts[1:] - 1).astype("int64"),
        adapters=tuple(adapters),
    )


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["f32", "bf16"])
@pytest.mark.parametrize("target", TARGETS)
@pytest.mark.parametrize("threads", [1, 3])
def test_adapters_of_a_step_equal_the_reference_and_each_sequence_alone(
    dtype: torch.dtype, target: str, threads: int
) -> None:
    torch.manual_seed(5)
    weights = RandomWeights(CONFIG, dtype, biased=True, normed=False)
    kv = torch.randn(BLOCKS, CONFIG.num_layers, 2, 1, 16, 32).to(dtype)
    fast = KernelModel(CONFIG, weights, turned(kv), kernels_for(dtype, target), {})
    fast.num_threads = threads
    before = fast._kv.clone()
    reference = TorchBackend(CONFIG, kv)
    expected = Model(CONFIG, load_weights(weights, CONFIG.num_layers, reference), reference)
    close: Any = (
        {"atol": 1e-3, "rtol": 1e-3} if dtype == torch.float32 else {"atol": 0.3, "rtol": 0.1}
    )
    with tempfile.TemporaryDirectory() as directory:
        name = str(dtype).removeprefix("torch.")
        contents = [
            None if how is None else random_content(Path(directory), CONFIG, name, seed=n, **how)
            for n, how in enumerate(HOW)
        ]
        everybody = batch_of(contents, range(len(SPANS)))
        logits = fast.forward(everybody)
        torch.testing.assert_close(logits, expected.forward(everybody), **close)
        torch.testing.assert_close(turned_back(fast._kv), kv, **close)
        together = fast._kv.clone()
        fast._kv.copy_(before)
        for number in range(len(SPANS)):
            row = fast.forward(batch_of(contents, range(number, number + 1)))[0]
            assert torch.equal(row, logits[number]), number
        assert torch.equal(fast._kv, together)
        plain = fast.forward(batch_of([None] * len(SPANS), range(len(SPANS))))
        differ = (plain != logits).any(dim=1).tolist()
        assert differ == [how is not None for how in HOW]
