"""What each field of a config.json means: the defaults of transformers' classes, and refusals that name the field."""

from __future__ import annotations

import warnings
from typing import Any

import pytest
import torch

from engine.checkpoints.fields import Fields, parse_object
from engine.checkpoints.hugging_face_config import ARCHITECTURES, DEFAULT_EOS, parse_config
from engine.model.rope import inverse_frequencies
from protocol.errors import ConfigError
from protocol.model_config import ModelConfig, RopeScaling

with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    transformers = pytest.importorskip("transformers")

SMALL: dict[str, Any] = {
    "architectures": ["LlamaForCausalLM"],
    "vocab_size": 32,
    "hidden_size": 64,
    "intermediate_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 128,
}
LLAMA3 = {
    "rope_type": "llama3",
    "rope_theta": 500000.0,
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 8192,
}
YARN = {"rope_type": "yarn", "factor": 4.0}
ORIGINAL = "original_max_position_embeddings"


def parse(**changes: Any) -> ModelConfig:
    return parse_config(SMALL | changes)


def of(architecture: str, **changes: Any) -> ModelConfig:
    return parse(architectures=[f"{architecture}ForCausalLM"], **changes)


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_defaults_are_those_of_the_class_in_transformers(name: str) -> None:
    theirs = getattr(transformers, name.replace("ForCausalLM", "Config"))()
    ours = parse_config({"architectures": [name]})
    for field in ("vocab_size", "hidden_size", "intermediate_size", "rms_norm_eps"):
        assert getattr(ours, field) == getattr(theirs, field)
    assert ours.num_layers == theirs.num_hidden_layers
    assert ours.num_heads == theirs.num_attention_heads
    assert ours.num_kv_heads == theirs.num_key_value_heads
    hidden_share = theirs.hidden_size // theirs.num_attention_heads
    assert ours.head_dim == getattr(theirs, "head_dim", hidden_share)
    assert ours.max_position_embeddings == theirs.max_position_embeddings
    assert ours.rope_theta == theirs.rope_parameters["rope_theta"]
    assert ours.tie_word_embeddings == theirs.tie_word_embeddings
    windowed = "sliding_attention" in getattr(theirs, "layer_types", []) or name.startswith(
        "Mistral"
    )
    assert ours.sliding_window == (theirs.sliding_window if windowed else None)
    assert DEFAULT_EOS.get(ours.family) == theirs.eos_token_id


def test_an_architecture_may_be_named_by_its_type_alone() -> None:
    raw = {key: value for key, value in SMALL.items() if key != "architectures"}
    assert parse_config(raw | {"model_type": "qwen3"}).family == "qwen3"


def test_rope_in_either_spelling() -> None:
    old = parse(rope_theta=5e5, rope_scaling={"type": "linear", "factor": 4.0})
    new = parse(rope_parameters={"rope_type": "linear", "rope_theta": 5e5, "factor": 4.0})
    assert (old.rope_theta, old.rope_scaling) == (new.rope_theta, new.rope_scaling)
    assert old.rope_scaling == RopeScaling(kind="linear", factor=4.0)


def test_the_older_spelling_comes_first_as_in_transformers() -> None:
    both = {
        "rope_scaling": {"rope_type": "linear", "factor": 2.0},
        "rope_parameters": {"rope_type": "linear", "factor": 4.0, "rope_theta": 7.0},
    }
    assert (parse(**both).rope_scaling.factor, parse(**both).rope_theta) == (2.0, 10000.0)


@pytest.mark.parametrize(
    "rope",
    [
        {"rope_type": "default", "rope_theta": 12345.0},
        {"rope_type": "default", "factor": 8.0},
        {"rope_type": "linear", "factor": 3},
        {"rope_type": "dynamic", "factor": 3.0},
        LLAMA3,
        {"rope_type": "yarn", "factor": 4.0},
        {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 32},
        {"rope_type": "yarn", "factor": 4.0, "truncate": False, "beta_fast": 20, "beta_slow": 2},
        {"rope_type": "yarn", "factor": None, "original_max_position_embeddings": 32},
        {"rope_type": "yarn", "factor": 0.5, "attention_factor": 1.25},
        {"rope_type": "yarn", "factor": 8.0, "mscale": 0.7, "mscale_all_dim": 1.1},
        {"rope_type": "yarn", "factor": 4.0, "truncate": None, "beta_fast": None, "beta_slow": 0},
        {"rope_type": "yarn", "factor": 4.0, "attention_factor": None, "mscale": None},
        {"rope_type": "default", "factor": None, "original_max_position_embeddings": None},
    ],
    ids=str,
)
def test_frequencies_are_those_of_transformers(rope: dict[str, Any]) -> None:
    changes: dict[str, Any] = {"head_dim": 64, "rope_theta": 10000.0, "rope_scaling": rope}
    ours = parse(**changes)
    theirs = transformers.LlamaConfig(**{**SMALL, **changes, "rope_scaling": dict(rope)})
    table = transformers.models.llama.modeling_llama.LlamaRotaryEmbedding(theirs)
    torch.testing.assert_close(inverse_frequencies(ours), table.inv_freq, rtol=0, atol=1e-9)
    assert ours.rope_scaling.attention_factor == pytest.approx(table.attention_scaling)


