"""Small random models of every architecture, every form of file and many a field: the same greedy tokens as transformers,
or refused by name."""

from __future__ import annotations

import json
import warnings
from pathlib import Path
from typing import Any

import pytest
import torch

from engine.checkpoints.prepare import prepare
from tests.greedy import expected_tokens, generate, load, random_prompts
from tests.model_files import SCALES, write_gguf, write_tokenizer

with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    transformers = pytest.importorskip("transformers")

VOCAB = 300
SHAPE: dict[str, Any] = {
    "vocab_size": VOCAB,
    "hidden_size": 256,
    "intermediate_size": 256,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 512,
    "initializer_range": 0.2,
}
LLAMA3 = {
    "rope_type": "llama3",
    "rope_theta": 500000.0,
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 64,
}
YARN = {
    "rope_type": "yarn",
    "rope_theta": 10000.0,
    "factor": 4.0,
    "original_max_position_embeddings": 128,
}
LINEAR = {"rope_type": "linear", "rope_theta": 10000.0, "factor": 4.0}
DYNAMIC = {"rope_type": "dynamic", "rope_theta": 10000.0, "factor": 4.0}
Changes = dict[str, Any]
FIELDS: dict[str, list[Changes]] = {
    "Llama": [
        {},
        {"tie_word_embeddings": True},
        {"attention_bias": True},
        {"mlp_bias": True},
        {"head_dim": 32},
        {"num_key_value_heads": None},
        {"sliding_window": 512},
        {"rms_norm_eps": 0.1},
        {"hidden_act": "swish"},
        {"attention_dropout": 0.5},
        {"rope_parameters": LLAMA3},
        {"rope_parameters": YARN},
        {"rope_parameters": YARN | {"truncate": False, "beta_fast": 16, "attention_factor": 1.3}},
        {"rope_parameters": YARN | {"mscale": 0.7, "mscale_all_dim": 0.4}},
        {"rope_parameters": LINEAR},
        {"rope_parameters": DYNAMIC},
    ],
    "Mistral": [
        {},
        {"sliding_window": 24},
        {"sliding_window": None},
        {"head_dim": 32, "sliding_window": 24},
        {"attention_bias": True},
        {"rope_parameters": YARN},
    ],
    "Qwen2": [
        {},
        {"attention_bias": False},
        {"tie_word_embeddings": True},
        {"head_dim": 32},
        {"use_sliding_window": True, "max_window_layers": 2, "sliding_window": 8},
        {"use_sliding_window": True, "max_window_layers": 0, "sliding_window": 8},
        {"use_sliding_window": False, "max_window_layers": 0, "sliding_window": 8},
        {"use_sliding_window": True, "max_window_layers": 1, "sliding_window": 4096},
        {"layer_types": ["full_attention"] * 2, "use_sliding_window": True, "sliding_window": 8},
        {"layer_types": ["sliding_attention"] * 2, "use_sliding_window": True, "sliding_window": 8},
        {"rope_parameters": YARN},
    ],
    "Qwen3": [
        {},
        {"attention_bias": True},
        {"head_dim": 32},
        {"tie_word_embeddings": True},
        {"use_sliding_window": True, "max_window_layers": 0, "sliding_window": 8},
        {"use_sliding_window": True, "max_window_layers": 2, "sliding_window": 8},
        {"rope_parameters": LINEAR},
    ],
}
GRID = [(name, changes) for name, many in FIELDS.items() for changes in many]


def build(name: str, changes: Changes, seed: int = 1) -> Any:
    """A transformers model whose biases and norms matter."""
    torch.manual_seed(seed)
    config = getattr(transformers, f"{name}Config")(**(SHAPE | changes))
    config._attn_implementation = "eager"
    model = getattr(transformers, f"{name}ForCausalLM")(config).eval()
    for parameter_name, parameter in model.named_parameters():
        if parameter_name.endswith(("bias", "norm.weight")):
            torch.nn.init.normal_(parameter, mean=0.7, std=0.3)
    return model


def save(model: Any, directory: Path, **options: Any) -> None:
    model.save_pretrained(directory, **options)
    write_tokenizer(directory, VOCAB)


def served(source: Path, cache: Path, prompts: Any, num_output: int) -> Any:
    prepared = prepare(source, cache, "float32", lambda stage, fraction: None)
    return generate(load(prepared, "torch", None), prompts, num_output, chunk=29)


