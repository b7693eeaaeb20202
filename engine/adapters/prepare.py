"""From a directory that PEFT wrote to an adapter's content. Owns the comparison of the files with the model; torch-free.

Every tensor is used or refuses the adapter by its name, as with a model's own.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from engine.adapters.config import CONFIG_NAME, read_config
from engine.adapters.content import (
    FORMAT_VERSION,
    MAX_RANK,
    ContentHeader,
    PartPlace,
    aligned,
    panels,
    widened,
    write_content,
)
from engine.checkpoints.fields import is_there, shown
from engine.checkpoints.safetensors_file import read_safetensors
from protocol.errors import ConfigError

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping
    from pathlib import Path

    import numpy.typing as npt

    from engine.adapters.config import Adapted
    from engine.adapters.content import Elements
    from engine.checkpoints.stored_tensor import StoredTensor
    from protocol.model_config import ModelConfig

WEIGHTS_NAME, PICKLED_NAME = "adapter_model.safetensors", "adapter_model.bin"
_MOST_BYTES = 1 << 32
_PREFIX = "base_model.model."
_KINDS = {
    "lora_magnitude_vector": "DoRA",
    "lora_embedding_": "an adapted embedding",
    "modules_to_save": "modules_to_save",
    ".bias": "a bias",
}


def check_adapter(source: Path, model: ModelConfig, max_rank: int = MAX_RANK) -> None:
    """Raises ConfigError, one sentence that names file and field, for an adapter in `source` that cannot be served: a tensor
    without a place, a place without a tensor, values that are no numbers."""
    for _ in _factors(source, model, max_rank):
        pass


def _factors(
    source: Path, model: ModelConfig, max_rank: int
) -> Iterator[tuple[Adapted, npt.NDArray[np.float32], npt.NDArray[np.float32]]]:
    """What the adapter changes, one after the other, with A [rank, inputs] and B [outputs, rank] times its scale."""
    if not source.is_dir():
        raise ConfigError(f"there is no directory {source} with {CONFIG_NAME} and {WEIGHTS_NAME}")
    adapted = read_config(source, model, min(max_rank, MAX_RANK))
    path = source / WEIGHTS_NAME
    if not is_there(path) and is_there(source / PICKLED_NAME):
        raise ConfigError(
            f"{source / PICKLED_NAME} may run any program when it is read, so it is not; "
            f"save the adapter as {WEIGHTS_NAME}"
        )
    tensors = read_safetensors(path, _MOST_BYTES)
    _check(adapted, tensors, str(path))
    for one in adapted:
        a = _values(tensors[_name(one, "A")], str(path))
        b = _values(tensors[_name(one, "B")], str(path)) * np.float32(one.scale)
        _check_finite(b, _name(one, "B"), str(path))
        yield one, a, b


def prepare_adapter(
    source: Path, target: Path, model: ModelConfig, dtype: str, max_rank: int = MAX_RANK
) -> str:
    """Check the adapter in `source` against the model, and keep its content in `target`; its digest. ConfigError as from
    `check_adapter`."""
    parts: list[PartPlace] = []
    blocks: list[Elements] = []
    offset = 0
    for one, a, b in _factors(source, model, max_rank):
        pair = panels(a, dtype), panels(b, dtype)
        places = offset, aligned(offset + pair[0].nbytes)
        offset = aligned(places[1] + pair[1].nbytes)
        parts.append(_place(one, *places))
        blocks += pair
    header = ContentHeader(format_version=FORMAT_VERSION, dtype=dtype, parts=tuple(parts))
    return write_content(target, header, blocks)


def _place(one: Adapted, a: int, b: int) -> PartPlace:
    module = one.module
    return PartPlace(
        layer=module.layer,
        matrix=module.matrix,
        first=module.first,
        outputs=module.outputs,
        inputs=module.inputs,
        rank=one.rank,
        a=a,
        b=b,
    )


def _name(one: Adapted, which: str) -> str:
    return f"{_PREFIX}{one.module.name}.lora_{which}.weight"


def _check(adapted: list[Adapted], tensors: Mapping[str, StoredTensor], where: str) -> None:
    used = set()
    for one in adapted:
        shapes = {"A": (one.rank, one.module.inputs), "B": (one.module.outputs, one.rank)}
        for which, shape in shapes.items():
            name = _name(one, which)
            stored = tensors.get(name)
            if stored is None:
                raise ConfigError(f"{where} lacks the tensor {name}")
            if stored.shape != shape:
                raise ConfigError(
                    f"{where}: {stored.label} has shape {stored.shape}, expected {shape}: "
                    "it was made for another model, or rank"
                )
            if not stored.is_readable:
                raise ConfigError(
                    f"{where}: {stored.label} is stored as {stored.dtype}, which is not supported"
                )
            used.add(name)
    for name in tensors:
        if name not in used:
            kind = next((told for part, told in _KINDS.items() if part in name), None)
            reason = (
                f"is {kind}, which is not supported" if kind else f"has no use by {CONFIG_NAME}"
            )
            raise ConfigError(f"{where}: the tensor {shown(name)[1:-1]} {reason}")


def _values(stored: StoredTensor, where: str) -> npt.NDArray[np.float32]:
    """float32, whatever float the file has."""
    dtype, data = stored.read()
    kinds: dict[str, type] = {"F64": np.float64, "F32": np.float32, "F16": np.float16}
    with np.errstate(over="ignore"):
        if dtype == "BF16":
            found = widened(np.frombuffer(data, dtype=np.uint16))
        else:
            found = np.frombuffer(data, dtype=kinds[dtype]).astype(np.float32)
    _check_finite(found, stored.label, where)
    return found.reshape(stored.shape)


_LARGEST = np.float32(1e30)
"""Beyond it sums overflow, and no answer is one."""


def _check_finite(values: npt.NDArray[np.float32], name: str, where: str) -> None:
    if not bool(np.all(np.abs(values) < _LARGEST)):
        raise ConfigError(f"{where}: the tensor {shown(name)[1:-1]} has numbers without a size")