def test_exact_divisors_are_what_llama3_scaling_comes_to() -> None:
    scaled = parse(head_dim=64, rope_parameters=LLAMA3)
    plain = inverse_frequencies(parse(head_dim=64, rope_theta=500000.0))
    divisors = (plain / inverse_frequencies(scaled)).tolist()
    exact = RopeScaling(kind="divisors", divisors=tuple(divisors))
    changed = parse(head_dim=64, rope_theta=500000.0).__class__
    fields = {name: getattr(scaled, name) for name in changed.__struct_fields__}
    found = inverse_frequencies(changed(**(fields | {"rope_scaling": exact})))
    torch.testing.assert_close(found, inverse_frequencies(scaled), rtol=1e-6, atol=0)


def test_windows() -> None:
    assert of("Mistral", sliding_window=64).sliding_window == 64
    assert of("Mistral", sliding_window=None).sliding_window is None
    assert of("Mistral", max_position_embeddings=8192).sliding_window == 4096
    assert of("Mistral").sliding_window is None  # 4096 is more than the model has positions
    assert of("Qwen2", sliding_window=64, use_sliding_window=False).sliding_window is None
    assert of("Qwen2", sliding_window=64, use_sliding_window=True).sliding_window is None
    windowed = of("Qwen3", sliding_window=64, use_sliding_window=True, max_window_layers=0)
    assert windowed.sliding_window == 64


def test_layers_by_the_name_of_old_are_layers_without_a_window() -> None:
    kinds = {"layer_types": ["attention", "full_attention"]}
    for name in ("Qwen2", "Qwen3"):
        config = of(name, use_sliding_window=True, sliding_window=8, **kinds)
        theirs = getattr(transformers, f"{name}Config")(**(SMALL | kinds))
        assert config.sliding_window is None
        assert set(theirs.layer_types) == {"full_attention"}


def test_biases() -> None:
    for value in (True, False):
        qwen2, mistral = of("Qwen2", attention_bias=value), of("Mistral", attention_bias=value)
        assert (qwen2.attention_bias, qwen2.output_bias) == (True, False)
        assert (mistral.attention_bias, mistral.output_bias) == (False, False)
        for name in ("Llama", "Qwen3"):
            config = of(name, attention_bias=value)
            assert (config.attention_bias, config.output_bias) == (value, value)
        assert of("Llama", mlp_bias=value).mlp_bias == value
        assert not of("Qwen3", mlp_bias=value).mlp_bias


def test_ends_are_one_or_several_and_minus_one_is_none() -> None:
    assert parse(eos_token_id=[7, 8, 7]).eos_token_ids == (7, 8)
    assert parse(eos_token_id=-1).eos_token_ids == ()
    assert parse(eos_token_id=None).eos_token_ids == ()


