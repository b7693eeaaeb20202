"""A model's matrices in panels, one copy for all workers of a host. Owns the file they lie in; must not know who multiplies.

    <prepared directory>/panels<columns>-gated.bin           and panels<columns>-gated-int8-<version>.bin
        8 bytes length, PanelHeader as JSON, then each matrix at a multiple of 4096 bytes, as kernels/product.h wants it,
        or kernels/quantized.h

Written by the first worker that needs it and renamed; mapped read-only by all, or copied once into the memfd
in huge pages that the launcher handed down (engine.model.shared_weights). The row-major matrices in
weights.bin are not touched again, but for the embedding's rows.
"""

from __future__ import annotations

import logging
import math
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

import msgspec
import torch

from engine.checkpoints.embedded import locked
from engine.cpu.quantized import quantized_words
from engine.model.shared_weights import map_shared
from protocol.quantization import Quantization

if TYPE_CHECKING:
    from collections.abc import Iterator

    from engine.checkpoints.prepared import PreparedManifest
    from engine.cpu.kernel_library import Kernels
    from engine.model.weights import MappedWeights
    from protocol.model_config import ModelConfig

_log = logging.getLogger(__name__)
_PAGE_BYTES = 4096
WORD_BYTES = 4


class PanelPlace(msgspec.Struct, frozen=True, kw_only=True):
    """One matrix: byte offset from the start of the data, and [panels, words, columns]."""

    offset: int
    shape: tuple[int, int, int]


class PanelHeader(msgspec.Struct, frozen=True, kw_only=True):
    """Every matrix of a file, and which weights they are."""

    weights_hash: str
    places: dict[str, PanelPlace]


def is_gated(name: str) -> bool:
    """Whether the matrix of that name computes a gate in its first half for its second."""
    return name.endswith("gate_up")


def pack(kernels: Kernels, name: str, weight: torch.Tensor) -> torch.Tensor:
    """[out, in] weight in panels: int32 [panels, words, columns]; `in` is a whole number of words. In bytes, where the
    kernels' matrices are."""
    if kernels.quantization is Quantization.INT8:
        weight = quantized_words(weight)
    outputs, words = weight.shape[0], weight.shape[1] * weight.dtype.itemsize // WORD_BYTES
    shape = (-(-outputs // kernels.panel_columns), words, kernels.panel_columns)
    packed = torch.empty(shape, dtype=torch.int32)
    weight = weight.contiguous()
    threads = torch.get_num_threads()
    kernels.pack(weight.data_ptr(), packed.data_ptr(), outputs, words, is_gated(name), threads)
    return packed


def load_panels(
    directory: Path,
    manifest: PreparedManifest,
    mapped: MappedWeights,
    kernels: Kernels,
    shared_fd: int | None,
) -> dict[str, torch.Tensor]:
    """Matrices shared with the host's other workers; empty when each must pack its own."""
    path = directory / f"{kernels.layout}.bin"
    try:
        if not path.exists():
            with locked(path.with_suffix(".lock")):
                if not path.exists():
                    _write(path, manifest, mapped, kernels)
        return _read(path, manifest.weights_hash, shared_fd)
    except (OSError, ValueError, msgspec.MsgspecError) as error:
        _log.warning(
            "matrices in panels cannot be shared (%s); every worker keeps its own copy. "
            "Make %s writable, with room for the weights once more, to save that memory",
            error,
            directory,
        )
        return {}


def mapping_of(panels: dict[str, torch.Tensor]) -> list[torch.Tensor]:
    """[bytes] of the whole file that shared matrices lie in; nothing where each worker has its own."""
    for panel in panels.values():
        return [torch.empty(0, dtype=torch.uint8).set_(panel.untyped_storage())]
    return []


def _matrices(mapped: MappedWeights, config: ModelConfig) -> Iterator[tuple[str, torch.Tensor]]:
    """Every matrix by the name that `Backend.linear` gets."""
    for index in range(config.num_layers):
        for part in ("qkv", "out", "gate_up", "down"):
            yield f"layers.{index}.{part}", mapped.get(f"layers.{index}.{part}")
    head = "embed" if mapped.find("head") is None else "head"
    yield head, mapped.get(head)


def _write(path: Path, manifest: PreparedManifest, mapped: MappedWeights, kernels: Kernels) -> None:
    places: dict[str, PanelPlace] = {}
    with tempfile.TemporaryDirectory(dir=path.parent) as name:
        body, whole = Path(name, "body"), Path(name, "whole")
        with body.open("wb") as file:
            for key, weight in _matrices(mapped, manifest.config):
                packed = pack(kernels, key, weight)
                panels, words, columns = packed.shape
                places[key] = PanelPlace(offset=file.tell(), shape=(panels, words, columns))
                file.write(packed.numpy().data)
                file.write(b"\0" * (-file.tell() % _PAGE_BYTES))
        header = PanelHeader(weights_hash=manifest.weights_hash, places=places)
        encoded = msgspec.json.encode(header)
        with whole.open("wb") as file, body.open("rb") as data:
            file.write(len(encoded).to_bytes(8, "little") + encoded)
            file.write(b"\0" * (-file.tell() % _PAGE_BYTES))
            while chunk := data.read(1 << 22):
                file.write(chunk)
        whole.replace(path)


def _read(path: Path, weights_hash: str, shared_fd: int | None) -> dict[str, torch.Tensor]:
    with path.open("rb") as file:
        size = int.from_bytes(file.read(8), "little")
        header = msgspec.json.decode(file.read(size), type=PanelHeader)
    if header.weights_hash != weights_hash:
        raise ValueError(f"{path} was packed from other weights")
    start = 8 + size + -(8 + size) % _PAGE_BYTES
    ends = (place.offset + math.prod(place.shape) * WORD_BYTES for place in header.places.values())
    if start + max(ends) > path.stat().st_size:
        raise ValueError(f"{path} is cut short")
    flat = _bytes_of(path, shared_fd)[start:]
    return {name: _words(flat, place) for name, place in header.places.items()}


def _bytes_of(path: Path, shared_fd: int | None) -> torch.Tensor:
    if shared_fd is None:
        size = path.stat().st_size
        return torch.from_file(str(path), shared=False, size=size, dtype=torch.uint8)
    return torch.frombuffer(map_shared(shared_fd, path), dtype=torch.uint8)


def _words(flat: torch.Tensor, place: PanelPlace) -> torch.Tensor:
    size = math.prod(place.shape) * WORD_BYTES
    return flat[place.offset : place.offset + size].view(torch.int32).view(place.shape)
