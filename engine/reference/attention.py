"""Attention over paged KV in plain torch: the reference. Owns gathering and masking; must not know projections.

The kernels in engine/kernels do the same in place; the tests hold them to this file.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch.nn.functional import scaled_dot_product_attention

if TYPE_CHECKING:
    from engine.model.ragged_batch import RaggedBatch


def store_kv(
    kv: torch.Tensor, layer: int, slots: torch.Tensor, keys: torch.Tensor, values: torch.Tensor
) -> None:
    """Write [T, kv_heads, dim] keys and values at flat token `slots` (block * block_size + offset)."""
    block_size = kv.shape[4]
    blocks, offsets = slots // block_size, slots % block_size
    kv[blocks, layer, 0, :, offsets] = keys
    kv[blocks, layer, 1, :, offsets] = values


def token_slots(batch: RaggedBatch, block_size: int) -> torch.Tensor:
    """[T] flat slot of each new token."""
    counts = batch.query_starts[1:] - batch.query_starts[:-1]
    owners = torch.repeat_interleave(
        torch.arange(batch.num_sequences), torch.from_numpy(counts).long()
    )
    positions = torch.from_numpy(batch.positions).long()
    tables = torch.from_numpy(batch.block_tables).long()
    return tables[owners, positions // block_size] * block_size + positions % block_size


def paged_attention(
    query: torch.Tensor, kv: torch.Tensor, layer: int, batch: RaggedBatch, window: int | None
) -> torch.Tensor:
    """Causal attention of [T, heads, dim] queries over each sequence's blocks; same shape out.

    With `window`, a token sees itself and the `window - 1` tokens before it.
    """
    output = torch.empty_like(query)
    tables = torch.from_numpy(batch.block_tables).to(kv.device).long()
    for index, context in enumerate(batch.context_lengths.tolist()):
        start, end = batch.query_starts[index : index + 2].tolist()
        table = tables[index, : -(-context // kv.shape[4])]
        keys, values = (_gather(kv[table, layer, side], context) for side in (0, 1))
        mask = attention_mask(end - start, context, window).to(kv.device)
        found = scaled_dot_product_attention(
            query[start:end].transpose(0, 1).unsqueeze(0), keys, values, mask, enable_gqa=True
        )
        output[start:end] = found[0].transpose(0, 1)
    return output


def _gather(blocks: torch.Tensor, context: int) -> torch.Tensor:
    """[blocks, heads, block_size, dim] to [1, heads, context, dim]."""
    return blocks.transpose(0, 1).flatten(1, 2)[:, :context].unsqueeze(0)


def attention_mask(num_queries: int, context: int, window: int | None) -> torch.Tensor:
    """[num_queries, context] bool, True where the query may look; queries are the last tokens."""
    positions = torch.arange(context - num_queries, context).unsqueeze(1)
    keys = torch.arange(context).unsqueeze(0)
    seen = keys <= positions
    return seen if window is None else seen & (keys > positions - window)
