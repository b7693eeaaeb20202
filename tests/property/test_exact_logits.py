"""On CPU the logits of a token are the same bits however it came to be computed.

The oracle computes one sequence alone, token by token, on one thread. Against it stand random batches,
chunks, thread counts, threads on lent cores, block tables and prefixes fetched from another runner, with other adapters beside it or
none, in every dtype, with matrices of bytes and on every kind of processor that kernels are built for and this one can run.
"""

from __future__ import annotations

import json
import math
import os
import random
import shutil
import tempfile
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from benchmarks.random_model import write_random
from deploy.config.topology import cache_directory
from deploy.host.model_source import prepare
from engine.cpu.lending import IDLE, LINE_WORDS, LentCores
from engine.kv.block_pool import BlockPool
from engine.kv.sequence import Scheduled, Sequence
from engine.model.ragged_batch import grouped
from engine.runner import ModelRunner, RunnerOptions
from protocol.quantization import Quantization
from protocol.sampling import SamplingParams
from tests.adapter_contents import random_content
from tests.unit.engine.cpu.driving import turned_back
from tests.unit.engine.cpu.processors import runnable_targets

pytestmark = pytest.mark.skipif(shutil.which("cc") is None, reason="needs a C compiler")

BLOCK_SIZE = 16
NUM_BLOCKS = 160
LENT = 0
LENGTHS = (1, 17, 40, 65, 150)
# Sums long enough that libraries choose their order by the number of rows: with oneDNN's products
# in place of the kernels' the quick cases fail.
SHAPE: dict[str, Any] = {
    "vocab_size": 1000,
    "hidden_size": 192,
    "intermediate_size": 1536,
    "num_hidden_layers": 2,
    "num_attention_heads": 6,
    "num_key_value_heads": 2,
    "head_dim": 32,
    "max_position_embeddings": 512,
}
MODELS: dict[str, dict[str, Any]] = {
    "llama": {
        "architectures": ["LlamaForCausalLM"],
        "tie_word_embeddings": True,
        "hidden_size": 576,
        "num_attention_heads": 9,
        "num_key_value_heads": 3,
        "head_dim": 64,
    },
    "qwen2": {
        "architectures": ["Qwen2ForCausalLM"],
        "hidden_size": 208,  # sums whose length is no multiple of a tile's
        "intermediate_size": 1552,
    },
    "qwen3": {"architectures": ["Qwen3ForCausalLM"]},
    "mistral": {"architectures": ["MistralForCausalLM"], "sliding_window": 50},
}
ADAPTERS: dict[str, tuple[int, str]] = {
    "": (0, ""),
    "wide": (64, ".*"),
    "narrow": (5, ".*"),
    "partial": (16, r".*1\.(self_attn\.(q|v)_proj|mlp\.up_proj)|.*0\..*down_proj"),
}
"""Rank and modules; "" is none."""
PROMPTS = [[random.Random(n).randrange(1000) for _ in range(n)] for n in LENGTHS]


@dataclass(frozen=True)
class Computed:
    """Bits of every token of one prompt: logits [tokens, vocab], KV [tokens, …]."""

    logits: torch.Tensor
    kv: torch.Tensor


class Case:
    """Runners of one model on one kind of kernels, by their number of threads; one is the oracle's own. LENT has one, and
    others on every core, which may stop anywhere."""

    def __init__(
        self, directory: Path, target: str, quantization: Quantization = Quantization.NONE
    ) -> None:
        self.directory, self.target, self.quantization = directory, target, quantization
        self.runner = cache(self._runner)
        self.alone = self._runner(1)
        self.oracle = cache(self._oracle)
        self.adapters = {
            name: random_content(
                directory / "adapters", self.alone.config, dtype_of(self.alone), *how
            )
            if name
            else None
            for name, how in ADAPTERS.items()
        }

    def _runner(self, num_threads: int) -> ModelRunner:
        options = RunnerOptions(
            num_blocks=NUM_BLOCKS,
            block_size=BLOCK_SIZE,
            num_threads=max(num_threads, 1),
            kernel_cache=cache_directory() / "kernels",
            kernel_target=self.target,
            quantization=self.quantization,
            lent_cores=lent_cores() if num_threads == LENT else None,
        )
        return ModelRunner.load(self.directory, options)

    def _oracle(self, prompt: int, adapter: str) -> Computed:
        runner, tokens = self.alone, PROMPTS[prompt]
        sequence = place(BlockPool(NUM_BLOCKS), tokens)
        sequence.adapter = self.adapters[adapter]
        logits = [step(runner, [(sequence, end)])[0] for end in range(1, len(tokens) + 1)]
        return Computed(torch.stack(logits), kv_bits(runner, sequence))


