"""Random weights of a model's shape, made on the device: load_format dummy. Owns no file."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from engine.checkpoints.weight_shapes import plan_tensors
from protocol.errors import InternalError

if TYPE_CHECKING:
    from protocol.model_config import ModelConfig

_SPREAD = 0.02


class DummyWeights:
    """As engine.model.weights.MappedWeights; the same seed gives the same weights on the same kind of device."""

    def __init__(
        self, config: ModelConfig, dtype: torch.dtype, device: torch.device, seed: int = 0
    ) -> None:
        self._shapes = {name: shape for name, shape, _ in plan_tensors(config)}
        self._seeds = {name: seed + index for index, name in enumerate(self._shapes)}
        self._dtype = dtype
        self._device = device

    def find(self, name: str) -> torch.Tensor | None:
        """The tensor, or None when the model has none of that name."""
        shape = self._shapes.get(name)
        if shape is None:
            return None
        generator = torch.Generator(self._device).manual_seed(self._seeds[name])
        tensor = torch.empty(shape, dtype=self._dtype, device=self._device)
        is_gain = name.endswith("norm")
        return tensor.normal_(1.0 if is_gain else 0.0, _SPREAD, generator=generator)

    def get(self, name: str) -> torch.Tensor:
        """The tensor."""
        tensor = self.find(name)
        if tensor is None:
            raise InternalError(f"a model of this shape has no {name}")
        return tensor
