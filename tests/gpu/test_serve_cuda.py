"""`baton serve --device cuda`: two processes on one GPU give the tokens of one, and survive each other's death."""

from __future__ import annotations

import os
import signal
import sys
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.e2e.server import Server

PROMPTS = [[5 + (7 * i + j) % 350 for j in range(40 + 60 * i)] for i in range(6)]
COMMON = (
    *("--device", "cuda", "--max-model-len", "1024", "--kv-cache-memory", "256MiB"),
    *("--max-num-seqs", "8"),
)


def server_of(*arguments: str) -> Server:
    """Without an installed `baton`: the GPU's machine may have the sources only."""
    return Server(*arguments, program=(sys.executable, "-m", "deploy.cli"))


def answers(server: Server, model: str, **changes: Any) -> list[list[int]]:
    found = []
    for seed, prompt in enumerate(PROMPTS):
        body = {
            "model": model,
            "prompt": prompt,
            "max_tokens": 24,
            "temperature": 0.0,
            "seed": seed,
            "ignore_eos": True,
            "return_token_ids": True,
            **changes,
        }
        reply = httpx.post(f"{server.url}/v1/completions", json=body, timeout=60)
        assert reply.status_code == 200, reply.text
        found.append(reply.json()["choices"][0]["token_ids"])
    return found


@pytest.fixture(scope="module")
def colocated(small_model: Path) -> tuple[list[list[int]], list[list[int]]]:
    with server_of(str(small_model), "--pd", "0p1d", *COMMON) as server:
        name = small_model.name
        return answers(server, name), answers(server, name, temperature=0.9, top_p=0.9)


@pytest.mark.parametrize("transport", ["auto", "zmq"])
def test_disaggregated_tokens_are_the_colocated_ones(
    small_model: Path, colocated: tuple[list[list[int]], list[list[int]]], transport: str
) -> None:
    options = ("--pd", "1p1d", "--transport", transport, "--local-prefill", "off")
    with server_of(str(small_model), *options, *COMMON) as server:
        name = small_model.name
        assert answers(server, name) == colocated[0]
        assert answers(server, name, temperature=0.9, top_p=0.9) == colocated[1]
        metrics = httpx.get(f"{server.url}/metrics").text
        assert "cuda (NVIDIA" in server.log()
        assert server.audit()["balanced"]
        assert "baton" in metrics


def test_request_survives_the_death_of_either_worker(small_model: Path) -> None:
    with server_of(str(small_model), "--pd", "1p1d", *COMMON) as server:
        name = small_model.name
        expected = answers(server, name)
        for role in ("prefill", "decode"):
            worker = next(w for w in server.cluster()["workers"] if w["id"] == f"{role}-0")
            os.kill(worker["pid"], signal.SIGKILL)
            assert answers(server, name) == expected
