"""The processor backend: prepacked matrices, and kernels that read KV blocks in place. Owns neither's layout."""

from __future__ import annotations

import logging
from functools import partial
from typing import TYPE_CHECKING, Any

import msgspec
import torch

from engine.cpu.kernel_library import (
    MAX_HEAD_DIM,
    MAX_QUERY_GROUP,
    MAX_SMALL_ROWS,
    Kernels,
    KernelsUnavailable,
    describe_instructions,
    load_library,
)
from engine.cpu.kernel_library import Step as KernelArguments
from engine.cpu.packed_weights import onednn, open_packed, pack, packed_path
from engine.reference.backend import TorchBackend

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from engine.checkpoints.prepared import PreparedManifest
    from engine.model.decoder import LayerWeights, Linear, Step
    from engine.model.ragged_batch import RaggedBatch
    from engine.model.weights import MappedWeights
    from protocol.model_config import ModelConfig

_log = logging.getLogger(__name__)
FEW_ROWS = 2
"""Up to so many rows reading the matrix once, as it is, beats widening it."""
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
    """oneDNN for matrix products and, where they could be compiled, C kernels for the rest."""

    def __init__(
        self,
        config: ModelConfig,
        kv: torch.Tensor,
        packed: dict[str, torch.Tensor],
        kernel_cache: Path | None,
        *,
        multiply_plain: bool = False,
    ) -> None:
        """`multiply_plain`: the plain weights are in memory made for it, so few rows go there."""
        super().__init__(config, kv)
        self._packed = packed
        self._multiply_plain = multiply_plain
        self.num_threads = torch.get_num_threads()
        self._packs = supports(kv.dtype)
        self.kernels, rest = _load_kernels(config, kv.dtype, kernel_cache)
        products = "oneDNN packed" if self._packs else "products in float32"
        self.description = f"cpu ({products}, {rest})"

    def linear(self, name: str, weight: torch.Tensor, bias: torch.Tensor | None) -> Linear:
        """oneDNN's product with the packed matrix, or torch's in float32 where oneDNN lacks the dtype."""
        if self._packs:
            packed = self._packed.get(name)
            product = partial(_multiply, pack(weight) if packed is None else packed, bias)
        else:
            product = partial(_multiply_widened, weight, bias)
        if self.kernels is None or not self._multiply_plain or weight.shape[1] % 32:
            return product
        return SmallProduct(self.kernels, weight, bias, product, self.num_threads)

    def begin(self, batch: RaggedBatch) -> Step:
        """Kernels where there are some, else plain torch."""
        if self.kernels is None:
            return super().begin(batch)
        return KernelStep(self, self.kernels, batch)


_linear_pointwise = onednn("_linear_pointwise").default


def _multiply(matrix: torch.Tensor, bias: torch.Tensor | None, x: torch.Tensor) -> torch.Tensor:
    product: torch.Tensor = _linear_pointwise(x, matrix, bias, "none", [], "")
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


def _load_kernels(
    config: ModelConfig, dtype: torch.dtype, cache: Path | None
) -> tuple[Kernels | None, str]:
    """The kernels if they serve this model, and what the description says of them."""
    if cache is None:
        return None, "torch attention"
    if (
        config.head_dim % 32
        or config.head_dim > MAX_HEAD_DIM
        or config.num_heads // config.num_kv_heads > MAX_QUERY_GROUP
        or config.hidden_size % 16
        or config.intermediate_size % 16
    ):
        return None, "no C kernels for these sizes: torch attention"
    try:
        library = load_library(cache)
    except KernelsUnavailable as error:
        _log.warning("attention runs without C kernels (%s); install a C compiler for speed", error)
        return None, f"{error}: torch attention"
    suffix = "f32" if dtype == torch.float32 else "bf16"
    return Kernels(library, suffix), f"C kernels {describe_instructions()}"