def dtype_of(runner: ModelRunner) -> str:
    size = len(runner.kv_memory.block(0)) // BLOCK_SIZE // runner.config.kv_bytes_per_token(1)
    return {4: "float32", 2: "bfloat16"}[size]


def lent_cores() -> LentCores:
    """Every core, of owners that sleep for ever."""
    with tempfile.TemporaryDirectory() as directory:
        cores = tuple(os.sched_getaffinity(0))
        lent = LentCores(Path(directory, "cores"), (), cores)
    for core in cores:
        lent.words[core * LINE_WORDS] = IDLE
    return lent


def place(pool: BlockPool, tokens: list[int]) -> Sequence:
    hold = pool.allocate(-(-len(tokens) // BLOCK_SIZE), "seq:test")
    assert hold is not None
    return Sequence("r", 0, list(tokens), 1, SamplingParams(max_tokens=1), b"", hold)


def step(runner: ModelRunner, ends: list[tuple[Sequence, int]]) -> torch.Tensor:
    """Compute each sequence up to its end; the bits of the logits there."""
    entries, whole = [], []
    for sequence, end in ends:
        whole.append(sequence.token_ids)
        sequence.token_ids = sequence.token_ids[:end]
        entries.append(Scheduled(sequence, end - sequence.num_computed_tokens))
    places = grouped(entries)
    logits = runner.logits([entries[place] for place in places])
    logits = logits[sorted(range(len(places)), key=places.__getitem__)]
    for (sequence, end), tokens in zip(ends, whole, strict=True):
        sequence.token_ids, sequence.num_computed_tokens = tokens, end
    return logits.view(torch.int32)


def kv_bits(runner: ModelRunner, sequence: Sequence) -> torch.Tensor:
    """Keys and values of every computed token, token first."""
    blocks = [bytes(runner.kv_memory.block(block)) for block in sequence.block_table]
    config = runner.config
    shape = (len(blocks), config.num_layers, 2, config.num_kv_heads, BLOCK_SIZE, config.head_dim)
    dtype = torch.float32 if len(blocks[0]) == math.prod(shape[1:]) * 4 else torch.bfloat16
    turned = torch.frombuffer(bytearray(b"".join(blocks)), dtype=dtype).view(shape)
    tokens = turned_back(turned).movedim(4, 1).flatten(0, 1)[: sequence.num_computed_tokens]
    return tokens.contiguous().view(torch.int16)


@pytest.fixture(scope="module")
def directory_of(tmp_path_factory: pytest.TempPathFactory) -> Any:
    @cache
    def make(model: str, dtype: str) -> Path:
        directory = tmp_path_factory.mktemp(f"{model}-{dtype}")
        config = directory / "config.json"
        config.write_text(json.dumps(SHAPE | MODELS[model]))
        write_random(config, dtype, directory)
        return directory

    return make


@pytest.fixture(scope="module")
def case_of(directory_of: Any) -> Any:
    return cache(
        lambda model, dtype, target, quantization=Quantization.NONE: Case(
            directory_of(model, dtype), target, quantization
        )
    )


@pytest.fixture(scope="module")
def embedded() -> Case:
    model = prepare("smollm2-135m", (), "bfloat16", cache_directory(), lambda *_: None)
    return Case(Path(model.directory), "native")


def fetch(target: tuple[ModelRunner, Sequence], source: tuple[ModelRunner, Sequence]) -> None:
    """Copy the full blocks that the source computed, as a transfer does."""
    count = source[1].num_computed_tokens // BLOCK_SIZE
    count = min(count, (target[1].num_tokens - 1) // BLOCK_SIZE)
    for ours, theirs in zip(target[1].block_table, source[1].block_table[:count], strict=False):
        target[0].kv_memory.block(ours)[:] = source[0].kv_memory.block(theirs)
    target[1].num_computed_tokens = count * BLOCK_SIZE


def named(case: Case, sequence: Sequence) -> tuple[int, str]:
    """What the oracle calls its prompt and its adapter."""
    held = case.adapters.items()
    adapter = next(name for name, content in held if content is sequence.adapter)
    return PROMPTS.index(sequence.token_ids), adapter


def play(case: Case, runner: ModelRunner, sequences: list[Sequence], rng: random.Random) -> None:
    """Random steps until every sequence is computed; logits of every end compared."""
    left = [(named(case, sequence), sequence) for sequence in sequences]
    while left := [item for item in left if item[1].num_computed_tokens < item[1].num_tokens]:
        chosen = rng.sample(left, rng.randint(1, len(left)))
        ends = []
        for _, sequence in chosen:
            most = sequence.num_tokens - sequence.num_computed_tokens
            size = rng.choice([1, min(most, 7), rng.randint(1, most), most])
            ends.append((sequence, sequence.num_computed_tokens + size))
        found = step(runner, ends)
        for row, (name, _), (_, end) in zip(found, chosen, ends, strict=True):
            assert torch.equal(row, case.oracle(*name).logits[end - 1]), (name, end)
    for sequence in sequences:
        oracle = case.oracle(*named(case, sequence))
        assert torch.equal(kv_bits(runner, sequence), oracle.kv)


def shuffled_pool(rng: random.Random) -> BlockPool:
    """A pool that deals its blocks in no order."""
    pool = BlockPool(NUM_BLOCKS)
    holds = [pool.allocate(1, f"seq:{i}") for i in range(NUM_BLOCKS)]
    rng.shuffle(holds)
    for hold in holds:
        assert hold is not None
        hold.release()
    return pool


def check(case: Case, rng: random.Random) -> None:
    """One random history: some prompts on one runner, then all on another, partly fetched from the first."""
    first, second = (case.runner(rng.choice([1, 2, 3, LENT])) for _ in range(2))
    pool = shuffled_pool(rng)
    prompts = rng.sample(PROMPTS, rng.randint(1, len(PROMPTS)))
    sources = [place(pool, tokens) for tokens in prompts]
    for source in sources:
        source.adapter = case.adapters[rng.choice(["", *case.adapters])]
    play(case, first, sources, rng)
    targets = [place(pool, tokens) for tokens in prompts]
    for source, target in zip(sources, targets, strict=True):
        target.adapter = source.adapter
        if rng.random() < 0.5:
            fetch((second, target), (first, source))
    play(case, second, targets, rng)


REPEATS = [pytest.mark.slow, pytest.mark.deep]
QUICK = [("llama", "bfloat16"), ("qwen2", "float32")]
CASES = [
    pytest.param(model, dtype, marks=() if (model, dtype) in QUICK else REPEATS)
    for model in MODELS
    for dtype in ("bfloat16", "float32")
]


@pytest.mark.parametrize(("model", "dtype"), CASES)
@settings(max_examples=8, deadline=None, suppress_health_check=list(HealthCheck))
@given(rng=st.randoms(use_true_random=False))
def test_bits_do_not_depend_on_company(
    case_of: Any, model: str, dtype: str, rng: random.Random
) -> None:
    check(case_of(model, dtype, "native"), rng)


@pytest.mark.parametrize(("model", "dtype"), CASES)
@settings(max_examples=4, deadline=None, suppress_health_check=list(HealthCheck))
@given(rng=st.randoms(use_true_random=False))
def test_bits_of_quantized_models_do_not_depend_on_company(
    case_of: Any, model: str, dtype: str, rng: random.Random
) -> None:
    check(case_of(model, dtype, "native", Quantization.INT8), rng)


@pytest.mark.slow
@settings(max_examples=2, deadline=None, suppress_health_check=list(HealthCheck))
@given(rng=st.randoms(use_true_random=False))
def test_bits_of_the_embedded_model_do_not_depend_on_company(
    embedded: Case, rng: random.Random
) -> None:
    check(embedded, rng)


@pytest.mark.slow
@pytest.mark.deep
@pytest.mark.parametrize("dtype", ["bfloat16", "float32"])
@pytest.mark.parametrize("quantization", Quantization)
@pytest.mark.parametrize("target", [name for name in runnable_targets() if name != "native"])
@settings(max_examples=8, deadline=None, suppress_health_check=list(HealthCheck))
@given(rng=st.randoms(use_true_random=False))
def test_bits_do_not_depend_on_company_on_other_processors(
    case_of: Any, target: str, quantization: Quantization, dtype: str, rng: random.Random
) -> None:
    check(case_of("qwen2", dtype, target, quantization), rng)
