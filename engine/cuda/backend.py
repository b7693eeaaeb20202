"""The GPU backend: cuBLAS for matrix products, Triton kernels for the rest. Owns neither's layout."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch.nn.functional import linear

from engine.cuda.kernels.activations import silu_mul
from engine.cuda.kernels.decode_attention import decode_attention, new_arrivals
from engine.cuda.kernels.norms import add_rms_norm
from engine.cuda.kernels.prefill_attention import prefill_attention
from engine.cuda.kernels.rope_store import rope_and_store
from engine.cuda.step_inputs import InputStaging, StepInputs
from engine.model.rope import rope_table

if TYPE_CHECKING:
    from engine.adapters.modules import MatrixName
    from engine.model.decoder import LayerWeights, Linear, Step
    from engine.model.ragged_batch import RaggedBatch
    from protocol.model_config import ModelConfig


def device_name(device: torch.device) -> str:
    """For people: `NVIDIA H100 80GB HBM3`, or the interpreter that tests use."""
    return torch.cuda.get_device_name(device) if device.type == "cuda" else "interpreted kernels"


@dataclass(frozen=True, slots=True)
class Product:
    """cuBLAS's product of [T, in] rows with an [out, in] weight."""

    weight: torch.Tensor
    bias: torch.Tensor | None

    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        """[T, out]."""
        return linear(x, self.weight, self.bias)


class CudaBackend:
    """Weights as they are, on the device; attention reads the blocks in place."""

    def __init__(self, config: ModelConfig, kv: torch.Tensor) -> None:
        """`kv` is the pool on the device, in the shape of engine.kv.pool_tensor."""
        self.config = config
        self.kv = kv
        self.description = f"cuda ({device_name(kv.device)})"
        self.max_context_tokens = min(config.max_position_embeddings, kv.shape[0] * kv.shape[4])
        self.rope = rope_table(config, self.max_context_tokens).to(kv.device)
        self.arrivals = new_arrivals(kv.device)
        self.staging = InputStaging(kv.device, kv.shape[4])

    def linear(self, name: str, weight: torch.Tensor, bias: torch.Tensor | None) -> Product:
        """A product with the plain weight."""
        del name
        return Product(weight, bias)

    def begin(self, batch: RaggedBatch) -> Step:
        """Upload the batch."""
        return CudaStep(self, self.staging.upload(batch))


class CudaStep:
    """One step of kernels; nothing in it waits for the device."""

    def __init__(self, backend: CudaBackend, inputs: StepInputs) -> None:
        self._backend = backend
        self._config = backend.config
        self._inputs = inputs

    def embed(self, table: torch.Tensor) -> torch.Tensor:
        """[T, hidden] rows of the new tokens."""
        return table[self._inputs.token_ids]

    def sampled(self, rows: torch.Tensor) -> torch.Tensor:
        """The rows whose logits are wanted."""
        chosen = self._inputs.sample_rows
        return rows if chosen is None else rows[chosen]

    def add_norm(
        self, residual: torch.Tensor, delta: torch.Tensor | None, weight: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """(normed, residual + delta)."""
        epsilon = self._config.rms_norm_eps
        return add_rms_norm(residual, delta, weight, epsilon)

    def attend(self, qkv: torch.Tensor, layer: int, weights: LayerWeights) -> torch.Tensor:
        """Rotate and store in one kernel, attend in another."""
        config, inputs, backend = self._config, self._inputs, self._backend
        norms = None
        if weights.q_norm is not None and weights.k_norm is not None:
            norms = (weights.q_norm, weights.k_norm)
        heads, window, kv = config.num_heads, config.sliding_window, backend.kv
        rope_and_store(
            qkv, backend.rope, inputs.positions, inputs.slots, kv, layer, heads, norms,
            config.rms_norm_eps,
        )  # fmt: skip
        if inputs.max_queries == 1:
            return decode_attention(
                qkv,
                kv,
                layer,
                inputs.block_tables,
                inputs.contexts,
                heads,
                window,
                backend.arrivals,
            )
        return prefill_attention(
            qkv, kv, layer, inputs.block_tables, inputs.query_starts, inputs.contexts,
            inputs.max_queries, heads, window,
        )  # fmt: skip

    def multiply(
        self, product: Linear, x: torch.Tensor, layer: int, matrix: MatrixName
    ) -> torch.Tensor:
        """The product alone: `baton serve` refuses adapters on a GPU."""
        del layer, matrix
        return product(x)

    def silu_mul(self, gate_up: torch.Tensor) -> torch.Tensor:
        """silu(first half) * second half."""
        return silu_mul(gate_up)
