"""The decoder's forward pass. Owns the order of operations of a Llama-like model; a backend computes each.

    embed ─► (norm ─► qkv ─► rotate, store, attend ─► out ─┐+ ─► norm ─► gate·up ─► down ─┐+) a layer ─► norm ─► head

The residual stream keeps the weights' dtype; norms, rotation and softmax are float32 inside.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from collections.abc import Callable

    import torch

    from engine.adapters.modules import MatrixName
    from engine.model.ragged_batch import RaggedBatch
    from protocol.model_config import ModelConfig

    Linear = Callable[[torch.Tensor], torch.Tensor]


@dataclass(frozen=True, slots=True)
class LayerWeights:
    """One decoder layer: norm vectors, and matrix products ready to call on [T, in] rows."""

    input_norm: torch.Tensor
    qkv: Linear
    q_norm: torch.Tensor | None
    k_norm: torch.Tensor | None
    out: Linear
    post_norm: torch.Tensor
    gate_up: Linear
    down: Linear


@dataclass(frozen=True, slots=True)
class ModelWeights:
    """All weights of a model."""

    embed: torch.Tensor
    layers: tuple[LayerWeights, ...]
    norm: torch.Tensor
    head: Linear


class Step(Protocol):
    """The operations of one step over one ragged batch, as a backend prepared them."""

    def embed(self, table: torch.Tensor) -> torch.Tensor:
        """[T, hidden] rows of the new tokens."""
        ...

    def add_norm(
        self, residual: torch.Tensor, delta: torch.Tensor | None, weight: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """(normed, residual + delta); the given residual must not be used afterwards."""
        ...

    def attend(self, qkv: torch.Tensor, layer: int, weights: LayerWeights) -> torch.Tensor:
        """Rotate q and k, store k and v in the blocks, attend; [T, heads * dim]."""
        ...

    def sampled(self, rows: torch.Tensor) -> torch.Tensor:
        """Of [T, …] the rows whose logits are wanted."""
        ...

    def multiply(
        self, product: Linear, x: torch.Tensor, layer: int, matrix: MatrixName
    ) -> torch.Tensor:
        """The product of a layer's matrix with rows, and what their adapters add to it."""
        ...

    def silu_mul(self, gate_up: torch.Tensor) -> torch.Tensor:
        """silu(first half) * second half of each row."""
        ...


class Backend(Protocol):
    """How the operations of a model are computed on one kind of hardware."""

    description: str
    max_context_tokens: int

    def linear(self, name: str, weight: torch.Tensor, bias: torch.Tensor | None) -> Linear:
        """A matrix product with [out, in] `weight`, stored under `name`."""
        ...

    def begin(self, batch: RaggedBatch) -> Step:
        """Prepare what all layers of one step share."""
        ...


class Model:
    """Weights and a backend; holds no state between steps but what is in the KV blocks."""

    def __init__(self, config: ModelConfig, weights: ModelWeights, backend: Backend) -> None:
        self.config = config
        self.weights = weights
        self.backend = backend

    def forward(self, batch: RaggedBatch) -> torch.Tensor:
        """Compute the KV of every new token; [len(sample_rows), vocab] float32 logits."""
        return self.run(self.backend.begin(batch))

    def states(self, batch: RaggedBatch) -> torch.Tensor:
        """The same, but [len(sample_rows), hidden] states after the final norm."""
        return self._states(self.backend.begin(batch))

    def head(self, states: torch.Tensor) -> torch.Tensor:
        """[rows, vocab] float32 logits of such states."""
        return self.weights.head(states).float()

    def run(self, step: Step) -> torch.Tensor:
        """`forward` of a batch that is prepared."""
        return self.head(self._states(step))

    def _states(self, step: Step) -> torch.Tensor:
        residual, delta = step.embed(self.weights.embed), None
        last = len(self.weights.layers) - 1
        for index, layer in enumerate(self.weights.layers):
            hidden, residual = step.add_norm(residual, delta, layer.input_norm)
            qkv = step.multiply(layer.qkv, hidden, index, "qkv")
            attended = step.attend(qkv, index, layer)
            if index == last:  # the KV is complete: from here on only the sampled rows matter
                attended, residual = step.sampled(attended), step.sampled(residual)
            delta = step.multiply(layer.out, attended, index, "out")
            hidden, residual = step.add_norm(residual, delta, layer.post_norm)
            gate_up = step.multiply(layer.gate_up, hidden, index, "gate_up")
            delta = step.multiply(layer.down, step.silu_mul(gate_up), index, "down")
        hidden, _ = step.add_norm(residual, delta, self.weights.norm)
        return hidden
