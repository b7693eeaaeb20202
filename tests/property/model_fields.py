"""Config fields and their values, ordinary, odd and hostile. Owns what a random case is made of; asserts nothing."""

from __future__ import annotations

import random
from dataclasses import dataclass
from typing import Any

Changes = dict[str, Any]
ARCHITECTURES = ("Llama", "Mistral", "Qwen2", "Qwen3")
LAYERS, POSITIONS, LONG_POSITIONS, VOCAB = 2, 512, 4400, 300
GONE = object()
"""In the place of a value: the field is left out."""
WILD: tuple[Any, ...] = (
    *(None, True, False, 0, 1, -1, 7, 2**40, 0.5, -2.5, float("nan"), float("inf"), 1e308),
    *("", "auto", "8", [], [1], ["full_attention"], {}, {"a": 1}, [[0]], {"rope_type": "yarn"}),
)
FULL, SLIDING = "full_attention", "sliding_attention"
FIELDS: dict[str, tuple[Any, ...]] = {
    "hidden_size": (64, 128, 96, 66),
    "intermediate_size": (1, 33, 256),
    "num_hidden_layers": (1, 3),
    "num_attention_heads": (1, 2, 8, 3),
    "num_key_value_heads": (1, 4, 3, None, GONE),
    "head_dim": (8, 32, 64, 33, None, GONE),
    "vocab_size": (299, 301, 512),
    "max_position_embeddings": (64, 513, 2048),
    "hidden_act": ("silu", "swish", "gelu", "relu", "gelu_new", GONE, None),
    "rms_norm_eps": (1e-5, 1e-6, 0.1, 0, 1, GONE, None),
    "initializer_range": (0.3, GONE),
    "tie_word_embeddings": (True, False, GONE),
    "attention_bias": (True, False, GONE),
    "mlp_bias": (True, False, GONE),
    "attention_dropout": (0.0, 0.5, GONE, None),
    "sliding_window": (None, 8, 24, 63, 511, 512, 4096, GONE),
    "use_sliding_window": (True, False, GONE),
    "max_window_layers": (0, 1, 2, 3, 28, GONE),
    "layer_types": (
        *([FULL] * LAYERS, [SLIDING] * LAYERS, [FULL, SLIDING], ["attention"] * LAYERS),
        *([FULL], None, GONE, ["chunked_attention"] * LAYERS, ["linear_attention", FULL]),
    ),
    "attention_chunk_size": (None, 16),
    "partial_rotary_factor": (1.0, 1, 0.5, 0.0, None),
    "rope_theta": (1e4, 10000, 5e5, 123.5, 1.0, 1, GONE, None),
    "original_max_position_embeddings": (64, 128.0, 1024, None),
    "quantization_config": (None, {}, {"quant_method": "awq"}, {"quant_method": "gptq", "bits": 4}),
    "torch_dtype": ("float32", "bfloat16", "float16", None),
    "dtype": ("float32", "bfloat16", None),
    "pad_token_id": (0, 5, 299, -1, None),
    "bos_token_id": (1, 299, None, GONE),
    "eos_token_id": (2, [2, 5], [], None, GONE, 10**6),
    "use_cache": (True, False),
    "pretraining_tp": (1, 2),
    "is_causal": (True, False, None),
    "is_decoder": (True, False),
    "is_encoder_decoder": (False, True),
    "add_cross_attention": (False, True),
    "output_attentions": (False,),
    "output_hidden_states": (False, True),
    "chunk_size_feed_forward": (0, 4),
    "per_layer_config": (None, {}, {"1": {"hidden_size": 64}}, {"0": {"sliding_window": 8}}),
    "kv_sharing_modes": (None, ["own", "reuse"]),
    "transformers_weights": (None, "model.safetensors"),
    "architectures": (GONE, None, ["LlamaForCausalLM"], ["Qwen3ForCausalLM"], ["BertModel"]),
    "model_type": (GONE, "llama", "qwen2", "gemma"),
    "attn_logit_softcapping": (None, 50.0),
    "final_logit_softcapping": (None, 30.0),
    "logits_scaling": (1.0, 8.0),
    "logit_scale": (1.0, 0.5),
    "embedding_multiplier": (1.0, 12.0),
    "residual_multiplier": (1.0, 0.2),
    "attention_multiplier": (1.0, 0.1),
    "query_pre_attn_scalar": (256,),
    "qk_layernorm": (False, True),
    "use_qk_norm": (False, True),
    "clip_qkv": (None, 8.0),
    "num_experts": (0, 4),
    "no_rope_layers": (None, [0, 1]),
    "auto_map": ({"AutoModelForCausalLM": "modeling_x.X"},),
    "transformers_version": ("4.40.0", "5.0.0"),
}
"""Fields that transformers reads for these architectures, or for their relatives. Of a field's values the first are ordinary."""
ROPE: dict[str, tuple[Any, ...]] = {
    "factor": (1.0, 2, 4.0, 8.0, 0.5, None, 0, "4"),
    "original_max_position_embeddings": (64, 128, 512, 2048, None, 0, 64.0),
    "attention_factor": (1.0, 1.3, None, 1, 0, 0.0, -1.0),
    "mscale": (0.7, 1.0, None, 0, -1.0, 1),
    "mscale_all_dim": (0.4, 1.0, None, 0, -1.0, 1),
    "beta_fast": (32, 16.0, None, 0, 0.5, -1),
    "beta_slow": (1, 2.5, None, 0, 64, -1),
    "truncate": (True, False, None, 0),
    "low_freq_factor": (1.0, 1, 2.0, None, 0, 4.0),
    "high_freq_factor": (4.0, 4, 8.0, None, 1.0),
    "rope_theta": (1e4, 5e5, 123.5, 10000, None, 1.0, 0.5),
    "partial_rotary_factor": (1.0, 1, 0.5, None),
    "short_factor": ([1.0] * 8, [2.0] * 8, [1.0]),
    "long_factor": ([1.0] * 8, [4.0] * 8, None),
    "extrapolation_factor": (1.0,),
    "attn_factor": (1.0, 2.0),
    "finetuned": (True, False),
    "mrope_section": ([2, 3, 3], None),
}
KINDS: dict[str, tuple[str, ...]] = {
    "default": (),
    "linear": ("factor",),
    "dynamic": ("factor",),
    "yarn": ("factor", "original_max_position_embeddings"),
    "llama3": (
        *("factor", "low_freq_factor", "high_freq_factor"),
        "original_max_position_embeddings",
    ),
    "longrope": ("short_factor", "long_factor"),
    "proportional": (),
    "su": ("short_factor", "long_factor"),
    "ntk": ("factor",),
}
"""What each kind of scaling needs."""
USUAL_KINDS = ("default", "linear", "dynamic", "yarn", "yarn", "llama3")


