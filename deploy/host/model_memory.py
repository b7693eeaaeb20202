"""What a model's weights take of a host's memory, and whether they can be kept as was asked. Torch-free."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import msgspec

from engine.checkpoints.prepared import ELEMENT_BYTES, WEIGHTS_NAME, read_manifest
from engine.cpu.kernel_library import compiler, unknown_sizes
from engine.cpu.quantized_sizes import quantized_bytes
from engine.cpu.step_sizes import StepLimits, step_bytes
from engine.step_limits import scored_tokens
from protocol.errors import ConfigError
from protocol.quantization import Quantization

if TYPE_CHECKING:
    from protocol.specs import PreparedModel, WorkerSpec


def weights_bytes(model: PreparedModel) -> int:
    """Bytes of one copy of its weights, as workers on CPUs compute with them; 0 where there are none, as of a dummy."""
    path = Path(model.directory, WEIGHTS_NAME)
    if not path.is_file():
        return 0
    if model.quantization is Quantization.INT8:
        shapes = [place.shape for place in read_manifest(path.parent).tensors.values()]
        return sum(quantized_bytes(shape) for shape in shapes)
    return path.stat().st_size


def step_bytes_of(
    model: PreparedModel, max_batched_tokens: int, max_seqs: int, num_lent_cores: int = 0
) -> int:
    """Bytes of the arrays of a CPU worker's largest step, adapters included."""
    limits = StepLimits.of(max_batched_tokens, max_seqs, adapts=True)
    element_bytes = ELEMENT_BYTES["bfloat16" if model.dtype == "bfloat16" else "float32"]
    scored = scored_tokens(model.config.vocab_size)
    return step_bytes(model.config, element_bytes, limits, num_lent_cores, scored)


def step_bytes_of_worker(spec: WorkerSpec) -> int:
    """The same of one that is specified."""
    limits = spec.max_num_batched_tokens, spec.max_num_seqs
    return step_bytes_of(spec.model, *limits, len(spec.lent_cores))


def check_quantization_on(device: str, quantization: Quantization) -> None:
    """Raise ConfigError on a GPU, which --device auto may have chosen."""
    if device == "cuda" and quantization is not Quantization.NONE:
        raise ConfigError(
            f"--quantization {quantization}: it is computed on CPUs, and this host has a GPU; add --device cpu, or leave it out"
        )


def with_quantization(
    model: PreparedModel, quantization: Quantization, *, is_here: bool = True
) -> PreparedModel:
    """The same model with its matrices kept so; ConfigError says why they cannot be. Where workers will be elsewhere
    (`is_here` is false) only the model is looked at."""
    if quantization is Quantization.NONE:
        return model
    obstacle = unknown_sizes(model.config)
    if obstacle is None and is_here and compiler() is None:
        obstacle = "no C compiler"
    if obstacle is not None:
        raise ConfigError(
            f"--quantization {quantization}: {model.name} cannot be computed so ({obstacle}); leave it out"
        )
    return msgspec.structs.replace(model, quantization=quantization)
