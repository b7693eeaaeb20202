"""The next turn of a chat over real processes: its history is read from the worker that generated it."""

from __future__ import annotations

import os
import random
import signal
import threading
from collections.abc import Iterator
from typing import Any

import pytest

from deploy.config.topology import cache_directory
from deploy.host.model_source import prepare
from tests.e2e.reference import first_difference, smollm2
from tests.e2e.server import Server
from tests.marks import deep

pytestmark = [pytest.mark.e2e, pytest.mark.slow, pytest.mark.xdist_group("model")]
ANSWER_TOKENS = 60
BLOCK = 16


@pytest.fixture(scope="module")
def oracle() -> Any:
    prepared = prepare("smollm2-135m", (), "float32", cache_directory(), lambda *_: None)
    return smollm2(prepared.directory)


@pytest.fixture(scope="module")
def server(request: pytest.FixtureRequest) -> Iterator[Server]:
    arguments = ["--pd", "1p1d", "--dtype", "float32", "--kv-cache-memory", "512MiB"]
    with Server(*arguments, "--transport", request.param) as server:
        yield server


def history(seed: int) -> list[int]:
    rng = random.Random(seed)
    return [rng.randrange(17, 49000) for _ in range(90)]


def complete(server: Server, prompt: list[int]) -> dict[str, Any]:
    return server.complete(
        model="smollm2-135m",
        prompt=prompt,
        max_tokens=ANSWER_TOKENS,
        temperature=0,
        ignore_eos=True,
        return_token_ids=True,
    )


ON_EACH_ROAD = pytest.mark.parametrize("server", ["shm", deep("zmq")], indirect=True)
"""`make ci` tries zmq too."""


def next_turn(server: Server, prompt: list[int]) -> list[int]:
    """The prompt, its answer, and what a person says then."""
    return [*prompt, *complete(server, prompt)["choices"][0]["token_ids"], 101, 102, 103]


def prefill_totals(server: Server) -> tuple[int, int]:
    """Tokens of prompts that were fetched and computed, by a heartbeat that has come since."""
    server.await_heartbeats()
    totals = server.worker("prefill")["totals"]
    return totals["prefix_fetched_tokens"], totals["prefill_tokens"]


@ON_EACH_ROAD
def test_history_is_read_and_not_computed_again(server: Server, oracle: Any) -> None:
    turn = next_turn(server, history(1))
    fetched_before, computed_before = prefill_totals(server)
    reply = complete(server, turn)
    cached = reply["usage"]["prompt_tokens_details"]["cached_tokens"]
    assert cached >= len(turn) - 2 * BLOCK
    fetched, computed = prefill_totals(server)
    assert fetched - fetched_before >= ANSWER_TOKENS - 2 * BLOCK
    assert computed - computed_before == len(turn) - cached
    assert first_difference(oracle, turn, reply["choices"][0]["token_ids"]) is None


@ON_EACH_ROAD
def test_audit_is_balanced_after_loans(server: Server) -> None:
    complete(server, next_turn(server, history(2)))
    account = server.audit()
    assert account["balanced"]
    assert [worker["leases"] for worker in account["workers"]] == [0, 0]


@ON_EACH_ROAD
@pytest.mark.deep
def test_stopped_holder_does_not_change_the_answer(server: Server, oracle: Any) -> None:
    turn = next_turn(server, history(3))
    holder = server.worker("decode")["pid"]
    os.kill(holder, signal.SIGSTOP)
    waker = threading.Timer(1.5, os.kill, (holder, signal.SIGCONT))
    waker.start()
    try:
        reply = complete(server, turn)
    finally:
        waker.join()
    assert first_difference(oracle, turn, reply["choices"][0]["token_ids"]) is None


@ON_EACH_ROAD
def test_killed_holder_does_not_change_the_answer(server: Server, oracle: Any) -> None:
    turn = next_turn(server, history(4))
    os.kill(server.worker("decode")["pid"], signal.SIGKILL)
    reply = complete(server, turn)
    assert first_difference(oracle, turn, reply["choices"][0]["token_ids"]) is None
