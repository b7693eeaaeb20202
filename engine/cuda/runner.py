"""The engine behind a scheduler, on a GPU. Owns one model, its blocks on the device and the order of a step.

batch ─► arrays in pinned memory ─► device ─► graph or kernels ─► tokens ─► host
                                                                  the step's one wait
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

import torch

from engine.checkpoints.prepared import read_manifest
from engine.cuda.backend import CudaBackend
from engine.cuda.decode_graphs import Choices, DecodeGraphs, choices_of
from engine.cuda.dummy_weights import DummyWeights
from engine.cuda.sampler import DeviceSampler
from engine.kv.block_rows import BlockRows
from engine.model.decoder import Model
from engine.model.ragged_batch import ragged_batch
from engine.model.weights import MappedWeights, load_weights
from engine.sampling.pooling import logits_of
from engine.sampling.scoring import score
from engine.step_limits import check_contexts

if TYPE_CHECKING:
    from collections.abc import Sequence as SequenceOf
    from pathlib import Path

    from engine.kv.sequence import Scheduled
    from engine.model.ragged_batch import RaggedBatch
    from engine.model.weights import WeightSource
    from protocol.model_config import ModelConfig
    from protocol.sampling import SampledToken


class BlockMemory(Protocol):
    """Where the KV blocks lie."""

    num_blocks: int
    block_bytes: int

    def tensor(self) -> torch.Tensor:
        """All of it as uint8 on the device."""
        ...


def pool_tensor(
    memory: BlockMemory, config: ModelConfig, block_size: int, dtype: torch.dtype
) -> torch.Tensor:
    """The pool in the shape of engine.kv.pool_tensor; writing to it writes to the blocks."""
    per_block = (config.num_layers, 2, config.num_kv_heads, block_size, config.head_dim)
    return memory.tensor().view(dtype).view(memory.num_blocks, *per_block)


class CudaRunner:
    """Satisfies engine.runner_api.Runner. Used by one thread at a time."""

    def __init__(
        self,
        config: ModelConfig,
        weights: WeightSource,
        memory: BlockMemory,
        *,
        block_size: int,
        dtype: torch.dtype,
        max_num_seqs: int,
    ) -> None:
        """Weights go to the device of `memory`; graphs are captured by `warm_up`."""
        kv = pool_tensor(memory, config, block_size, dtype)
        backend = CudaBackend(config, kv)
        with torch.inference_mode():
            loaded = load_weights(weights, config.num_layers, backend)
        self.config = config
        self.kv_memory = memory
        self.block_bytes = memory.block_bytes
        self.block_size = block_size
        self.backend = backend.description
        self.max_context_tokens = backend.max_context_tokens
        self._kv = kv
        self._rows = BlockRows()
        self._model = Model(config, loaded, backend)
        self._sampler = DeviceSampler(kv.device)
        self._graphs = DecodeGraphs(self._model, backend, max_num_seqs, self.max_context_tokens)

    @classmethod
    def load(
        cls, prepared: Path, memory: BlockMemory, *, block_size: int, max_num_seqs: int
    ) -> CudaRunner:
        """The model of a prepared directory on the device of `memory`; random weights where it has none."""
        torch.backends.cuda.matmul.allow_bf16_reduced_precision_reduction = False
        manifest = read_manifest(prepared)
        config, dtype = manifest.config, getattr(torch, manifest.dtype)
        device = memory.tensor().device
        weights: WeightSource = DummyWeights(config, dtype, device)
        if manifest.tensors:
            weights = MappedWeights(prepared, manifest, device)
        return cls(
            config,
            weights,
            memory,
            block_size=block_size,
            dtype=dtype,
            max_num_seqs=max_num_seqs,
        )

    def execute(self, batch: SequenceOf[Scheduled]) -> list[SampledToken | None]:
        """One step: KV of every scheduled token, and a next token where `samples` is true."""
        if not batch:
            return []
        check_contexts(batch, self.block_size, self.max_context_tokens)
        sampling = [entry.sequence for entry in batch if entry.samples]
        with torch.inference_mode():
            choices = self._start(ragged_batch(batch, self.block_size, self._rows), batch)
            if any(entry.scored for entry in batch):
                choices = choices_of(score(choices.logits, batch))
            chosen = iter(self._sampler.choose(choices, sampling))
        return [next(chosen) if entry.samples else None for entry in batch]

    def _start(self, ragged: RaggedBatch, batch: SequenceOf[Scheduled]) -> Choices:
        """Everything up to the logits, on its way."""
        if self._graphs.fits(ragged) and not any(entry.pooled for entry in batch):
            return self._graphs.run(ragged)
        return choices_of(logits_of(self._model, ragged, batch))

    def warm_up(self) -> None:
        """Capture the graphs, which compiles the kernels of decode; only while the pool is all free."""
        if self._kv.device.type == "cuda":
            self._graphs.capture()

    def close(self) -> None:
        """Let go of everything on the device but the pool itself."""
        del self._model, self._graphs, self._kv
        if torch.cuda.is_available():
            torch.cuda.empty_cache()
