"""A model that a running server is given beside another. Owns what its workers are made of: those of the other, with what the model itself
decides."""

from __future__ import annotations

from typing import TYPE_CHECKING

import msgspec

from engine.checkpoints.prepared import ELEMENT_BYTES
from protocol.errors import ConfigError

if TYPE_CHECKING:
    from protocol.specs import ModelSpec, PreparedModel, WorkerSpec


def context_length(beside: ModelSpec, model: PreparedModel) -> int:
    """Longest sequence with the pools and the limit of `beside`: as `baton serve` has it. ConfigError where it cannot be."""
    own, held = model.config.max_position_embeddings, num_blocks(beside, model) * beside.block_size
    limit = beside.length_limit
    if limit is None:
        return min(own, held)
    for most, what in (
        (own, f"the {own} that it was made for"),
        (held, f"the {held} of a KV pool"),
    ):
        if limit > most:
            told = f"model: the server's --max-model-len of {limit} tokens is more than {what}"
            raise ConfigError(told)
    return limit


def num_blocks(beside: ModelSpec, model: PreparedModel) -> int:
    """Of a KV pool as large as theirs; ConfigError when that is too small for a prompt and its output."""
    element_bytes = ELEMENT_BYTES["bfloat16" if model.dtype == "bfloat16" else "float32"]
    block_bytes = beside.block_size * model.config.kv_bytes_per_token(element_bytes)
    count = beside.kv_cache_bytes // block_bytes
    if count < 2:
        told = f"model: the KV pools of this server ({beside.kv_cache_bytes} bytes each) hold {count} of its blocks"
        raise ConfigError(f"{told}; serve it with a larger --kv-cache-memory")
    return count


def worker_of(model: ModelSpec, like: WorkerSpec) -> WorkerSpec:
    """What `like`, a worker of another model of this server, would be for that one. Its weights are mapped from their file: a copy of them
    would outlive it."""
    return msgspec.structs.replace(
        like,
        model=model.model,
        num_blocks=num_blocks(model, model.model),
        max_model_len=model.max_model_len,
        weights_fd=None,
        adapters_directory="",
    )
