"""What a GPU worker needs beside its KV blocks. Pure arithmetic; torch-free, so that the launcher can plan."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from engine.checkpoints.weight_shapes import plan_tensors

if TYPE_CHECKING:
    from protocol.model_config import ModelConfig

_RUNTIME_BYTES = 3 << 29
"""Context, cuBLAS workspaces, captured graphs: 1.5 GiB, more than was seen."""
DRAWN_ROWS = 32
"""Rows that the sampler filters at once; each takes `_DRAW_BYTES` a token of the vocabulary."""
_DRAW_BYTES = 64


def weight_bytes(config: ModelConfig, element_bytes: int) -> int:
    """All weights of the model."""
    return element_bytes * sum(math.prod(shape) for _, shape, _ in plan_tensors(config))


def reserve_bytes(config: ModelConfig, max_num_batched_tokens: int, max_num_seqs: int) -> int:
    """Activations of the largest step, logits and the sampler's work, and what CUDA takes for itself."""
    heads = config.num_heads + 2 * config.num_kv_heads
    row = 4 * config.hidden_size + heads * config.head_dim + 3 * config.intermediate_size
    activations = max_num_batched_tokens * row * 2 * 2
    logits = max_num_seqs * config.vocab_size * 6 * 2
    return _RUNTIME_BYTES + activations + logits + DRAWN_ROWS * config.vocab_size * _DRAW_BYTES
