"""What a config.json means. Owns the architectures, their defaults and the fields each reads; torch-free.

A field that transformers reads for the architecture is used here, has no effect on a greedy answer, or is refused
by name. What transformers does not read for it has no effect there, and has none here: `attention_bias` of a Qwen2.
A field that is not there has the default of the architecture, not of its relatives.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

from engine.checkpoints.config_types import check_types
from engine.checkpoints.fields import MAX_INTEGER, Fields, shown
from engine.checkpoints.rope_fields import read_rope
from protocol.model_config import ModelConfig

if TYPE_CHECKING:
    from collections.abc import Mapping

Family = Literal["llama", "qwen2", "qwen3"]
MAX_LAYERS = 4096
MAX_HEADS = 65_536


@dataclass(frozen=True, slots=True)
class Architecture:
    """One of transformers' classes. `head_dim` None is hidden_size / num_attention_heads."""

    model_type: str
    family: Family
    sizes: Mapping[str, int]
    head_dim: int | None = None
    window: Literal["none", "all layers", "some layers"] = "none"
    reads_attention_bias: bool = False
    reads_mlp_bias: bool = False


def _sizes(vocabulary: int, inner: int, positions: int, kv_heads: int) -> dict[str, int]:
    return {
        "vocab_size": vocabulary,
        "hidden_size": 4096,
        "intermediate_size": inner,
        "num_hidden_layers": 32,
        "num_attention_heads": 32,
        "num_key_value_heads": kv_heads,
        "max_position_embeddings": positions,
    }


SAME_AS_HEADS = 0
"""As a default of num_key_value_heads."""
ARCHITECTURES: dict[str, Architecture] = {
    "LlamaForCausalLM": Architecture(
        "llama",
        "llama",
        _sizes(32_000, 11_008, 2048, SAME_AS_HEADS),
        reads_attention_bias=True,
        reads_mlp_bias=True,
    ),
    "MistralForCausalLM": Architecture(
        "mistral", "llama", _sizes(32_000, 14_336, 4096 * 32, 8), window="all layers"
    ),
    "Qwen2ForCausalLM": Architecture(
        "qwen2", "qwen2", _sizes(151_936, 22_016, 32_768, 32), window="some layers"
    ),
    "Qwen3ForCausalLM": Architecture(
        "qwen3",
        "qwen3",
        _sizes(151_936, 22_016, 32_768, 32),
        head_dim=128,
        window="some layers",
        reads_attention_bias=True,
    ),
}
DEFAULT_EOS = {"llama": 2}
"""By family; transformers' other configurations name none."""
_DEFAULT_WINDOW, _DEFAULT_WINDOW_LAYERS = 4096, 28
_SILU = ("silu", "swish")
_FULL, _SLIDING = "full_attention", "sliding_attention"
_FULL_OF_OLD = "attention"
_KINDS = frozenset({_FULL, _SLIDING, _FULL_OF_OLD})
_OTHER_WEIGHTS = "transformers_weights"
WEIGHT_FILES = ("model.safetensors", "model.safetensors.index.json")
_KV_HEADS = "num_key_value_heads"
_MOST = {"num_hidden_layers": MAX_LAYERS, "num_attention_heads": MAX_HEADS}


def parse_config(raw: Mapping[str, Any], where: str = "config.json") -> ModelConfig:
    """ModelConfig of a config.json; its ends of sequence are only those that the file names."""
    fields = Fields(raw, where)
    architecture = _architecture(fields)
    check_types(fields)
    _check_supported(fields)
    sizes = {
        name: fields.integer(name, default, most=_MOST.get(name, MAX_INTEGER))
        for name, default in architecture.sizes.items()
        if name != _KV_HEADS
    }
    num_heads, positions = sizes["num_attention_heads"], sizes["max_position_embeddings"]
    theta, scaling = read_rope(fields, positions)
    bias = architecture.reads_attention_bias and fields.flag("attention_bias", default=False)
    return ModelConfig(
        family=architecture.family,
        vocab_size=sizes["vocab_size"],
        hidden_size=sizes["hidden_size"],
        intermediate_size=sizes["intermediate_size"],
        num_layers=sizes["num_hidden_layers"],
        num_heads=num_heads,
        num_kv_heads=_kv_heads(fields, architecture, num_heads),
        head_dim=_head_dim(fields, architecture, sizes["hidden_size"], num_heads),
        rms_norm_eps=fields.number("rms_norm_eps", 1e-6),
        rope_theta=theta,
        rope_scaling=scaling,
        max_position_embeddings=positions,
        tie_word_embeddings=fields.flag("tie_word_embeddings", default=False),
        attention_bias=bias or architecture.family == "qwen2",
        output_bias=bias,
        mlp_bias=architecture.reads_mlp_bias and fields.flag("mlp_bias", default=False),
        eos_token_ids=fields.token_ids("eos_token_id"),
        bos_token_id=next(iter(fields.token_ids("bos_token_id")), None),
        sliding_window=_window(fields, architecture, sizes["num_hidden_layers"], positions),
    )


