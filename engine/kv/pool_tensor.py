"""The block pool seen as a tensor. Owns its shape; must not know who holds a block.

    [num_blocks, num_layers, 2 (keys, values), num_kv_heads, block_size, head_dim]

One block is one contiguous range of bytes with all layers in it; inside, the keys of one head of one
layer are contiguous too. That is how torch and the GPU see it; the C kernels put keys and values of a head
beside each other and turn the keys (engine/cpu/kernels/operations.h), in as many bytes.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

if TYPE_CHECKING:
    from engine.kv.pool_memory import KvMemory
    from protocol.model_config import ModelConfig


KV_LAYOUT = "block:layer:kv:head:token:dim"


def kv_tensor(
    memory: KvMemory, config: ModelConfig, block_size: int, dtype: torch.dtype
) -> torch.Tensor:
    """A view of all of `memory`, in the shape above; writing to it writes to the pool."""
    flat = torch.frombuffer(memory.buffer, dtype=dtype)
    per_block = (config.num_layers, 2, config.num_kv_heads, block_size, config.head_dim)
    return flat.view(memory.num_blocks, *per_block)
