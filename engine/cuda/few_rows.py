"""The forward pass of at most 16 new tokens. Owns the order of fused operations.

    norm ─► qkv ─► rotate, store ─► attend ─► (join splits) ─► out + residual ─► norm ─► gate·up ─► silu ─► down + residual

Such steps take as long as reading the weights, and the time between kernels counts. cuBLAS reads the largest matrix
as fast as memory gives it; the others are too small for that, and it needs a second kernel to sum what it split.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from engine.cuda.backend import Product
from engine.cuda.kernels.skinny_product import MAX_ROWS, skinny_product, tiles_for
from protocol.errors import InternalError

if TYPE_CHECKING:
    import torch

    from engine.cuda.backend import CudaStep
    from engine.model.decoder import Linear, ModelWeights

__all__ = ["MAX_ROWS", "FewRowsModel"]


def _product(linear: Linear) -> Product:
    if not isinstance(linear, Product):
        raise InternalError("the few-row kernels read the GPU backend's plain weights only")
    return linear


class FewRowsModel:
    """The same weights as engine.model.decoder.Model, multiplied by kernels of this package."""

    def __init__(self, weights: ModelWeights) -> None:
        self._weights = weights

    def serves(self) -> bool:
        """Whether the kernels' tiles divide every product of the model."""
        found = []
        for layer in self._weights.layers:
            whole = (layer.qkv, layer.out, layer.down)
            found += [tiles_for(*_product(part).weight.shape) for part in whole]
        return None not in found

    def run(self, step: CudaStep) -> torch.Tensor:
        """As engine.model.decoder.Model.run, for a step whose every row is sampled."""
        residual = step.embed(self._weights.embed)
        for index, layer in enumerate(self._weights.layers):
            qkv, out = _product(layer.qkv), _product(layer.out)
            down = _product(layer.down)
            normed, _ = step.add_norm(residual, None, layer.input_norm)
            rows = skinny_product(normed, qkv.weight, qkv.bias)
            attended = step.attend(rows, index, layer)
            skinny_product(attended, out.weight, out.bias, into=residual)
            normed, _ = step.add_norm(residual, None, layer.post_norm)
            hidden = step.silu_mul(layer.gate_up(normed))
            skinny_product(hidden, down.weight, down.bias, into=residual)
        normed, _ = step.add_norm(residual, None, self._weights.norm)
        return self._weights.head(normed).float()
