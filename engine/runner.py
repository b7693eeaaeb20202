"""The engine behind a scheduler. Owns one model, its KV memory and the order forward → sample.

prepared directory ─► MappedWeights ─► KernelModel, or backend ─► Model ┐
RunnerOptions ──────► KvMemory ─────────────────────────────────────────┴─► ModelRunner.execute(batch)
"""

from __future__ import annotations

from dataclasses import dataclass
from operator import itemgetter
from typing import TYPE_CHECKING, Protocol

import numpy as np
import torch

from engine.checkpoints.prepared import kv_block_bytes, read_manifest
from engine.cpu.backend import PlainBackend, find_kernels
from engine.cpu.kernel_library import Kernels
from engine.cpu.kernel_model import KernelModel
from engine.cpu.panels import load_panels, mapping_of
from engine.kv.pool_memory import KvMemory
from engine.kv.pool_tensor import KV_LAYOUT, kv_tensor
from engine.model.decoder import Model
from engine.model.ragged_batch import RaggedBatch, grouped, ragged_batch
from engine.model.weights import MappedWeights, load_weights
from engine.reference.backend import ARITHMETIC, TorchBackend
from engine.sampling.overflows import without_overflows
from engine.sampling.pooling import logits_of
from engine.sampling.sampler import sample
from engine.sampling.scoring import score
from engine.step_limits import check_contexts
from protocol.errors import ConfigError
from protocol.quantization import Quantization

if TYPE_CHECKING:
    from collections.abc import Callable
    from collections.abc import Sequence as SequenceOf
    from pathlib import Path

    from engine.checkpoints.prepared import PreparedManifest
    from engine.cpu.lending import LentCores
    from engine.cpu.step_sizes import StepLimits
    from engine.kv.sequence import Scheduled
    from engine.sampling.pooling import Forward
    from protocol.model_config import ModelConfig
    from protocol.sampling import SampledToken

_WARM_UP_TOKENS = 16


@dataclass(frozen=True, slots=True, kw_only=True)
class RunnerOptions:
    """How a runner computes. `backend` is auto, cpu or torch; `kernel_cache` is where compiled
    kernels are kept, None for no kernels, and `kernel_target` a key of engine.cpu.kernel_library.TARGETS.
    `quantization`: how the matrices are kept. `shared_weights_fd` is an inherited memfd that all workers share (engine.model.shared_weights);
    without one the matrices are mapped from their file. `lent_cores`: other workers' cores that may help.
    `step_limits`: the largest step, whose scratch is taken at the start; None to take it as steps come."""

    num_blocks: int
    block_size: int = 16
    backend: str = "auto"
    num_threads: int = 1
    kernel_cache: Path | None = None
    kernel_target: str = "native"
    quantization: Quantization = Quantization.NONE
    shared_weights_fd: int | None = None
    lent_cores: LentCores | None = None
    step_limits: StepLimits | None = None


class Computing(Protocol):
    """What a step computes with, as far as others ask. Runners of equal `arithmetic` and `kv_layout` write equal
    bytes for equal tokens, if they are exact at all."""

    description: str
    arithmetic: str
    kv_layout: str
    max_context_tokens: int