WRONG: list[tuple[dict[str, Any], str]] = [
    ({"architectures": ["BertModel"]}, "architectures"),
    ({"architectures": []}, "architectures"),
    ({"architectures": "LlamaForCausalLM"}, "architectures"),
    ({"architectures": [["LlamaForCausalLM"]]}, "architectures"),
    ({"architectures": ["LlamaForCausalLM", "MistralForCausalLM"]}, "architectures"),
    ({"model_type": "mistral"}, "model_type"),
    ({"hidden_act": "gelu"}, "hidden_act"),
    ({"hidden_act": ["silu"]}, "hidden_act"),
    ({"quantization_config": {"quant_method": "awq"}}, "quantization_config"),
    ({"quantization_config": "awq"}, "quantization_config"),
    ({"compression_config": {"x": 1}}, "compression_config"),
    ({"is_causal": False}, "is_causal"),
    ({"is_encoder_decoder": True}, "is_encoder_decoder"),
    ({"per_layer_config": {"0": {}}}, "per_layer_config"),
    ({"rope_scaling": {"rope_type": "longrope", "factor": 2.0}}, "rope_type"),
    ({"rope_scaling": {"rope_type": "linear"}}, "factor"),
    ({"rope_scaling": {"rope_type": "linear", "factor": 0}}, "factor"),
    ({"rope_scaling": {"rope_type": "linear", "factor": None}}, "factor"),
    ({"rope_scaling": {"rope_type": "dynamic"}}, "factor"),
    ({"rope_scaling": {"rope_type": "dynamic", "factor": "4"}}, "factor"),
    ({"rope_scaling": {"rope_type": "yarn"}}, "factor"),
    ({"rope_scaling": {"rope_type": None, "type": "linear", "factor": 2.0}}, "rope_type"),
    ({"rope_scaling": YARN | {"original_max_position_embeddings": None}}, ORIGINAL),
    ({"rope_scaling": YARN, ORIGINAL: None}, ORIGINAL),
    ({"rope_scaling": YARN | {"rope_theta": None}}, "rope_theta"),
    ({"rope_scaling": {"rope_type": "linear", "factor": "4"}}, "factor"),
    ({"rope_scaling": {"rope_type": ["linear"]}}, "rope_type"),
    ({"rope_scaling": [4.0]}, "rope_scaling"),
    ({"rope_parameters": {"mrope_section": [1, 2]}}, "mrope_section"),
    ({"rope_parameters": {"full_attention": {"rope_type": "default"}}}, "full_attention"),
    ({"rope_scaling": LLAMA3 | {"low_freq_factor": 4.0}}, "high_freq_factor"),
    ({"rope_scaling": {"rope_type": "llama3", "factor": 8.0}}, "low_freq_factor"),
    ({"rope_theta": None}, "rope_theta"),
    ({"rope_theta": -1.0}, "rope_theta"),
    ({"rope_theta": float("inf")}, "rope_theta"),
    ({"partial_rotary_factor": 0.5}, "partial_rotary_factor"),
    ({"hidden_size": "64"}, "hidden_size"),
    ({"hidden_size": 64.0}, "hidden_size"),
    ({"hidden_size": True}, "hidden_size"),
    ({"hidden_size": None}, "hidden_size"),
    ({"hidden_size": 66}, "hidden_size"),
    ({"num_hidden_layers": 1e9}, "num_hidden_layers"),
    ({"num_hidden_layers": 10**9}, "num_hidden_layers"),
    ({"num_hidden_layers": 10**5000}, "num_hidden_layers"),
    ({"num_attention_heads": 0}, "num_attention_heads"),
    ({"num_key_value_heads": 0}, "num_key_value_heads"),
    ({"num_key_value_heads": 3}, "num_key_value_heads"),
    ({"head_dim": 0}, "head_dim"),
    ({"head_dim": 33}, "head_dim"),
    ({"vocab_size": -1}, "vocab_size"),
    ({"rms_norm_eps": float("nan")}, "rms_norm_eps"),
    ({"rms_norm_eps": -1e-5}, "rms_norm_eps"),
    ({"rms_norm_eps": 10**400}, "rms_norm_eps"),
    ({"tie_word_embeddings": "yes"}, "tie_word_embeddings"),
    ({"attention_bias": 1}, "attention_bias"),
    ({"eos_token_id": "2"}, "eos_token_id"),
    ({"eos_token_id": [2, None]}, "eos_token_id"),
    ({"eos_token_id": True}, "eos_token_id"),
    ({"sliding_window": 8}, "sliding_window"),
    ({"attention_chunk_size": 8}, "attention_chunk_size"),
    ({"layer_types": ["sliding_attention"] * 2}, "layer_types"),
    ({"transformers_weights": "other.safetensors"}, "transformers_weights"),
    ({"kv_sharing_modes": ["own", "reuse"]}, "kv_sharing_modes"),
]


@pytest.mark.parametrize(
    ("changes", "named"),
    WRONG,
    ids=lambda value: str(value) if isinstance(value, str) else "-".join(value),
)
def test_what_is_not_supported_is_named(changes: dict[str, Any], named: str) -> None:
    with pytest.raises(ConfigError, match=f"config.json: .*`.*{named}`") as caught:
        parse(**changes)
    assert len(str(caught.value)) < 400


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        (
            {"use_sliding_window": True, "sliding_window": 8, "max_window_layers": 1},
            "max_window_layers",
        ),
        ({"use_sliding_window": True, "sliding_window": 0}, "sliding_window"),
        ({"layer_types": ["full_attention", "sliding_attention"]}, "layer_types"),
        ({"layer_types": ["full_attention"]}, "layer_types"),
        ({"layer_types": "full_attention"}, "layer_types"),
    ],
    ids=str,
)
def test_windows_of_some_layers_are_named(changes: dict[str, Any], named: str) -> None:
    for name in ("Qwen2", "Qwen3"):
        with pytest.raises(ConfigError, match=named):
            of(name, **changes)


def test_a_null_head_dim_is_the_share_of_a_head_except_for_qwen3() -> None:
    assert of("Llama", head_dim=None).head_dim == 16
    assert of("Qwen2", head_dim=None).head_dim == 16
    assert of("Qwen3").head_dim == 128
    with pytest.raises(ConfigError, match="head_dim"):
        of("Qwen3", head_dim=None)


def test_a_value_is_cut_short_in_a_sentence() -> None:
    with pytest.raises(ConfigError) as caught:
        Fields({"x": "a" * 10**7}, "file").integer("x")
    assert len(str(caught.value)) < 250


@pytest.mark.parametrize(
    "raw",
    [
        b"",
        b"\xff\xfe",
        b"[]",
        b"{",
        b'{"a": 1, "a": 2}',
        b"[" * 100_000,
        b'{"a":' * 100_000,
        b'{"a": ' + b"9" * 10_000 + b"}",
        b'{"a": "' + b"x" * 10**6,
    ],
    ids=lambda raw: str(raw[:12]),
)
def test_what_is_no_json_object_is_one_sentence(raw: bytes) -> None:
    with pytest.raises(ConfigError, match="the file") as caught:
        parse_object(raw, "the file")
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 250