def _architecture(fields: Fields) -> Architecture:
    named = fields.values.get("architectures")
    model_type = fields.values.get("model_type")
    if not named:
        by_type = {known.model_type: name for name, known in ARCHITECTURES.items()}
        named = [by_type.get(model_type)] if isinstance(model_type, str) else None
    if (
        not isinstance(named, list)
        or not isinstance(named[0], str)
        or len(set(map(str, named))) > 1
    ):
        fields.refuse("architectures", f"must name one architecture, not {shown(named)}")
    architecture = ARCHITECTURES.get(named[0])
    if architecture is None:
        supported = ", ".join(ARCHITECTURES)
        fields.refuse(
            "architectures",
            f"names {shown(named[0])}, which is not supported; supported: {supported}",
        )
    if model_type not in (None, architecture.model_type):
        fields.refuse("model_type", f"{shown(model_type)} contradicts architectures {named[0]}")
    return architecture


def _check_supported(fields: Fields) -> None:
    activation = fields.values.get("hidden_act", "silu")
    if activation not in _SILU:
        fields.refuse("hidden_act", f"{shown(activation)} is not supported; supported: silu")
    for name in ("quantization_config", "compression_config"):
        if fields.values.get(name):
            method = fields.values[name]
            shown_method = shown(method.get("quant_method") if isinstance(method, dict) else method)
            fields.refuse(
                name,
                f"{shown_method} is not supported; use unquantized safetensors or a GGUF file",
            )
    for name, neutral in (("is_causal", True), ("is_encoder_decoder", False)):
        if fields.values.get(name, neutral) not in (neutral, None):
            fields.refuse(name, f"is supported as {str(neutral).lower()} only")
    if fields.values.get(_OTHER_WEIGHTS) not in (None, *WEIGHT_FILES):
        fields.refuse(_OTHER_WEIGHTS, f"is supported as {WEIGHT_FILES[0]} only")
    for name in ("per_layer_config", "kv_sharing_modes"):
        if fields.values.get(name):
            fields.refuse(name, "is not supported: layers must be alike")


def _kv_heads(fields: Fields, architecture: Architecture, num_heads: int) -> int:
    default = architecture.sizes[_KV_HEADS] or num_heads
    if _KV_HEADS in fields.values and not fields.has(_KV_HEADS):  # null: as many
        return num_heads
    num_kv_heads = fields.integer(_KV_HEADS, default, most=MAX_HEADS)
    if num_heads % num_kv_heads:
        fields.refuse(_KV_HEADS, f"{num_kv_heads} must divide num_attention_heads {num_heads}")
    return num_kv_heads


def _head_dim(fields: Fields, architecture: Architecture, hidden: int, num_heads: int) -> int:
    derived = architecture.head_dim is None
    if derived and not fields.has("head_dim"):
        if hidden % num_heads:
            fields.refuse("hidden_size", f"{hidden} must be a multiple of {num_heads} heads")
        head_dim = hidden // num_heads
    else:
        head_dim = fields.integer("head_dim", architecture.head_dim, most=MAX_HEADS)
    if head_dim % 2:
        fields.refuse("head_dim", f"must be even, not {head_dim}")
    return head_dim


def _window(
    fields: Fields, architecture: Architecture, num_layers: int, positions: int
) -> int | None:
    """The window of every layer, None for no window; ConfigError where only some layers have one."""
    window = _given_window(fields, architecture, positions)
    kinds, name = _given_kinds(fields, num_layers), "layer_types"
    if window is not None and window >= positions:
        return None  # no sequence is so long that it would notice
    if kinds is None:
        if architecture.window != "some layers" or window is None:
            return window
        name = "max_window_layers"
        first = min(fields.integer(name, _DEFAULT_WINDOW_LAYERS, least=0), num_layers)
        kinds = [_FULL] * first + [_SLIDING] * (num_layers - first)
    kinds = [_FULL if kind == _FULL_OF_OLD else kind for kind in kinds]
    if architecture.window == "some layers" and all(kind == _FULL for kind in kinds):
        return None
    if not all(kind == (_FULL if window is None else _SLIDING) for kind in kinds):
        fields.refuse(name, "gives a window to some layers only, which is not supported")
    return window


def _given_kinds(fields: Fields, num_layers: int) -> list[str] | None:
    kinds: list[Any] | None = fields.values.get("layer_types")
    if kinds is None:
        return None
    if len(kinds) != num_layers or not all(
        isinstance(kind, str) and kind in _KINDS for kind in kinds
    ):
        told = f"must name the kind of each of {num_layers} layers, not {shown(kinds)}"
        fields.refuse("layer_types", told)
    return kinds


def _given_window(fields: Fields, architecture: Architecture, positions: int) -> int | None:
    """`sliding_window` where transformers reads it for this architecture.

    A Llama's attention does not read it, but its key-value cache does: prompt and answer would see other contexts.
    """
    if fields.has("attention_chunk_size"):
        fields.refuse("attention_chunk_size", "is not supported")
    if architecture.window == "none":
        if not fields.has("sliding_window") or fields.integer("sliding_window") >= positions:
            return None
        fields.refuse(
            "sliding_window",
            f"below max_position_embeddings {positions} has no meaning for this architecture; "
            "remove it, or name the architecture that has one",
        )
    if architecture.window == "some layers" and not fields.flag(
        "use_sliding_window", default=False
    ):
        return None
    if fields.values.get("sliding_window", _DEFAULT_WINDOW) is None:
        return None
    return fields.integer("sliding_window", _DEFAULT_WINDOW)
