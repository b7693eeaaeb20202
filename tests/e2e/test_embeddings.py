"""Embeddings of the whole system against transformers: the same from one pool and from two, alone and in a crowd, whoever dies."""

from __future__ import annotations

import os
import random
import signal
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
import torch

from deploy.config.topology import cache_directory
from deploy.host.model_source import prepare
from tests.e2e.reference import smollm2
from tests.e2e.server import Server
from tests.marks import deep
from tests.patience import until

pytestmark = [pytest.mark.e2e, pytest.mark.slow, pytest.mark.xdist_group("models")]
LENGTHS = (1, 2, 16, 17, 100, 129, 300)
TOLERANCE = 1e-3
ARGUMENTS = ("--dtype", "float32", "--kv-cache-memory", "256MiB", "--pooling", "mean")


def prompts() -> list[list[int]]:
    rng = random.Random(6)
    return [[rng.randrange(17, 49000) for _ in range(length)] for length in LENGTHS]


@pytest.fixture(scope="module", params=["1p1d", deep("0p1d"), deep("2p1d")])
def server(request: pytest.FixtureRequest) -> Iterator[Server]:
    options = ("--pd", request.param, "--max-num-batched-tokens", "128")
    with Server(*ARGUMENTS, *options) as serving:
        yield serving


@pytest.fixture(scope="module")
def expected() -> torch.Tensor:
    prepared = prepare("smollm2-135m", (), "float32", cache_directory(), lambda *_: None)
    model = smollm2(prepared.directory)
    with torch.inference_mode():
        told = [model.model(input_ids=torch.tensor([it])).last_hidden_state[0] for it in prompts()]
    return torch.nn.functional.normalize(torch.stack([it.mean(dim=0) for it in told]), dim=-1)


def embedded(server: Server, asked: Any) -> list[list[float]]:
    reply = server.client.post("/v1/embeddings", json={"input": asked})
    assert reply.status_code == 200, reply.text
    return [one["embedding"] for one in reply.json()["data"]]


def test_they_are_transformers_states_to_the_bit_the_same(
    server: Server, expected: torch.Tensor
) -> None:
    together = embedded(server, prompts())
    assert torch.allclose(torch.tensor(together), expected, atol=TOLERANCE, rtol=0.0)
    with ThreadPoolExecutor(len(LENGTHS)) as pool:
        apart = list(pool.map(lambda prompt: embedded(server, prompt), prompts()))
    assert [one for [one] in apart] == together
    text = server.client.post("/tokenize", json={"prompt": "Hello there"}).json()["tokens"]
    [said] = embedded(server, text)
    told = {"model": "smollm2-135m", "input": ["Hello there"]}
    assert server.client.post("/api/embed", json=told).json()["embeddings"] == [said]
    assert server.audit()["balanced"]


@pytest.mark.deep
def test_a_worker_that_dies_changes_no_bit(server: Server) -> None:
    asked = [list(reversed(prompt)) for prompt in prompts()] * 3
    whole = embedded(server, asked)
    role = server.cluster()["workers"][0]["role"]
    with ThreadPoolExecutor(1) as pool:
        again = pool.submit(embedded, server, asked)
        until(lambda: server.cluster()["requests"]["live"], "an admitted request", every_s=0.005)
        os.kill(server.worker(role)["pid"], signal.SIGKILL)
        assert again.result() == whole
