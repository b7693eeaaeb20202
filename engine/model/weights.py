"""A prepared model's weights in memory. Owns the mapping of weights.bin; must not know any layout but row-major.

The file is mapped read-only, so all workers of a host share its pages.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Protocol

import torch

from engine.checkpoints.prepared import WEIGHTS_NAME
from engine.model.decoder import LayerWeights, ModelWeights
from protocol.errors import ConfigError

if TYPE_CHECKING:
    from pathlib import Path

    from engine.checkpoints.prepared import PreparedManifest
    from engine.model.decoder import Backend, Linear


class WeightSource(Protocol):
    """Tensors of a model by their name in engine.checkpoints.weight_shapes."""

    def find(self, name: str) -> torch.Tensor | None:
        """The tensor, or None when the model has none of that name."""
        ...

    def get(self, name: str) -> torch.Tensor:
        """The tensor, which must be there."""
        ...


class MappedWeights:
    """Tensors of weights.bin by name; nothing here can change the file."""

    def __init__(self, directory: Path, manifest: PreparedManifest, device: torch.device) -> None:
        path = directory / WEIGHTS_NAME
        self._places = manifest.tensors
        self._dtype: torch.dtype = getattr(torch, manifest.dtype)
        self._device = device
        self._size = path.stat().st_size
        self._flat = torch.from_file(str(path), shared=False, size=self._size, dtype=torch.uint8)

    @property
    def whole(self) -> torch.Tensor:
        """[bytes] of the file as it is mapped."""
        return self._flat

    def find(self, name: str) -> torch.Tensor | None:
        """The tensor, or None when the model has none of that name."""
        place = self._places.get(name)
        if place is None:
            return None
        end = place.offset + math.prod(place.shape) * self._dtype.itemsize
        if end > self._size:
            raise ConfigError(
                f"{WEIGHTS_NAME} is cut short at {name}; delete the prepared directory"
            )
        flat = self._flat[place.offset : end].view(self._dtype)
        return flat.view(place.shape).to(self._device)

    def get(self, name: str) -> torch.Tensor:
        """The tensor; ConfigError when it is missing."""
        tensor = self.find(name)
        if tensor is None:
            raise ConfigError(f"the prepared model lacks {name}; delete its directory")
        return tensor


def load_weights(mapped: WeightSource, num_layers: int, backend: Backend) -> ModelWeights:
    """Every weight, the matrices in the form that `backend` multiplies with."""

    def linear(name: str) -> Linear:
        return backend.linear(name, mapped.get(name), mapped.find(f"{name}_bias"))

    def layer(prefix: str) -> LayerWeights:
        return LayerWeights(
            input_norm=mapped.get(f"{prefix}.input_norm"),
            qkv=linear(f"{prefix}.qkv"),
            q_norm=mapped.find(f"{prefix}.q_norm"),
            k_norm=mapped.find(f"{prefix}.k_norm"),
            out=linear(f"{prefix}.out"),
            post_norm=mapped.get(f"{prefix}.post_norm"),
            gate_up=linear(f"{prefix}.gate_up"),
            down=linear(f"{prefix}.down"),
        )

    return ModelWeights(
        embed=mapped.get("embed"),
        layers=tuple(layer(f"layers.{index}") for index in range(num_layers)),
        norm=mapped.get("norm"),
        head=linear("head" if mapped.find("head") is not None else "embed"),
    )
