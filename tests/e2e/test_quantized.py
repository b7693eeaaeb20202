"""`--quantization int8`: the same tokens from any pools and after a kill, those of the engine by itself, and refusals by name."""

from __future__ import annotations

import os
import random
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from deploy.config.topology import cache_directory
from engine.checkpoints.prepare import prepare
from engine.runner import ModelRunner, RunnerOptions
from protocol.quantization import Quantization
from tests.e2e.crowd import read_tokens
from tests.e2e.random_model import write_random_model
from tests.e2e.server import Server
from tests.greedy import generate

pytestmark = [pytest.mark.e2e, pytest.mark.slow, pytest.mark.xdist_group("models")]
TOKENS, LENGTHS = 32, (1, 17, 200)


def prompts() -> list[list[int]]:
    rng = random.Random(8)
    return [[rng.randrange(17, 49000) for _ in range(length)] for length in LENGTHS]


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("quantized") / "model"
    directory.mkdir()
    return write_random_model(directory)


def alone(model: Path, quantization: Quantization) -> list[list[int]]:
    """What the engine says in this process."""
    prepared = prepare(model, model.parent / "cache", "bfloat16", lambda *_: None)
    options = RunnerOptions(
        num_blocks=64, kernel_cache=cache_directory() / "kernels", quantization=quantization
    )
    runner = ModelRunner.load(prepared, options)
    tokens: list[list[int]] = generate(runner, prompts(), TOKENS)
    return tokens


def serve(model: Path, pools: str) -> Server:
    return Server(
        *(str(model), "--served-model-name", "small", "--pd", pools, "--dtype", "bfloat16"),
        *("--quantization", "int8", "--kv-cache-memory", "64MiB"),
    )


@pytest.fixture(scope="module")
def pair(model: Path) -> Iterator[Server]:
    with serve(model, "1p1d") as server:
        yield server


def body(prompt: list[int]) -> dict[str, Any]:
    return {
        "model": "small",
        "prompt": prompt,
        "max_tokens": TOKENS,
        "temperature": 0,
        "ignore_eos": True,
        "return_token_ids": True,
    }


def complete(server: Server, prompt: list[int]) -> list[int]:
    tokens: list[int] = server.complete(**body(prompt))["choices"][0]["token_ids"]
    return tokens


def test_a_pair_gives_the_tokens_of_the_engine_by_itself(pair: Server, model: Path) -> None:
    expected = alone(model, Quantization.INT8)
    assert expected != alone(model, Quantization.NONE), "bytes round: some token must differ"
    assert [complete(pair, prompt) for prompt in prompts()] == expected
    view = pair.cluster()
    assert view["quantization"] == "int8"
    assert pair.audit()["balanced"]


def test_a_decode_worker_killed_in_the_middle_changes_no_token(pair: Server, model: Path) -> None:
    expected, prompt = alone(model, Quantization.INT8)[2], prompts()[2]
    victim, tokens = pair.worker("decode")["pid"], list[int]()
    asked = {**body(prompt), "stream": True}
    with pair.client.stream("POST", "/v1/completions", json=asked) as reply:
        assert reply.status_code == 200, reply.read()
        for line in reply.iter_lines():
            before = len(tokens)
            tokens += read_tokens(line)
            if before < 5 <= len(tokens):
                os.kill(victim, signal.SIGKILL)
    assert tokens == expected


@pytest.mark.deep
def test_one_worker_gives_the_tokens_of_the_engine_by_itself(model: Path) -> None:
    with serve(model, "0p1d") as server:
        assert [complete(server, prompt) for prompt in prompts()] == alone(model, Quantization.INT8)
