"""The processor backend: C kernels in which every sum has one order, so that equal tokens give equal bits.

A row's products, norms and attention are the same operations in the same order whatever else is in
the batch, however its prompt was cut and on however many threads (docs/adr/0012-one-order-of-every-sum.md).
Without kernels oneDNN and torch compute; they sum by the number of rows, and the description says so.
"""

from __future__ import annotations

import ctypes
import logging
from functools import partial
from typing import TYPE_CHECKING, Any

import torch

from engine.cpu.kernel_library import (
    MAX_HEAD_DIM,
    MAX_QUERY_GROUP,
    Kernels,
    KernelsUnavailable,
    Product,
    load_kernels,
)
from engine.cpu.kernel_library import Step as KernelArguments
from engine.cpu.panels import is_gated, pack
from engine.reference.backend import TorchBackend

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from engine.model.decoder import LayerWeights, Linear, Step
    from engine.model.ragged_batch import RaggedBatch
    from protocol.model_config import ModelConfig

_log = logging.getLogger(__name__)
FEW_ROWS = 2
"""Up to so many rows reading the matrix once, as it is, beats widening it."""


def find_kernels(
    config: ModelConfig, dtype: torch.dtype, cache: Path | None, target: str = "native"
) -> Kernels | KernelsUnavailable:
    """The kernels if they serve this model here, else why they do not."""
    if cache is None:
        return KernelsUnavailable("no directory for C kernels")
    if (
        config.head_dim % 32
        or config.head_dim > MAX_HEAD_DIM
        or config.num_heads // config.num_kv_heads > MAX_QUERY_GROUP
        or config.hidden_size % 16
        or config.intermediate_size % 16
    ):
        return KernelsUnavailable("no C kernels for these sizes")
    try:
        return load_kernels(cache, "f32" if dtype == torch.float32 else "bf16", target)
    except KernelsUnavailable as error:
        _log.warning(
            "no C kernels (%s): slow, and equal prompts may differ in the last bit; install a C compiler",
            error,
        )
        return error


class CpuBackend(TorchBackend):
    """C kernels for everything; where there are none, oneDNN's products and torch's attention."""

    def __init__(
        self,
        config: ModelConfig,
        kv: torch.Tensor,
        kernels: Kernels | KernelsUnavailable,
        panels: Mapping[str, torch.Tensor],
    ) -> None:
        """`panels` has packed matrices by the name that `linear` gets; what it lacks is packed here."""
        super().__init__(config, kv)
        self._panels = panels
        self.num_threads = torch.get_num_threads()
        if isinstance(kernels, Kernels):
            self.kernels: Kernels | None = kernels
            self.arithmetic = kernels.arithmetic
            self.description = f"cpu (C kernels {kernels.arithmetic}, exact)"
        else:
            self.kernels = None
            self.description = f"cpu ({kernels}: oneDNN, torch attention, not exact)"

    def linear(self, name: str, weight: torch.Tensor, bias: torch.Tensor | None) -> Linear:
        """The kernels' product with the matrix in panels; that with gate and up ends with silu_mul."""
        if self.kernels is None:
            return _plain_product(weight, bias)
        packed = self._panels.get(name)
        if packed is None:
            packed = pack(self.kernels, name, weight)
        outputs, gated = weight.shape[0], is_gated(name)
        return PanelProduct(self, packed, outputs // 2 if gated else outputs, bias, gated=gated)

    def begin(self, batch: RaggedBatch) -> Step:
        """Kernels where there are some, else plain torch."""
        if self.kernels is None:
            return super().begin(batch)
        return KernelStep(self, self.kernels, batch)


class PanelProduct:
    """[rows, in] to [rows, out] by the kernels; gated, it is silu(first half) * second half of that.

    Keeps the memory alive that the C side points into.
    """

    def __init__(
        self,
        backend: CpuBackend,
        panels: torch.Tensor,
        outputs: int,
        bias: torch.Tensor | None,
        *,
        gated: bool,
    ) -> None:
        kernels = backend.kernels
        assert kernels is not None, "only a backend with kernels makes one"
        self._backend = backend
        self._function = kernels.product
        self._widens = kernels.widens
        self._keep = (panels, bias)
        self._arguments = Product(
            panels=panels.data_ptr(),
            bias=None if bias is None else bias.data_ptr(),
            outputs=outputs,
            words=panels.shape[1],
            gated=gated,
        )
        self._reference = ctypes.byref(self._arguments)

    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        """The product, and the bias if there is one."""
        rows, arguments = x.shape[0], self._arguments
        x = x.contiguous()
        out = torch.empty((rows, arguments.outputs), dtype=x.dtype)
        wide = torch.empty(x.shape, dtype=torch.float32) if self._widens else None
        arguments.x, arguments.out, arguments.rows = x.data_ptr(), out.data_ptr(), rows
        arguments.wide = None if wide is None else wide.data_ptr()
        arguments.num_threads = self._backend.num_threads
        self._function(self._reference)
        return out


def _onednn(name: str) -> Any:
    """One of torch's oneDNN operators; they have no public names."""
    return getattr(torch.ops.mkldnn, name)


def _plain_product(weight: torch.Tensor, bias: torch.Tensor | None) -> Linear:
    """oneDNN's product with its own layout, or torch's in float32 where oneDNN lacks the dtype."""
    mkldnn: Any = torch.backends.mkldnn
    is_wide = weight.dtype == torch.float32
    if mkldnn.is_available() and (is_wide or bool(_onednn("_is_mkldnn_bf16_supported")())):
        return partial(_multiply_packed, _onednn("_reorder_linear_weight")(weight), bias)
    return partial(_multiply_widened, weight, bias)


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
        """What it is given: `CpuBackend.linear` did it while the sums were at hand."""
        return gate_up
