"""bfloat16, the default: the same tokens from any pools, alone or at once, warm, replayed after a kill."""

from __future__ import annotations

import os
import random
import signal
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest

from tests.e2e.crowd import read_tokens
from tests.e2e.server import Server

pytestmark = [pytest.mark.e2e, pytest.mark.slow, pytest.mark.xdist_group("model")]
LENGTHS = [1, 17, 129, 300, 600]
TOKENS = 32
KILL_AFTER = [1, 5, 20]
"""Answers have so many tokens when their worker dies."""


def prompts() -> list[list[int]]:
    """Of several lengths, and one that shares a prefix with another."""
    rng = random.Random(8)
    found = [[rng.randrange(17, 49000) for _ in range(length)] for length in LENGTHS]
    return [*found, found[-1][:512] + found[2]]


def serve(pools: str) -> Server:
    arguments = ["--pd", pools, "--dtype", "bfloat16", "--kv-cache-memory", "512MiB"]
    return Server(*arguments, "--max-num-batched-tokens", "128")


def body(prompt: list[int]) -> dict[str, Any]:
    return {
        "model": "smollm2-135m",
        "prompt": prompt,
        "max_tokens": TOKENS,
        "temperature": 0,
        "ignore_eos": True,
        "return_token_ids": True,
    }


def complete(server: Server, prompt: list[int]) -> list[int]:
    tokens: list[int] = server.complete(**body(prompt))["choices"][0]["token_ids"]
    return tokens


def at_once(server: Server) -> list[list[int]]:
    with ThreadPoolExecutor(len(prompts())) as pool:
        return list(pool.map(lambda prompt: complete(server, prompt), prompts()))


@pytest.fixture(scope="module")
def colocated() -> list[list[int]]:
    """Every prompt alone on one worker that does everything."""
    with serve("0p1d") as server:
        alone = [complete(server, prompt) for prompt in prompts()]
        assert at_once(server) == alone, "warm and in company"
        return alone


@pytest.fixture(scope="module")
def pair() -> Iterator[Server]:
    with serve("1p1d") as server:
        yield server


def check(server: Server, colocated: list[list[int]]) -> None:
    assert at_once(server) == colocated, "cold and in company"
    assert [complete(server, prompt) for prompt in prompts()] == colocated, "warm and alone"
    assert server.audit()["balanced"]


def test_a_pair_gives_the_colocated_tokens(pair: Server, colocated: list[list[int]]) -> None:
    check(pair, colocated)


@pytest.mark.deep
def test_two_of_each_give_the_colocated_tokens(colocated: list[list[int]]) -> None:
    with serve("2p2d") as server:
        check(server, colocated)


def streamed(server: Server, prompt: list[int], after: int, victim: int) -> list[int]:
    """The tokens of one answer, whose worker `victim` is killed when `after` of them have come."""
    tokens: list[int] = []
    asked = {**body(prompt), "stream": True}
    with server.client.stream("POST", "/v1/completions", json=asked) as reply:
        assert reply.status_code == 200, reply.read()
        for line in reply.iter_lines():
            before = len(tokens)
            tokens += read_tokens(line)
            if before < after <= len(tokens):
                os.kill(victim, signal.SIGKILL)
    return tokens


def test_a_decode_worker_killed_in_the_middle_changes_no_token(
    pair: Server, colocated: list[list[int]]
) -> None:
    pause = threading.Event()
    for prompt, expected, after in zip(prompts()[-3:], colocated[-3:], KILL_AFTER, strict=True):
        victim = pair.worker("decode")
        assert streamed(pair, prompt, after, victim["pid"]) == expected, after
        while len(pair.cluster()["workers"]) < 2 or not is_back(pair, victim["pid"]):
            pause.wait(0.1)


def is_back(server: Server, killed_pid: int) -> bool:
    worker = server.worker("decode")
    return bool(worker["pid"] != killed_pid and worker["state"] == "ready")


def test_conversation_over_several_turns_makes_sense(pair: Server) -> None:
    messages = [{"role": "user", "content": "What is the capital of Japan?"}]
    cached = []
    for follow_up in ("And what is the capital of France?", "Thank you!", ""):
        reply = pair.chat(model="smollm2-135m", messages=messages, max_tokens=48, temperature=0)
        text = reply["choices"][0]["message"]["content"]
        cached.append(reply["usage"]["prompt_tokens_details"]["cached_tokens"])
        messages += [{"role": "assistant", "content": text}]
        messages += [{"role": "user", "content": follow_up}]
    said = [message["content"] for message in messages if message["role"] == "assistant"]
    assert "Tokyo" in said[0]
    assert "Paris" in said[1]
    assert cached[0] < cached[1] <= cached[2]
