"""The processor backend: prepacked matrices, and kernels that read KV blocks in place. Owns neither's layout."""

from __future__ import annotations

import logging
from functools import partial
from typing import TYPE_CHECKING, Any

import msgspec
import torch

from engine.packed_weights import onednn, open_packed, pack, packed_path
from engine.torch_backend import TorchBackend

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from engine.api.model_config import ModelConfig
    from engine.model import Linear
    from engine.prepared import PreparedManifest
    from engine.weights import MappedWeights

_log = logging.getLogger(__name__)
_PACKING_ERRORS = (OSError, RuntimeError, AttributeError, ValueError, msgspec.MsgspecError)


def supports(dtype: torch.dtype) -> bool:
    """Whether oneDNN multiplies this dtype on this processor."""
    mkldnn: Any = torch.backends.mkldnn
    if not mkldnn.is_available():
        return False
    return dtype == torch.float32 or bool(onednn("_is_mkldnn_bf16_supported")())


def matrices(mapped: MappedWeights, config: ModelConfig) -> Iterator[tuple[str, torch.Tensor]]:
    """Every weight matrix by the name that `Backend.linear` gets."""
    for index in range(config.num_layers):
        for part in ("qkv", "out", "gate_up", "down"):
            yield f"layers.{index}.{part}", mapped.get(f"layers.{index}.{part}")
    head = "embed" if mapped.find("head") is None else "head"
    yield head, mapped.get(head)


def load_packed(
    directory: Path, manifest: PreparedManifest, mapped: MappedWeights
) -> dict[str, torch.Tensor]:
    """Packed matrices shared with the host's other workers; empty when each must pack its own."""
    try:
        return open_packed(
            packed_path(directory),
            manifest.weights_hash,
            lambda: matrices(mapped, manifest.config),
        )
    except _PACKING_ERRORS as error:
        _log.warning(
            "packed weights cannot be shared (%s); every worker keeps its own copy of the matrices. "
            "Use a tested torch version and a writable cache directory to save that memory",
            error,
        )
        return {}


class CpuBackend(TorchBackend):
    """oneDNN for matrix products; the rest as the reference does it."""

    def __init__(
        self, config: ModelConfig, kv: torch.Tensor, packed: dict[str, torch.Tensor]
    ) -> None:
        super().__init__(config, kv)
        self._packed = packed
        self.description = "cpu (oneDNN packed, torch attention)"

    def linear(self, name: str, weight: torch.Tensor, bias: torch.Tensor | None) -> Linear:
        """oneDNN's product with the packed matrix."""
        packed = self._packed.get(name)
        matrix = pack(weight) if packed is None else packed
        return partial(_multiply, matrix, bias)


_linear_pointwise = onednn("_linear_pointwise").default


def _multiply(matrix: torch.Tensor, bias: torch.Tensor | None, x: torch.Tensor) -> torch.Tensor:
    product: torch.Tensor = _linear_pointwise(x, matrix, bias, "none", [], "")
    return product