class ModelRunner:
    """Satisfies engine.runner_api.Runner. Used by one thread at a time. `mappings` are the files that hold the weights, as
    they are mapped: of a store of bytes each."""

    def __init__(
        self,
        config: ModelConfig,
        model: tuple[Forward, Computing],
        kv_memory: KvMemory,
        kv: torch.Tensor,
    ) -> None:
        """A model, and what it computes with; a KernelModel is both."""
        self.config = config
        self.kv_memory = kv_memory
        self.block_bytes = kv_memory.block_bytes
        self.block_size: int = kv.shape[4]
        self._model, computing = model
        self.backend = computing.description
        self.arithmetic = computing.arithmetic
        self.kv_layout = computing.kv_layout
        self.max_context_tokens = computing.max_context_tokens
        self._kv = kv
        self.mappings: list[torch.Tensor] = []

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
        forward, computing, panels = _choose_model(prepared, manifest, options, mapped, kv)
        runner = cls(config, (forward, computing), memory, kv)
        runner.mappings = [mapped.whole, *panels]
        return runner

    def execute(self, batch: SequenceOf[Scheduled]) -> list[SampledToken | None]:
        """One step: KV of every scheduled token, and a next token where `samples` is true."""
        if not batch:
            return []
        check_contexts(batch, self.block_size, self.max_context_tokens)
        places = grouped(batch)
        batch = [batch[place] for place in places]
        sampling = [entry.sequence for entry in batch if entry.samples]
        with torch.inference_mode():
            logits = score(without_overflows(self.logits(batch), batch), batch)
            chosen = iter(sample(logits, sampling))
        tokens = [next(chosen) if entry.samples else None for entry in batch]
        return [token for _, token in sorted(zip(places, tokens, strict=True), key=itemgetter(0))]

    def logits(self, batch: SequenceOf[Scheduled]) -> torch.Tensor:
        """[rows that are scored or sampled, vocab] float32, and the KV of every scheduled token: a step without its choice.
        `batch` is in the order of engine.model.ragged_batch.grouped."""
        with torch.inference_mode():
            return logits_of(self._model, ragged_batch(batch, self.block_size), batch)

    def warm_up(self) -> None:
        """Run a tiny prefill and decode in the first blocks, as long as the model has positions for them, then clear them;
        only while the pool is all free."""
        count = min(_WARM_UP_TOKENS + 1, self.max_context_tokens)
        num_blocks = -(-count // self.block_size)
        with torch.inference_mode():
            for start, end in ((0, count - 1), (count - 1, count)):
                if end > start:
                    self._model.forward(_tiny_batch(start, end - start, num_blocks))
            self._kv[:num_blocks].zero_()

    def close(self) -> None:
        """Let go of the KV memory's tensors, so that `kv_memory.close` can unmap it."""
        if isinstance(self._model, KernelModel):
            self._model.close()
        del self._model, self._kv


def meaning_of(
    prepared: Path,
    backend: str,
    kernel_cache: Path,
    kernel_target: str = "native",
    quantization: Quantization = Quantization.NONE,
) -> tuple[str, str]:
    """`arithmetic` and `kv_layout` of what a runner of that backend writes here, without its weights."""
    manifest = read_manifest(prepared)
    if backend == "torch":
        check_quantization(quantization, "--backend torch")
    else:
        dtype = getattr(torch, manifest.dtype)
        found = find_kernels(manifest.config, dtype, kernel_cache, kernel_target, quantization)
        if isinstance(found, Kernels):
            return found.arithmetic, KernelModel.kv_layout
        check_quantization(quantization, str(found))
    return ARITHMETIC, KV_LAYOUT


def _choose_model(
    prepared: Path,
    manifest: PreparedManifest,
    options: RunnerOptions,
    mapped: MappedWeights,
    kv: torch.Tensor,
) -> tuple[Forward, Computing, list[torch.Tensor]]:
    """What computes, what it is made of, and the mapping of its panels if it has one."""
    config = manifest.config
    if options.backend not in ("auto", "cpu", "torch"):
        raise ConfigError(f"backend {options.backend!r} is unknown; supported: auto, cpu, torch")
    if options.backend == "torch":
        check_quantization(options.quantization, "--backend torch")
        backend = TorchBackend(config, kv)
    else:
        found = find_kernels(
            config, kv.dtype, options.kernel_cache, options.kernel_target, options.quantization
        )
        if isinstance(found, Kernels):
            panels = load_panels(prepared, manifest, mapped, found, options.shared_weights_fd)
            model = KernelModel(config, mapped, kv, found, panels, options.lent_cores)
            if options.step_limits is not None:
                model.reserve(options.step_limits)
            return model, model, mapping_of(panels)
        check_quantization(options.quantization, str(found))
        backend = PlainBackend(config, kv, found)
    model_of = Model(config, load_weights(mapped, config.num_layers, backend), backend)
    return model_of, backend, []


def check_quantization(quantization: Quantization, obstacle: str) -> None:
    """Raise ConfigError where matrices should be bytes and there is no kernel for them."""
    if quantization is not Quantization.NONE:
        raise ConfigError(
            f"--quantization {quantization}: it needs the C kernels ({obstacle}); leave it out to serve without"
        )


def _tiny_batch(start: int, count: int, num_blocks: int) -> RaggedBatch:
    return RaggedBatch(
        token_ids=np.zeros(count, dtype=np.int64),
        positions=np.arange(start, start + count, dtype=np.int32),
        query_starts=np.array([0, count], dtype=np.int32),
        context_lengths=np.array([start + count], dtype=np.int32),
        block_tables=np.arange(num_blocks, dtype=np.int32)[None],
        sample_rows=np.array([count - 1], dtype=np.int64),
    )
