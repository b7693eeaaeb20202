"""Every tensor of a prepared model: name, shape and where it comes from. Pure."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator

    from protocol.model_config import ModelConfig


def plan_tensors(config: ModelConfig) -> Iterator[tuple[str, tuple[int, ...], tuple[str, ...]]]:
    """(our name, shape, source names) of every tensor in weights.bin; sources are stacked by rows."""
    hidden, head_dim, inner = config.hidden_size, config.head_dim, config.intermediate_size
    qkv_rows = (config.num_heads + 2 * config.num_kv_heads) * head_dim
    yield "embed", (config.vocab_size, hidden), ("model.embed_tokens.weight",)
    for index in range(config.num_layers):
        ours, theirs = f"layers.{index}", f"model.layers.{index}"
        qkv = tuple(f"{theirs}.self_attn.{part}_proj" for part in "qkv")
        gate_up = (f"{theirs}.mlp.gate_proj", f"{theirs}.mlp.up_proj")
        yield f"{ours}.input_norm", (hidden,), (f"{theirs}.input_layernorm.weight",)
        yield f"{ours}.qkv", (qkv_rows, hidden), tuple(f"{name}.weight" for name in qkv)
        if config.attention_bias:
            yield f"{ours}.qkv_bias", (qkv_rows,), tuple(f"{name}.bias" for name in qkv)
        if config.family == "qwen3":
            yield f"{ours}.q_norm", (head_dim,), (f"{theirs}.self_attn.q_norm.weight",)
            yield f"{ours}.k_norm", (head_dim,), (f"{theirs}.self_attn.k_norm.weight",)
        out = f"{theirs}.self_attn.o_proj"
        yield f"{ours}.out", (hidden, config.num_heads * head_dim), (f"{out}.weight",)
        if config.attention_bias and config.family != "qwen2":
            yield f"{ours}.out_bias", (hidden,), (f"{out}.bias",)
        yield f"{ours}.post_norm", (hidden,), (f"{theirs}.post_attention_layernorm.weight",)
        yield f"{ours}.gate_up", (2 * inner, hidden), tuple(f"{name}.weight" for name in gate_up)
        down = f"{theirs}.mlp.down_proj"
        yield f"{ours}.down", (hidden, inner), (f"{down}.weight",)
        if config.mlp_bias:
            yield f"{ours}.gate_up_bias", (2 * inner,), tuple(f"{name}.bias" for name in gate_up)
            yield f"{ours}.down_bias", (hidden,), (f"{down}.bias",)
    yield "norm", (hidden,), ("model.norm.weight",)
    if not config.tie_word_embeddings:
        yield "head", (config.vocab_size, hidden), ("lm_head.weight",)
