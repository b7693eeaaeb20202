"""Every tensor of a prepared model: name, shape and where it comes from. Pure."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator

    from protocol.model_config import ModelConfig

    Parts = tuple[tuple[str, int], ...]
    """Sources that are stacked, and how many rows each has."""


def plan_tensors(config: ModelConfig) -> Iterator[tuple[str, tuple[int, ...], tuple[str, ...]]]:
    """(our name, shape, source names) of every tensor in weights.bin; sources are stacked by rows."""
    for name, parts, row in _plan(config):
        yield name, (sum(rows for _, rows in parts), *row), tuple(source for source, _ in parts)


def source_shapes(config: ModelConfig) -> Iterator[tuple[str, tuple[int, ...]]]:
    """Name and shape of every tensor that a checkpoint must have."""
    for _, parts, row in _plan(config):
        for source, rows in parts:
            yield source, (rows, *row)


def _plan(config: ModelConfig) -> Iterator[tuple[str, Parts, tuple[int, ...]]]:
    """(our name, its parts, shape of a row)."""
    hidden = (config.hidden_size,)
    yield "embed", (("model.embed_tokens.weight", config.vocab_size),), hidden
    for index in range(config.num_layers):
        yield from _plan_layer(config, f"layers.{index}", f"model.layers.{index}")
    yield "norm", (("model.norm.weight", config.hidden_size),), ()
    if not config.tie_word_embeddings:
        yield "head", (("lm_head.weight", config.vocab_size),), hidden


def _plan_layer(
    config: ModelConfig, ours: str, theirs: str
) -> Iterator[tuple[str, Parts, tuple[int, ...]]]:
    hidden, head_dim, inner = config.hidden_size, config.head_dim, config.intermediate_size
    query, key_value = config.num_heads * head_dim, config.num_kv_heads * head_dim
    qkv = {f"{theirs}.self_attn.q_proj": query}
    qkv |= {f"{theirs}.self_attn.{part}_proj": key_value for part in "kv"}
    gate_up = {f"{theirs}.mlp.gate_proj": inner, f"{theirs}.mlp.up_proj": inner}
    out, down = {f"{theirs}.self_attn.o_proj": hidden}, {f"{theirs}.mlp.down_proj": hidden}
    yield f"{ours}.input_norm", ((f"{theirs}.input_layernorm.weight", hidden),), ()
    yield f"{ours}.qkv", _named(qkv, "weight"), (hidden,)
    if config.attention_bias:
        yield f"{ours}.qkv_bias", _named(qkv, "bias"), ()
    if config.family == "qwen3":
        yield f"{ours}.q_norm", ((f"{theirs}.self_attn.q_norm.weight", head_dim),), ()
        yield f"{ours}.k_norm", ((f"{theirs}.self_attn.k_norm.weight", head_dim),), ()
    yield f"{ours}.out", _named(out, "weight"), (query,)
    if config.output_bias:
        yield f"{ours}.out_bias", _named(out, "bias"), ()
    yield f"{ours}.post_norm", ((f"{theirs}.post_attention_layernorm.weight", hidden),), ()
    yield f"{ours}.gate_up", _named(gate_up, "weight"), (hidden,)
    yield f"{ours}.down", _named(down, "weight"), (inner,)
    if config.mlp_bias:
        yield f"{ours}.gate_up_bias", _named(gate_up, "bias"), ()
        yield f"{ours}.down_bias", _named(down, "bias"), ()


def _named(parts: dict[str, int], kind: str) -> Parts:
    return tuple((f"{name}.{kind}", rows) for name, rows in parts.items())
