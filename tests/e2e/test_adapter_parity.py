"""The engine's adapters against PEFT in transformers: merged weights, same logits, same greedy tokens."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import torch

from engine.adapters.content import map_content
from engine.adapters.prepare import prepare_adapter
from engine.checkpoints.prepare import prepare
from engine.checkpoints.prepared import read_manifest
from engine.kv.block_pool import BlockPool
from engine.kv.sequence import Scheduled
from tests.adapter_files import merged, write_adapter
from tests.e2e.test_engine_parity import SHAPE
from tests.greedy import expected_tokens, load, new_sequence, random_prompts
from tests.model_files import write_tokenizer

transformers = pytest.importorskip("transformers")

pytestmark = [pytest.mark.e2e, pytest.mark.slow, pytest.mark.xdist_group("models")]

FAMILIES: dict[str, tuple[str, dict[str, Any]]] = {
    "llama-biased": ("Llama", {"attention_bias": True, "mlp_bias": True}),
    "qwen3": ("Qwen3", {"head_dim": 64, "num_hidden_layers": 4}),
}
ADAPTERS: dict[str, dict[str, Any]] = {
    "all": {},
    "rank64": {"r": 64, "lora_alpha": 32, "use_rslora": True},
    "list": {"r": 3, "target_modules": ["q_proj", "v_proj", "down_proj"]},
    "regex": {"r": 17, "target_modules": r".*\.(1|2)\.(self_attn\.(k|o)_proj|mlp\.up_proj)"},
    "patterns": {
        "rank_pattern": {"q_proj": 4, r"layers\.1\..*down_proj": 33},
        "alpha_pattern": {"gate_proj": 1, r"layers.0.self_attn.q_proj": 64},
    },
    "layers": {"target_modules": ["o_proj", "gate_proj"], "layers_to_transform": [0, 2]},
    "excluded": {"exclude_modules": ["k_proj", "up_proj"]},
}
MAX_RANK = 64


class Family:
    """A small model, its prepared directory, its adapters, and each merged by PEFT; "" is none."""

    def __init__(self, name: str, directory: Path) -> None:
        torch.manual_seed(1)
        torch.set_num_threads(1)
        kind, changes = FAMILIES[name]
        config = getattr(transformers, f"{kind}Config")(**(SHAPE | changes))
        config._attn_implementation = "eager"
        self.model = getattr(transformers, f"{kind}ForCausalLM")(config).eval()
        self.model.save_pretrained(directory / "model")
        write_tokenizer(directory / "model", 300)
        self.prepared = prepare(
            directory / "model", directory / "cache", "float32", lambda *_: None
        )
        self.contents: dict[str, Any] = {"": None}
        self.merged: dict[str, Any] = {"": self.model}
        config = read_manifest(self.prepared).config
        for seed, (adapter, how) in enumerate(ADAPTERS.items()):
            source = write_adapter(copy.deepcopy(self.model), directory / adapter, seed, **how)
            digest = prepare_adapter(source, directory / "kept", config, "float32", MAX_RANK)
            self.contents[adapter] = map_content(directory / "kept", digest)
            self.merged[adapter] = merged(lambda: copy.deepcopy(self.model), source)


@pytest.fixture(scope="module", params=FAMILIES)
def family(request: Any, tmp_path_factory: Any) -> Family:
    return Family(request.param, tmp_path_factory.mktemp(request.param))


@pytest.fixture(scope="session")
def kernel_cache(tmp_path_factory: Any) -> Any:
    return tmp_path_factory.mktemp("kernels")


@pytest.mark.parametrize("backend", ["torch", "cpu", "plain"])
def test_every_adapter_in_one_batch_writes_what_its_merged_model_writes(
    family: Family, backend: str, kernel_cache: Path
) -> None:
    runner = load(
        family.prepared,
        "cpu" if backend == "plain" else backend,
        None if backend == "plain" else kernel_cache,
    )
    pool, num_output = BlockPool(runner.kv_memory.num_blocks), 12
    sequences, expected = [], []
    for adapter, prompt in zip(
        family.contents, random_prompts([1, 16, 33, 7, 20, 3, 40, 12], 300), strict=True
    ):
        sequence = new_sequence(pool, prompt, num_output)
        sequence.adapter = family.contents[adapter]
        sequences.append(sequence)
        expected.append(expected_tokens(family.merged[adapter], prompt, num_output))
    while live := [one for one in sequences if one.num_output_tokens < num_output]:
        batch = [Scheduled(one, min(13, one.num_tokens - one.num_computed_tokens)) for one in live]
        for entry, token in zip(batch, runner.execute(batch), strict=True):
            entry.sequence.num_computed_tokens += entry.num_tokens
            if token is not None:
                entry.sequence.append(token)
    found = [list(one.output_token_ids) for one in sequences]
    assert found == expected
    assert len({tuple(tokens) for tokens in found}) > 1


@pytest.mark.parametrize("adapter", ADAPTERS)
def test_logits_equal_those_of_the_merged_model(
    family: Family, adapter: str, kernel_cache: Path
) -> None:
    runner = load(family.prepared, "cpu", kernel_cache)
    (prompt,) = random_prompts([41], 300)
    sequence = new_sequence(BlockPool(64), prompt, 1)
    sequence.adapter = family.contents[adapter]
    with torch.inference_mode():
        expected = family.merged[adapter](torch.tensor([prompt])).logits[0, -1]
        base = family.model(torch.tensor([prompt])).logits[0, -1]
    (found,) = runner.logits([Scheduled(sequence, len(prompt))])
    torch.testing.assert_close(found, expected, atol=2e-3, rtol=2e-3)
    assert not torch.allclose(expected, base, atol=0.1)
