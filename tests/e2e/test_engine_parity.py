"""The engine against Hugging Face transformers: same weights, same logits, same greedy tokens."""

from __future__ import annotations

import json
import warnings
from pathlib import Path
from typing import Any

import pytest
import torch

from deploy.config.topology import cache_directory
from engine.checkpoints.embedded import fetch_embedded
from engine.checkpoints.prepare import prepare
from engine.checkpoints.prepared import read_manifest
from engine.kv.block_pool import BlockPool
from engine.kv.sequence import Scheduled
from engine.model.ragged_batch import ragged_batch
from engine.model.weights import MappedWeights
from protocol.errors import InternalError
from tests.e2e.reference import first_difference
from tests.greedy import expected_tokens, generate, load, new_sequence, random_prompts
from tests.model_files import write_tokenizer

with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    transformers = pytest.importorskip("transformers")

pytestmark = [pytest.mark.e2e, pytest.mark.slow, pytest.mark.xdist_group("engine")]

SHAPE: dict[str, Any] = {
    "vocab_size": 300,
    "hidden_size": 128,
    "intermediate_size": 256,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 512,
    "initializer_range": 0.3,
}
LLAMA3 = {
    "rope_type": "llama3",
    "rope_theta": 500000.0,
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 64,
}
MODELS: dict[str, tuple[str, dict[str, Any]]] = {
    "llama": ("Llama", {"tie_word_embeddings": True}),
    "llama-biased": ("Llama", {"attention_bias": True, "mlp_bias": True}),
    "llama3-rope": ("Llama", {"rope_parameters": LLAMA3}),
    "linear-rope": (
        "Llama",
        {"rope_parameters": {"rope_type": "linear", "rope_theta": 10000.0, "factor": 4.0}},
    ),
    "mistral": ("Mistral", {"sliding_window": 24, "head_dim": 32}),
    "qwen2": ("Qwen2", {}),
    "qwen3": ("Qwen3", {"head_dim": 64}),
}


@pytest.fixture(scope="session")
def kernel_cache(tmp_path_factory: Any) -> Any:
    return tmp_path_factory.mktemp("kernels")


@pytest.fixture(scope="session", params=MODELS)
def family(request: Any, tmp_path_factory: Any) -> Any:
    """(transformers model, prepared directory) of a small model with random weights."""
    torch.manual_seed(1)
    torch.set_num_threads(1)
    name, changes = MODELS[request.param]
    config = getattr(transformers, f"{name}Config")(**(SHAPE | changes))
    config._attn_implementation = "eager"
    model = getattr(transformers, f"{name}ForCausalLM")(config).eval()
    for parameter_name, parameter in model.named_parameters():
        if parameter_name.endswith(("bias", "norm.weight")):
            torch.nn.init.normal_(parameter, mean=0.7, std=0.3)
    directory = tmp_path_factory.mktemp(request.param)
    model.save_pretrained(directory)
    write_tokenizer(directory, 300)
    return model, prepare(directory, directory / "cache", "float32", lambda stage, fraction: None)


@pytest.mark.parametrize("backend", ["torch", "cpu"])
@pytest.mark.parametrize("chunk", [7, 64])
def test_logits_equal_transformers(
    family: Any, backend: Any, chunk: Any, kernel_cache: Any
) -> None:
    model, prepared = family
    runner = load(prepared, backend, kernel_cache)
    (prompt,) = random_prompts([75], 300)
    with torch.inference_mode():
        expected = model(torch.tensor([prompt])).logits[0]
    sequence = new_sequence(BlockPool(128), prompt, 1)
    while sequence.num_computed_tokens < len(prompt):
        count = min(chunk, len(prompt) - sequence.num_computed_tokens)
        batch = ragged_batch([Scheduled(sequence, count)], 16)
        batch.sample_rows.resize(count, refcheck=False)
        batch.sample_rows[:] = range(count)
        with torch.inference_mode():
            found = runner._model.forward(batch)
        start = sequence.num_computed_tokens
        torch.testing.assert_close(found, expected[start : start + count], atol=2e-3, rtol=2e-3)
        sequence.num_computed_tokens += count


@pytest.mark.parametrize("backend", ["torch", "cpu"])
def test_greedy_tokens_equal_transformers(family: Any, backend: Any, kernel_cache: Any) -> None:
    model, prepared = family
    runner = load(prepared, backend, kernel_cache)
    prompts = random_prompts([1, 15, 16, 17, 40], 300)
    found = generate(runner, prompts, 24, chunk=13)
    assert found == [expected_tokens(model, prompt, 24) for prompt in prompts]


def test_a_reused_prefix_gives_the_same_tokens(family: Any, kernel_cache: Any) -> None:
    _, prepared = family
    runner = load(prepared, "cpu", kernel_cache)
    (prompt,) = random_prompts([50], 300)
    (expected,) = generate(runner, [prompt], 8)
    first = new_sequence(BlockPool(128), prompt, 8)
    runner.execute([Scheduled(first, 48)])
    second = new_sequence(BlockPool(128), prompt, 8)
    second.hold.block_ids[3] = 100  # three full blocks shared, the rest its own
    second.num_computed_tokens = 48
    (token,) = runner.execute([Scheduled(second, 2)])
    assert token is not None
    assert token.token_id == expected[0]


def test_warm_up_leaves_no_trace(family: Any, kernel_cache: Any) -> None:
    _, prepared = family
    runner = load(prepared, "cpu", kernel_cache)
    assert not any(runner.kv_memory.buffer)


def test_a_step_beyond_the_blocks_is_refused(family: Any, kernel_cache: Any) -> None:
    runner = load(family[1], "cpu", kernel_cache)
    sequence = new_sequence(BlockPool(128), [5] * 16, 0)
    sequence.token_ids.append(5)
    with pytest.raises(InternalError, match="room for 16"):
        runner.execute([Scheduled(sequence, 17)])


