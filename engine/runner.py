"""The engine behind a scheduler. Owns one model, its KV memory and the order forward → sample.

prepared directory ─► MappedWeights ─► backend ─► Model ┐
RunnerOptions ──────► KvMemory ───────────────────────── ┴─► ModelRunner.execute(batch)
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch

from engine.checkpoints.prepared import kv_block_bytes, read_manifest
from engine.cpu.backend import CpuBackend, find_kernels
from engine.cpu.kernel_library import Kernels
from engine.cpu.panels import load_panels
from engine.kv.pool_memory import KvMemory
from engine.kv.pool_tensor import kv_tensor
from engine.model.decoder import Model
from engine.model.ragged_batch import RaggedBatch, ragged_batch
from engine.model.weights import MappedWeights, load_weights
from engine.reference.backend import TorchBackend
from engine.sampling.sampler import sample
from engine.step_limits import check_contexts
from protocol.errors import ConfigError

if TYPE_CHECKING:
    from collections.abc import Callable
    from collections.abc import Sequence as SequenceOf
    from pathlib import Path

    from engine.checkpoints.prepared import PreparedManifest
    from engine.kv.sequence import Scheduled
    from protocol.sampling import SampledToken

_WARM_UP_TOKENS = 16


@dataclass(frozen=True, slots=True, kw_only=True)
class RunnerOptions:
    """How a runner computes. `backend` is auto, cpu or torch; `kernel_cache` is where compiled
    kernels are kept, None for no kernels, and `kernel_target` a key of engine.cpu.kernel_library.TARGETS.
    `shared_weights_fd` is an inherited memfd that all workers share (engine.model.shared_weights);
    without one the matrices are mapped from their file."""

    num_blocks: int
    block_size: int = 16
    backend: str = "auto"
    num_threads: int = 1
    kernel_cache: Path | None = None
    kernel_target: str = "native"
    shared_weights_fd: int | None = None


class ModelRunner:
    """Satisfies engine.runner_api.Runner. Used by one thread at a time."""

    def __init__(
        self, model: Model, kv_memory: KvMemory, kv: torch.Tensor, arithmetic: str
    ) -> None:
        """`arithmetic`: runners of equal names write equal KV for equal tokens, if it is exact at all."""
        self.config = model.config
        self.kv_memory = kv_memory
        self.block_bytes = kv_memory.block_bytes
        self.block_size: int = kv.shape[4]
        self.backend = model.backend.description
        self.arithmetic = arithmetic
        self.max_context_tokens = model.backend.max_context_tokens
        self._model = model
        self._kv = kv

    @classmethod
    def load(
        cls,
        prepared: Path,
        options: RunnerOptions,
        memory_factory: Callable[[int, int], KvMemory] = KvMemory,
    ) -> ModelRunner:
        """Map the weights of a prepared directory and reserve the KV blocks.

        `memory_factory(num_blocks, block_bytes)`. Sets this process's number of torch threads.
        """
        torch.set_num_threads(options.num_threads)
        manifest = read_manifest(prepared)
        config, dtype = manifest.config, getattr(torch, manifest.dtype)
        mapped = MappedWeights(prepared, manifest, torch.device("cpu"))
        block_bytes = kv_block_bytes(config, options.block_size, manifest.dtype)
        memory = memory_factory(options.num_blocks, block_bytes)
        kv = kv_tensor(memory, config, options.block_size, dtype)
        backend = _choose_backend(prepared, manifest, options, mapped, kv)
        model = Model(config, load_weights(mapped, config.num_layers, backend), backend)
        return cls(model, memory, kv, backend.arithmetic)

    def execute(self, batch: SequenceOf[Scheduled]) -> list[SampledToken | None]:
        """One step: KV of every scheduled token, and a next token where `samples` is true."""
        if not batch:
            return []
        check_contexts(batch, self.block_size, self.max_context_tokens)
        sampling = [entry.sequence for entry in batch if entry.samples]
        with torch.inference_mode():
            logits = self.logits(batch)
            chosen = iter(sample(logits, sampling))
        return [next(chosen) if entry.samples else None for entry in batch]

    def logits(self, batch: SequenceOf[Scheduled]) -> torch.Tensor:
        """[entries that sample, vocab] float32, and the KV of every scheduled token: a step without its choice."""
        with torch.inference_mode():
            return self._model.forward(ragged_batch(batch, self.block_size))

    def warm_up(self) -> None:
        """Run a tiny prefill and decode in the first blocks, then clear them; only while the pool is all free."""
        count = min(_WARM_UP_TOKENS, self.kv_memory.num_blocks * self.block_size - 1)
        num_blocks = -(-(count + 1) // self.block_size)
        with torch.inference_mode():
            for start, tokens in ((0, count), (count, 1)):
                self._model.forward(_tiny_batch(start, tokens, num_blocks))
            self._kv[:num_blocks].zero_()

    def close(self) -> None:
        """Let go of the KV memory's tensors, so that `kv_memory.close` can unmap it."""
        del self._model, self._kv


def _choose_backend(
    prepared: Path,
    manifest: PreparedManifest,
    options: RunnerOptions,
    mapped: MappedWeights,
    kv: torch.Tensor,
) -> TorchBackend:
    if options.backend not in ("auto", "cpu", "torch"):
        raise ConfigError(f"backend {options.backend!r} is unknown; supported: auto, cpu, torch")
    if options.backend == "torch":
        return TorchBackend(manifest.config, kv)
    target = options.kernel_target
    kernels = find_kernels(manifest.config, kv.dtype, options.kernel_cache, target)
    panels = {}
    if isinstance(kernels, Kernels):
        panels = load_panels(prepared, manifest, mapped, kernels, options.shared_weights_fd)
    return CpuBackend(manifest.config, kv, kernels, panels)


def _tiny_batch(start: int, count: int, num_blocks: int) -> RaggedBatch:
    return RaggedBatch(
        token_ids=np.zeros(count, dtype=np.int64),
        positions=np.arange(start, start + count, dtype=np.int32),
        query_starts=np.array([0, count], dtype=np.int32),
        context_lengths=np.array([start + count], dtype=np.int32),
        block_tables=np.arange(num_blocks, dtype=np.int32)[None],
        sample_rows=np.array([count - 1], dtype=np.int64),
    )