class SmallProduct:
    """A matrix product that is bound by reading the weight when there are few rows, so it reads it once,
    in order; many rows go to oneDNN."""

    def __init__(
        self,
        kernels: Kernels,
        weight: torch.Tensor,
        bias: torch.Tensor | None,
        large: Linear,
        num_threads: int,
    ) -> None:
        self._function = kernels.small_product
        self._large = large
        self._keep = (weight, bias)
        self._weight = weight.data_ptr()
        self._bias = None if bias is None else bias.data_ptr()
        self._outputs = weight.shape[0]
        self._words = weight.shape[1] * weight.dtype.itemsize // 4
        self._num_threads = num_threads

    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        """[rows, in] to [rows, out]."""
        rows = x.shape[0]
        if not 0 < rows <= MAX_SMALL_ROWS:
            return self._large(x)
        out = torch.empty((rows, self._outputs), dtype=x.dtype)
        self._function(
            self._weight,
            x.data_ptr(),
            self._bias,
            out.data_ptr(),
            rows,
            self._outputs,
            self._words,
            self._num_threads,
        )
        return out


class KernelStep:
    """One step through the C kernels. Keeps the arrays that the C side points into alive."""

    def __init__(self, backend: CpuBackend, kernels: Kernels, batch: RaggedBatch) -> None:
        config, kv = backend.config, backend.kv
        self._kernels = kernels
        self._batch = batch
        self._epsilon = config.rms_norm_eps
        self._num_threads = backend.num_threads
        self._width = config.num_heads * config.head_dim
        self._query = torch.empty((batch.num_tokens, self._width), dtype=kv.dtype)
        self._step = KernelArguments(
            kv=kv.data_ptr(),
            rope=backend.rope.data_ptr(),
            positions=batch.positions.ctypes.data,
            query_starts=batch.query_starts.ctypes.data,
            context_lengths=batch.context_lengths.ctypes.data,
            block_tables=batch.block_tables.ctypes.data,
            table_width=batch.block_tables.shape[1],
            num_sequences=batch.num_sequences,
            num_tokens=batch.num_tokens,
            num_layers=config.num_layers,
            num_heads=config.num_heads,
            num_kv_heads=config.num_kv_heads,
            head_dim=config.head_dim,
            block_size=kv.shape[4],
            window=config.sliding_window or 0,
            num_threads=backend.num_threads,
            epsilon=config.rms_norm_eps,
            scale=config.head_dim**-0.5,
        )

    def embed(self, table: torch.Tensor) -> torch.Tensor:
        """[T, hidden] rows of the new tokens."""
        return table[torch.from_numpy(self._batch.token_ids)]

    def add_norm(
        self, residual: torch.Tensor, delta: torch.Tensor | None, weight: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """(normed, residual + delta), the sum in place."""
        normed = torch.empty_like(residual)
        self._kernels.add_norm(
            residual.data_ptr(),
            None if delta is None else delta.data_ptr(),
            weight.data_ptr(),
            normed.data_ptr(),
            *residual.shape,
            self._epsilon,
            self._num_threads,
        )
        return normed, residual

    def attend(self, qkv: torch.Tensor, layer: int, weights: LayerWeights) -> torch.Tensor:
        """Rotate, store, attend, all in one call."""
        output = torch.empty_like(self._query)
        self._kernels.attend(
            self._step,
            layer,
            qkv.data_ptr(),
            None if weights.q_norm is None else weights.q_norm.data_ptr(),
            None if weights.k_norm is None else weights.k_norm.data_ptr(),
            self._query.data_ptr(),
            output.data_ptr(),
        )
        return output

    def sampled(self, rows: torch.Tensor) -> torch.Tensor:
        """The rows whose logits are wanted."""
        return rows[torch.from_numpy(self._batch.sample_rows)]

    def silu_mul(self, gate_up: torch.Tensor) -> torch.Tensor:
        """silu(first half) * second half."""
        rows, width = gate_up.shape
        output = torch.empty((rows, width // 2), dtype=gate_up.dtype)
        self._kernels.silu_mul(
            gate_up.data_ptr(), output.data_ptr(), rows, width // 2, self._num_threads
        )
        return output
