"""The forward pass of at most 16 new tokens in seven kernels a layer. Owns the order of fused operations.

    norm·qkv ─► rotate, store ─► attend (─► join splits) ─► out + residual ─► norm·gate·up·silu ─► down + residual

Such steps take as long as reading the weights. cuBLAS and separate kernels for norms, activation and sums take
a fifth more than that, most of it between kernels.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from engine.api.errors import InternalError
from engine.cuda.backend import Product
from engine.cuda.kernels.skinny_product import MAX_ROWS, skinny_product, tiles_for

if TYPE_CHECKING:
    import torch

    from engine.cuda.backend import CudaStep
    from engine.model import Linear, ModelWeights

__all__ = ["MAX_ROWS", "FewRowsModel"]


def _product(linear: Linear) -> Product:
    if not isinstance(linear, Product):
        raise InternalError("the few-row kernels read the GPU backend's plain weights only")
    return linear


class FewRowsModel:
    """The same weights as engine.model.Model, multiplied by kernels of this package."""

    def __init__(self, weights: ModelWeights, epsilon: float) -> None:
        self._weights = weights
        self._epsilon = epsilon

    def serves(self) -> bool:
        """Whether the kernels' tiles divide every product of the model."""
        shapes = []
        for layer in self._weights.layers:
            rows, columns = _product(layer.gate_up).weight.shape
            shapes.append((rows // 2, columns))
            for part in (layer.qkv, layer.out, layer.down):
                rows, columns = _product(part).weight.shape
                shapes.append((rows, columns))
        return all(tiles_for(*shape) is not None for shape in shapes)

    def run(self, step: CudaStep) -> torch.Tensor:
        """As engine.model.Model.run, for a step whose every row is sampled."""
        epsilon = self._epsilon
        residual = step.embed(self._weights.embed)
        for index, layer in enumerate(self._weights.layers):
            qkv, out = _product(layer.qkv), _product(layer.out)
            gate_up, down = _product(layer.gate_up), _product(layer.down)
            norm = (layer.input_norm, epsilon)
            rows = skinny_product(residual, qkv.weight, qkv.bias, norm=norm)
            attended = step.attend(rows, index, layer)
            skinny_product(attended, out.weight, out.bias, into=residual)
            norm = (layer.post_norm, epsilon)
            hidden = skinny_product(residual, gate_up.weight, gate_up.bias, norm=norm, gated=True)
            skinny_product(hidden, down.weight, down.bias, into=residual)
        normed, _ = step.add_norm(residual, None, self._weights.norm)
        return self._weights.head(normed).float()
