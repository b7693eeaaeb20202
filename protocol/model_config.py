"""What a decoder model is made of. Owns the torch-free description; reading it from files is engine.checkpoints."""

from __future__ import annotations

from typing import Literal

import msgspec


class RopeScaling(msgspec.Struct, frozen=True, kw_only=True):
    """Rotary scaling of long-context models; `kind` default leaves frequencies as they are.

    llama3 reads the frequency factors, yarn the betas and `truncate`; `divisors` of kind "divisors" has one number
    for each of the head_dim / 2 frequencies. Cosines and sines are multiplied by `attention_factor`.
    """

    kind: Literal["default", "linear", "llama3", "yarn", "divisors"] = "default"
    factor: float = 1.0
    low_freq_factor: float = 1.0
    high_freq_factor: float = 4.0
    original_max_position: int = 8192
    beta_fast: float = 32.0
    beta_slow: float = 1.0
    truncate: bool = True
    attention_factor: float = 1.0
    divisors: tuple[float, ...] = ()


class ModelConfig(msgspec.Struct, frozen=True, kw_only=True):
    """Shape of a Llama-like decoder. Sizes are counts of elements.

    `family` chooses what differs: qwen3 normalizes q and k per head; llama covers SmolLM2 and Mistral.
    `attention_bias` is that of q, k and v, `output_bias` that of the attention's output.
    """

    family: Literal["llama", "qwen2", "qwen3"]
    vocab_size: int
    hidden_size: int
    intermediate_size: int
    num_layers: int
    num_heads: int
    num_kv_heads: int
    head_dim: int
    rms_norm_eps: float
    rope_theta: float
    rope_scaling: RopeScaling = RopeScaling()
    max_position_embeddings: int
    tie_word_embeddings: bool = False
    attention_bias: bool = False
    output_bias: bool = False
    mlp_bias: bool = False
    eos_token_ids: tuple[int, ...] = ()
    bos_token_id: int | None = None
    sliding_window: int | None = None

    def kv_bytes_per_token(self, element_bytes: int) -> int:
        """Bytes of keys and values that one token keeps, all layers together."""
        return 2 * self.num_layers * self.num_kv_heads * self.head_dim * element_bytes
