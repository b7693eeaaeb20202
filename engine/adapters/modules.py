"""The linear layers that an adapter may change. Owns where each lies in the fused matrices; pure."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:
    from collections.abc import Iterator

    from protocol.model_config import ModelConfig

MatrixName = Literal["qkv", "out", "gate_up", "down"]
MATRICES: tuple[MatrixName, ...] = ("qkv", "out", "gate_up", "down")


@dataclass(frozen=True, slots=True)
class Module:
    """One linear layer by its name in transformers. Its outputs are those of `matrix` of `layer` from `first` on."""

    name: str
    layer: int
    matrix: MatrixName
    first: int
    outputs: int
    inputs: int


def modules_of(config: ModelConfig) -> Iterator[Module]:
    """Every one, in the order of the matrices' outputs."""
    hidden, inner, dim = config.hidden_size, config.intermediate_size, config.head_dim
    query, keys = config.num_heads * dim, config.num_kv_heads * dim
    places: tuple[tuple[str, MatrixName, int, int, int], ...] = (
        ("self_attn.q_proj", "qkv", 0, query, hidden),
        ("self_attn.k_proj", "qkv", query, keys, hidden),
        ("self_attn.v_proj", "qkv", query + keys, keys, hidden),
        ("self_attn.o_proj", "out", 0, hidden, query),
        ("mlp.gate_proj", "gate_up", 0, inner, hidden),
        ("mlp.up_proj", "gate_up", inner, inner, hidden),
        ("mlp.down_proj", "down", 0, hidden, inner),
    )
    for layer in range(config.num_layers):
        for name, matrix, first, outputs, inputs in places:
            yield Module(f"model.layers.{layer}.{name}", layer, matrix, first, outputs, inputs)