def test_close_gives_the_memory_back(family: Any, kernel_cache: Any) -> None:
    runner = load(family[1], "cpu", kernel_cache)
    memory = runner.kv_memory
    runner.close()
    memory.close()


@pytest.fixture(scope="session")
def embedded() -> Any:
    """The prepared directory of the embedded model in float32."""
    source = fetch_embedded(cache_directory(), lambda stage, fraction: None)
    return prepare(source, cache_directory(), "float32", lambda stage, fraction: None)


@pytest.fixture(scope="session")
def smollm2(embedded: Any) -> Any:
    """(transformers model, prepared directory) of the embedded model in float32."""
    return transformers_twin(embedded), embedded


def transformers_twin(prepared: Any) -> Any:
    """LlamaForCausalLM with the prepared weights."""
    manifest = read_manifest(prepared)
    config = manifest.config
    mapped = MappedWeights(prepared, manifest, torch.device("cpu"))
    model = transformers.LlamaForCausalLM(
        transformers.LlamaConfig(
            vocab_size=config.vocab_size,
            hidden_size=config.hidden_size,
            intermediate_size=config.intermediate_size,
            num_hidden_layers=config.num_layers,
            num_attention_heads=config.num_heads,
            num_key_value_heads=config.num_kv_heads,
            rms_norm_eps=config.rms_norm_eps,
            rope_parameters={"rope_type": "default", "rope_theta": config.rope_theta},
            max_position_embeddings=config.max_position_embeddings,
            tie_word_embeddings=True,
        )
    ).eval()
    state = {
        "model.embed_tokens.weight": mapped.get("embed"),
        "model.norm.weight": mapped.get("norm"),
    }
    rows = [head * config.head_dim for head in (config.num_heads, config.num_kv_heads)]
    for index in range(config.num_layers):
        ours, theirs = f"layers.{index}", f"model.layers.{index}"
        query, key, value = mapped.get(f"{ours}.qkv").split([rows[0], rows[1], rows[1]])
        gate, up = mapped.get(f"{ours}.gate_up").chunk(2)
        state |= {
            f"{theirs}.input_layernorm.weight": mapped.get(f"{ours}.input_norm"),
            f"{theirs}.post_attention_layernorm.weight": mapped.get(f"{ours}.post_norm"),
            f"{theirs}.self_attn.q_proj.weight": query,
            f"{theirs}.self_attn.k_proj.weight": key,
            f"{theirs}.self_attn.v_proj.weight": value,
            f"{theirs}.self_attn.o_proj.weight": mapped.get(f"{ours}.out"),
            f"{theirs}.mlp.gate_proj.weight": gate,
            f"{theirs}.mlp.up_proj.weight": up,
            f"{theirs}.mlp.down_proj.weight": mapped.get(f"{ours}.down"),
        }
    state["lm_head.weight"] = state["model.embed_tokens.weight"]
    model.load_state_dict(state)
    return model


TEXTS = [
    "The capital of France is",
    "def fibonacci(n: Any) -> Any:\n    ",
    "Once upon a time, in a small village by the sea,",
    "1 2 3 4 5 6 7",
    "Explain how a heat pump works.\n",
    "Die Katze sitzt auf dem",
    "<|im_start|>user\nName three rivers in Africa.<|im_end|>\n<|im_start|>assistant\n",
    "SELECT name, age FROM",
    "Water boils at",
    "In 1969, ",
    "The quick brown fox",
    "Dear Sir or Madam,\n\n",
]


@pytest.fixture(scope="session")
def smollm2_prompts(embedded: Any) -> Any:
    """20 prompts."""
    tokenizer = transformers.PreTrainedTokenizerFast(
        tokenizer_file=str(embedded / "tokenizer.json")
    )
    prompts = [tokenizer.encode(text) for text in TEXTS]
    text = tokenizer.encode(" ".join(TEXTS) * 2)
    prompts += [text[:length] for length in (1, 15, 16, 17, 31, 64, 100, 180)]
    assert len(prompts) >= 20
    torch.set_num_threads(1)
    return prompts


@pytest.mark.deep
@pytest.mark.parametrize("backend", ["cpu", "torch"])
def test_smollm2_greedy_tokens_equal_transformers(
    smollm2: Any, smollm2_prompts: Any, backend: Any, kernel_cache: Any
) -> None:
    """`make test` compares the tokens of whole servers, in `test_tokens.py`."""
    model, prepared = smollm2
    runner = load(prepared, backend, kernel_cache)
    found = []
    for start in range(0, len(smollm2_prompts), 10):
        found += generate(runner, smollm2_prompts[start : start + 10], 64, chunk=48)
    for prompt, tokens in zip(smollm2_prompts, found, strict=True):
        assert len(tokens) == 64
        assert first_difference(model, prompt, tokens) is None, json.dumps(prompt)


def test_embedded_tokenizer_equals_transformers(embedded: Any) -> None:
    ours = transformers.PreTrainedTokenizerFast(tokenizer_file=str(embedded / "tokenizer.json"))
    source = read_manifest(embedded).source
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        theirs = transformers.AutoTokenizer.from_pretrained(
            Path(source).parent, gguf_file=Path(source).name
        )
    odd = [
        "  two  spaces\n\n\ttab",
        "price: 12345.67 €",
        "naïve café 日本語 🙂",
        "<|im_start|>user\nhi<|im_end|>",
    ]
    for text in [*TEXTS, *odd]:
        assert ours.encode(text) == theirs.encode(text), text
        assert ours.decode(ours.encode(text)) == text
