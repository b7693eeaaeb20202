"""The engine that a spec asks for. Owns the choice between the real one and the attesting mock."""

from __future__ import annotations

import logging
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import msgspec

from engine.adapters.content import check_content
from engine.adapters.resident import ResidentAdapters
from engine.attesting import SLOT_BYTES, AnyAdapter, AttestingRunner
from engine.checkpoints.prepared import fingerprint, kv_block_bytes, read_manifest
from engine.cpu.lending import FILE_NAME, LentCores
from engine.cpu.step_sizes import StepLimits
from engine.kv.pool_memory import KvMemory
from kvtransfer.promises.proofs import DIGEST_NAMES
from worker.no_engine import NoEngine

if TYPE_CHECKING:
    import torch

    from engine.runner_api import Runner
    from kvtransfer.transport import BlockMemory
    from protocol.adapters import AdapterSource
    from protocol.fingerprint import Fingerprint
    from protocol.specs import WorkerSpec

log = logging.getLogger(__name__)
MOCK_BACKEND = "mock"


@dataclass(frozen=True)
class StartedEngine:
    """A runner, the memory it writes to, what its blocks mean, the cores that it lends and borrows, and the mappings that hold
    its weights."""

    runner: Runner
    memory: BlockMemory
    fingerprint: Fingerprint
    lent_cores: LentCores | None = None
    adapters: AdapterSource | None = None
    mappings: tuple[torch.Tensor, ...] = ()


def start_engine(spec: WorkerSpec) -> StartedEngine:
    """Load, reserve and warm up; ConfigError says what cannot work."""
    directory = Path(spec.model.directory)
    layout = fingerprint(directory, spec.block_size)
    if spec.device == "cuda":
        return _start_on_gpu(spec, directory, layout)
    if not spec.role.computes:
        return _start_store(spec, directory, layout)
    if spec.backend == MOCK_BACKEND:
        memory = KvMemory(spec.num_blocks, spec.block_size * SLOT_BYTES)
        mock = AttestingRunner(memory, spec.block_size)
        return StartedEngine(mock, memory, layout, adapters=AnyAdapter())
    from engine.runner import ModelRunner, RunnerOptions

    lent_cores = _lent_cores(spec)
    options = RunnerOptions(
        num_blocks=spec.num_blocks,
        block_size=spec.block_size,
        backend=spec.backend,
        num_threads=spec.num_threads,
        kernel_cache=directory.parent.parent / "kernels",
        quantization=spec.model.quantization,
        shared_weights_fd=spec.weights_fd,
        lent_cores=lent_cores,
        step_limits=StepLimits.of(
            spec.max_num_batched_tokens,
            spec.max_num_seqs,
            adapts=bool(spec.adapters_directory),
        ),
    )
    runner = ModelRunner.load(directory, options)
    runner.warm_up()
    meaning = msgspec.structs.replace(layout, arithmetic=runner.arithmetic, layout=runner.kv_layout)
    adapters, mappings = _adapters(spec), tuple(runner.mappings)
    return StartedEngine(runner, runner.kv_memory, meaning, lent_cores, adapters, mappings)


def _adapters(spec: WorkerSpec) -> AdapterSource | None:
    """None where adapters are off."""
    if not spec.adapters_directory:
        return None
    directory, model = Path(spec.adapters_directory), spec.model
    check = partial(check_content, model=model.config, dtype=model.dtype)
    return ResidentAdapters(directory, spec.max_adapters, check)


def _start_store(spec: WorkerSpec, directory: Path, layout: Fingerprint) -> StartedEngine:
    """Memory for blocks as the workers of this host write them, and nothing that writes them."""
    if spec.backend == MOCK_BACKEND:
        memory = KvMemory(spec.num_blocks, spec.block_size * SLOT_BYTES)
        return StartedEngine(NoEngine(), memory, layout)
    from engine.runner import meaning_of

    arithmetic, kv_layout = meaning_of(
        directory,
        spec.backend,
        kernel_cache=directory.parent.parent / "kernels",
        quantization=spec.model.quantization,
    )
    config, dtype = spec.model.config, read_manifest(directory).dtype
    memory = KvMemory(spec.num_blocks, kv_block_bytes(config, spec.block_size, dtype))
    meaning = msgspec.structs.replace(layout, arithmetic=arithmetic, layout=kv_layout)
    return StartedEngine(NoEngine(), memory, meaning)


def _lent_cores(spec: WorkerSpec) -> LentCores | None:
    """None for a worker that takes no part in lending, or cannot."""
    if not spec.lent_cores:
        return None
    try:
        return LentCores(Path(spec.run_directory, FILE_NAME), spec.cores, spec.lent_cores)
    except OSError as error:
        log.warning(
            "cannot share which cores are idle (%s); this worker keeps to its own. "
            "Make %s writable to have prompts and answers that are alone use both",
            error,
            spec.run_directory,
        )
        return None


def _start_on_gpu(spec: WorkerSpec, directory: Path, layout: Fingerprint) -> StartedEngine:
    from engine.cuda.device_memory import DeviceMemory
    from engine.cuda.runner import CudaRunner

    block_bytes = kv_block_bytes(spec.model.config, spec.block_size, read_manifest(directory).dtype)
    memory = DeviceMemory(spec.num_blocks, block_bytes)
    runner = CudaRunner.load(
        directory, memory, block_size=spec.block_size, max_num_seqs=spec.max_num_seqs
    )
    runner.warm_up()
    digest = DIGEST_NAMES[memory.kind]
    return StartedEngine(runner, memory, msgspec.structs.replace(layout, digest=digest))
