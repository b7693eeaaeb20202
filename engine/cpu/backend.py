"""What computes on a processor: the C kernels if they serve the model, else oneDNN and torch. Owns that choice and the second.

oneDNN and torch sum by the number of rows, so that equal tokens can give unequal bits; the description says so.
"""

from __future__ import annotations

import logging
from functools import partial
from typing import TYPE_CHECKING, Any

import torch

from engine.cpu.kernel_library import Kernels, KernelsUnavailable, load_kernels, unknown_sizes
from engine.reference.backend import TorchBackend
from protocol.quantization import Quantization

if TYPE_CHECKING:
    from pathlib import Path

    from engine.model.decoder import Linear
    from protocol.model_config import ModelConfig

_log = logging.getLogger(__name__)
FEW_ROWS = 2
"""Up to so many rows reading the matrix once, as it is, beats widening it."""


def find_kernels(
    config: ModelConfig,
    dtype: torch.dtype,
    cache: Path | None,
    target: str = "native",
    quantization: Quantization = Quantization.NONE,
) -> Kernels | KernelsUnavailable:
    """The kernels if they serve this model here, else why they do not."""
    if cache is None:
        return KernelsUnavailable("no directory for C kernels")
    if (obstacle := unknown_sizes(config)) is not None:
        return KernelsUnavailable(obstacle)
    try:
        return load_kernels(
            cache, "f32" if dtype == torch.float32 else "bf16", target, quantization
        )
    except KernelsUnavailable as error:
        _log.warning(
            "no C kernels (%s): slow, and equal prompts may differ in the last bit; install a C compiler",
            error,
        )
        return error


class PlainBackend(TorchBackend):
    """oneDNN's products and torch's attention."""

    def __init__(self, config: ModelConfig, kv: torch.Tensor, reason: KernelsUnavailable) -> None:
        """`reason`: why there are no kernels."""
        super().__init__(config, kv)
        self.description = f"cpu ({reason}: oneDNN, torch attention, not exact)"

    def linear(self, name: str, weight: torch.Tensor, bias: torch.Tensor | None) -> Linear:
        """oneDNN's product with its own layout, or torch's in float32 where oneDNN lacks the dtype."""
        del name
        mkldnn: Any = torch.backends.mkldnn
        is_wide = weight.dtype == torch.float32
        if mkldnn.is_available() and (is_wide or bool(_onednn("_is_mkldnn_bf16_supported")())):
            return partial(_multiply_packed, _onednn("_reorder_linear_weight")(weight), bias)
        return partial(_multiply_widened, weight, bias)


def _onednn(name: str) -> Any:
    """One of torch's oneDNN operators; they have no public names."""
    return getattr(torch.ops.mkldnn, name)


def _multiply_packed(
    matrix: torch.Tensor, bias: torch.Tensor | None, x: torch.Tensor
) -> torch.Tensor:
    multiply = _onednn("_linear_pointwise").default
    product: torch.Tensor = multiply(x, matrix, bias, "none", [], "")
    return product


def _multiply_widened(
    weight: torch.Tensor, bias: torch.Tensor | None, x: torch.Tensor
) -> torch.Tensor:
    """bfloat16 without instructions for it: widening the matrix costs less than torch's own product,
    which runs at an eighth of float32's rate there."""
    if x.shape[0] <= FEW_ROWS:
        return torch.nn.functional.linear(x, weight, bias)
    wide = torch.nn.functional.linear(
        x.float(), weight.float(), None if bias is None else bias.float()
    )
    return wide.to(x.dtype)