@dataclass(frozen=True, slots=True)
class Case:
    """One random model; `changes` are of its config.json."""

    seed: int
    architecture: str
    form: str
    backend: str
    changes: Changes
    is_long: bool = False

    def __str__(self) -> str:
        shown = {
            key: "(left out)" if value is GONE else value for key, value in self.changes.items()
        }
        return f"seed {self.seed}: {self.architecture} {self.form} {self.backend} {shown}"


def draw_case(seed: int) -> Case:
    """The same for the same seed."""
    draw = random.Random(seed)
    architecture = draw.choice(ARCHITECTURES)
    changes: Changes = {}
    is_wild = draw.random() < 0.25
    for _ in range(draw.choice((0, 1, 1, 2, 3, 5))):
        name = draw.choice(list(FIELDS))
        changes[name] = draw.choice(WILD) if is_wild else _ordinary_first(draw, FIELDS[name])
    if draw.random() < 0.5:
        changes |= draw_rope(draw, is_wild=is_wild)
    is_long = draw.random() < 0.04
    if is_long:
        changes["max_position_embeddings"] = LONG_POSITIONS
    form = draw.choice(("safetensors", "safetensors", "sharded"))
    return Case(seed, architecture, form, draw.choice(("torch", "cpu")), changes, is_long)


def _ordinary_first(draw: random.Random, values: tuple[Any, ...]) -> Any:
    """Any, and the first ones more often than the last."""
    return values[min(draw.randrange(len(values)), draw.randrange(2 * len(values)))]


def draw_rope(draw: random.Random, *, is_wild: bool = False) -> Changes:
    """Rotary parameters in one of their spellings."""
    kind = draw.choice(USUAL_KINDS if draw.random() < 0.85 else tuple(KINDS))
    keys = [key for key in KINDS[kind] if draw.random() < 0.95]
    if draw.random() < 0.6:
        others = (
            "attention_factor",
            "mscale",
            "mscale_all_dim",
            "beta_fast",
            "beta_slow",
            "truncate",
        )
        pool = others if kind == "yarn" and draw.random() < 0.9 else tuple(ROPE)
        keys += draw.sample(pool, draw.choice((1, 2, 3)))
    rope: Changes = {key: _ordinary_first(draw, ROPE[key]) for key in keys}
    if is_wild and keys:
        rope[draw.choice(keys)] = draw.choice(WILD)
    name = draw.choice(("rope_scaling", "rope_parameters"))
    rope[draw.choice(("rope_type", "rope_type", "type"))] = kind
    if name == "rope_parameters" and draw.random() < 0.8:
        rope["rope_theta"] = draw.choice((1e4, 5e5))
    return {name: rope} if draw.random() < 0.95 else {name: rope, "rope_scaling": None}
