"""Models by shape alone: their weights are random. Sizes from the published config.json files."""

from __future__ import annotations

from protocol.model_config import ModelConfig, RopeScaling

SHAPES = {
    "llama-8b": ModelConfig(
        family="llama",
        vocab_size=128256,
        hidden_size=4096,
        intermediate_size=14336,
        num_layers=32,
        num_heads=32,
        num_kv_heads=8,
        head_dim=128,
        rms_norm_eps=1e-5,
        rope_theta=500000.0,
        rope_scaling=RopeScaling(kind="llama3", factor=8.0, low_freq_factor=1.0),
        max_position_embeddings=131072,
    ),
    "qwen3-8b": ModelConfig(
        family="qwen3",
        vocab_size=151936,
        hidden_size=4096,
        intermediate_size=12288,
        num_layers=36,
        num_heads=32,
        num_kv_heads=8,
        head_dim=128,
        rms_norm_eps=1e-6,
        rope_theta=1000000.0,
        max_position_embeddings=40960,
    ),
}


def product_parameters(config: ModelConfig) -> int:
    """Weights that every token is multiplied with, in all layers; the head is not among them."""
    hidden, dim = config.hidden_size, config.head_dim
    qkv = (config.num_heads + 2 * config.num_kv_heads) * dim * hidden
    out = config.num_heads * dim * hidden
    return config.num_layers * (qkv + out + 3 * hidden * config.intermediate_size)


def head_parameters(config: ModelConfig) -> int:
    """Weights of the product with the vocabulary."""
    return config.vocab_size * config.hidden_size
