"""Everything here needs an NVIDIA GPU."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from tokenizers import Tokenizer, decoders, models, pre_tokenizers

VOCAB = 384
SHAPE = {
    "vocab_size": VOCAB,
    "hidden_size": 256,
    "intermediate_size": 512,
    "num_hidden_layers": 3,
    "num_attention_heads": 8,
    "num_key_value_heads": 2,
    "max_position_embeddings": 1024,
    "head_dim": 64,
}
MODELS: dict[str, tuple[str, dict[str, Any]]] = {
    "llama": ("Llama", {"tie_word_embeddings": True}),
    "llama-128": ("Llama", {"head_dim": 128}),
    "mistral": ("Mistral", {"sliding_window": 40}),
    "qwen2": ("Qwen2", {"head_dim": None, "num_attention_heads": 4}),
    "qwen3": ("Qwen3", {"head_dim": 128}),
}


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    here = Path(__file__).parent
    for item in items:
        if here in item.path.parents:
            item.add_marker(pytest.mark.gpu)
            if not torch.cuda.is_available():
                item.add_marker(pytest.mark.skip(reason="no CUDA device"))


def write_model(name: str, directory: Path) -> Any:
    """A small Hugging Face model with random weights and a byte-level tokenizer."""
    torch.manual_seed(1)
    kind, changes = MODELS[name]
    shape = {key: value for key, value in (SHAPE | changes).items() if value is not None}
    model = getattr(transformers, f"{kind}ForCausalLM")(
        getattr(transformers, f"{kind}Config")(**shape)
    ).eval()
    for parameter_name, parameter in model.named_parameters():
        if parameter_name.endswith(("bias", "norm.weight")):
            torch.nn.init.normal_(parameter, mean=0.7, std=0.3)
    model.save_pretrained(directory)
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    words = {word: index for index, word in enumerate(["<|im_end|>", "<|im_start|>", *alphabet])}
    tokenizer = Tokenizer(models.BPE(words, []))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.save(str(directory / "tokenizer.json"))
    settings = {"eos_token": "<|im_end|>", "bos_token": "<|im_start|>"}
    (directory / "tokenizer_config.json").write_text(json.dumps(settings), encoding="utf-8")
    return model


@pytest.fixture(scope="session", params=MODELS)
def family(request: Any, tmp_path_factory: Any) -> tuple[Any, Path]:
    """(transformers model in float32, its directory)."""
    directory = tmp_path_factory.mktemp(request.param)
    return write_model(request.param, directory), directory


@pytest.fixture(scope="session")
def small_model(tmp_path_factory: Any) -> Path:
    directory: Path = tmp_path_factory.mktemp("small")
    write_model("llama", directory)
    return directory
