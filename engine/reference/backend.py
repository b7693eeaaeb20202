"""The reference backend: plain torch, any device, obviously right. Owns no layout of its own."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING

import torch
from torch.nn.functional import linear, silu

from engine.kv.pool_tensor import KV_LAYOUT
from engine.model.rope import rope_table, rotate
from engine.reference.adapters import add_adapters
from engine.reference.attention import paged_attention, store_kv, token_slots

if TYPE_CHECKING:
    from engine.adapters.modules import MatrixName
    from engine.model.decoder import LayerWeights, Linear, Step
    from engine.model.ragged_batch import RaggedBatch
    from protocol.model_config import ModelConfig


ARITHMETIC = f"torch-{torch.__version__}"
"""Of every backend that leaves its sums to torch."""


def rms_norm(x: torch.Tensor, weight: torch.Tensor, epsilon: float) -> torch.Tensor:
    """Root mean square norm over the last dimension (arXiv 1910.07467), float32 inside."""
    wide = x.float()
    scale = torch.rsqrt(wide.pow(2).mean(-1, keepdim=True) + epsilon)
    return weight * (wide * scale).to(x.dtype)


class TorchBackend:
    """Weights as they lie in the prepared file, KV gathered for every layer."""

    def __init__(self, config: ModelConfig, kv: torch.Tensor) -> None:
        self.config = config
        self.kv = kv
        self.description = f"torch ({kv.device.type} reference)"
        self.arithmetic = ARITHMETIC
        self.kv_layout = KV_LAYOUT
        self.max_context_tokens = min(config.max_position_embeddings, kv.shape[0] * kv.shape[4])
        self.rope = rope_table(config, self.max_context_tokens).to(kv.device)

    def linear(self, name: str, weight: torch.Tensor, bias: torch.Tensor | None) -> Linear:
        """F.linear on the plain weight."""
        del name
        return partial(linear, weight=weight, bias=bias)

    def begin(self, batch: RaggedBatch) -> Step:
        """Slots and rotations of the new tokens."""
        return TorchStep(self, batch)


class TorchStep:
    """One step in plain torch."""

    def __init__(self, backend: TorchBackend, batch: RaggedBatch) -> None:
        self._config = backend.config
        self._kv = backend.kv
        self._batch = batch
        device = backend.kv.device
        self._slots = token_slots(batch, backend.kv.shape[4]).to(device)
        self._is_sampled = False
        self._rotations = backend.rope[torch.from_numpy(batch.positions).to(device).long()]

    def embed(self, table: torch.Tensor) -> torch.Tensor:
        """[T, hidden] rows of the new tokens."""
        return table[torch.from_numpy(self._batch.token_ids).to(table.device)]

    def add_norm(
        self, residual: torch.Tensor, delta: torch.Tensor | None, weight: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """(normed, residual + delta)."""
        total = residual if delta is None else residual + delta
        return rms_norm(total, weight, self._config.rms_norm_eps), total

    def attend(self, qkv: torch.Tensor, layer: int, weights: LayerWeights) -> torch.Tensor:
        """Rotate, store, gather, attend."""
        config, rows = self._config, qkv.shape[0]
        counts = [config.num_heads, config.num_kv_heads, config.num_kv_heads]
        heads = qkv.view(rows, -1, config.head_dim)
        query, keys, values = torch.split(heads, counts, dim=1)
        if weights.q_norm is not None and weights.k_norm is not None:
            query = rms_norm(query, weights.q_norm, config.rms_norm_eps)
            keys = rms_norm(keys, weights.k_norm, config.rms_norm_eps)
        query, keys = rotate(query, self._rotations), rotate(keys, self._rotations)
        store_kv(self._kv, layer, self._slots, keys, values)
        window = config.sliding_window
        return paged_attention(query, self._kv, layer, self._batch, window).reshape(rows, -1)

    def sampled(self, rows: torch.Tensor) -> torch.Tensor:
        """The rows whose logits are wanted."""
        self._is_sampled = True
        return rows[torch.from_numpy(self._batch.sample_rows).to(rows.device)]

    def multiply(
        self, product: Linear, x: torch.Tensor, layer: int, matrix: MatrixName
    ) -> torch.Tensor:
        """The product, and what the rows' adapters add to it: from the first `sampled` on, rows are those sampled."""
        result = product(x)
        if self._batch.adapters:
            add_adapters(result, x, self._batch.adapters, (layer, matrix), self._is_sampled)
        return result

    def silu_mul(self, gate_up: torch.Tensor) -> torch.Tensor:
        """silu(first half) * second half."""
        gate, up = gate_up.chunk(2, dim=-1)
        return silu(gate) * up