def check(source: Path, model: Any, cache: Path, lengths: tuple[int, ...], num_output: int) -> None:
    prompts = random_prompts(lengths, VOCAB)
    expected = [expected_tokens(model, prompt, num_output) for prompt in prompts]
    assert served(source, cache, prompts, num_output) == expected


@pytest.mark.parametrize(("name", "changes"), GRID, ids=lambda value: str(value)[:60])
def test_every_field_gives_the_tokens_of_transformers(
    tmp_path: Path, name: str, changes: Changes
) -> None:
    model = build(name, changes)
    save(model, tmp_path)
    check(tmp_path, model, tmp_path / "cache", (5, 40), 6)


@pytest.mark.parametrize("positions", [1, 2, 16])
def test_a_model_of_few_positions_starts_and_answers(tmp_path: Path, positions: int) -> None:
    model = build("Llama", {"max_position_embeddings": positions})
    save(model, tmp_path)
    check(tmp_path, model, tmp_path / "cache", (max(1, positions // 2),), max(1, positions // 2))


@pytest.mark.parametrize("name", FIELDS)
def test_a_field_that_is_left_out_has_the_default_of_its_architecture(
    tmp_path: Path, name: str
) -> None:
    model = build(name, {"num_attention_heads": 8, "num_key_value_heads": 8})
    save(model, tmp_path)
    path = tmp_path / "config.json"
    raw = json.loads(path.read_text())
    kept = {"architectures", "model_type", *SHAPE}
    path.write_text(json.dumps({key: value for key, value in raw.items() if key in kept}))
    check(
        tmp_path,
        transformers.AutoModelForCausalLM.from_pretrained(tmp_path),
        tmp_path / "cache",
        (40,),
        6,
    )


def test_a_sharded_checkpoint_is_the_same_model(tmp_path: Path) -> None:
    model = build("Qwen3", {})
    save(model, tmp_path, max_shard_size="300KB")
    assert not (tmp_path / "model.safetensors").exists()
    check(tmp_path, model, tmp_path / "cache", (5, 40), 6)


def test_tied_embeddings_that_differ_are_not_tied(tmp_path: Path) -> None:
    save(build("Llama", {}), tmp_path)
    path = tmp_path / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"tie_word_embeddings": True}))
    model = transformers.AutoModelForCausalLM.from_pretrained(tmp_path)
    check(tmp_path, model, tmp_path / "cache", (40,), 6)


GGUF_GRID = [
    ("Llama", {}),
    ("Llama", {"attention_bias": True, "mlp_bias": True}),
    ("Llama", {"rope_parameters": LLAMA3}),
    ("Llama", {"rope_parameters": LINEAR}),
    ("Llama", {"rope_parameters": YARN}),
    ("Llama", {"tie_word_embeddings": True}),
    ("Mistral", {"sliding_window": None}),
    ("Qwen2", {}),
    ("Qwen3", {"head_dim": 32}),
]


@pytest.mark.parametrize(("name", "changes"), GGUF_GRID, ids=lambda value: str(value)[:60])
def test_gguf_gives_the_tokens_of_transformers(tmp_path: Path, name: str, changes: Changes) -> None:
    model = build(name, changes)
    write_gguf(tmp_path / "model.gguf", model)
    check(tmp_path / "model.gguf", model, tmp_path / "cache", (5, 40), 6)


FEW_QUANTIZED = {("Llama", "Q8_0"), ("Qwen2", "Q4_K"), ("Qwen3", "Q6_K"), ("Mistral", "F16")}


@pytest.mark.parametrize(
    ("name", "quantize"),
    [
        pytest.param(name, kind, marks=[] if (name, kind) in FEW_QUANTIZED else [pytest.mark.slow])
        for name in FIELDS
        for kind in ("F16", *SCALES)
    ],
)
def test_quantized_gguf_gives_the_tokens_of_transformers(
    tmp_path: Path, name: str, quantize: str
) -> None:
    changes: Changes = {"sliding_window": None} if name == "Mistral" else {}
    model = build(name, changes | ({"head_dim": 64} if name == "Qwen3" else {}))
    model.load_state_dict(write_gguf(tmp_path / "model.gguf", model, quantize))
    check(tmp_path / "model.gguf", model, tmp_path / "cache", (5, 40), 6)


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize(("name", "changes"), GRID, ids=lambda value: str(value)[:60])
def test_long_sequences_of_other_weights(
    tmp_path: Path, name: str, changes: Changes, seed: int
) -> None:
    model = build(name, changes, seed + 10)
    save(model, tmp_path)
    check(tmp_path, model, tmp_path / "cache", (1, 63, 300), 32)
