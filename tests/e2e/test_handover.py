"""A worker that leaves, with real processes and the real model: what it writes goes on elsewhere, and hardly pauses."""

from __future__ import annotations

import itertools
import json
import random
import statistics
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import httpx
import pytest

from tests.e2e.server import Server
from tests.patience import ATTEMPTS, PATIENCE_S, until

pytestmark = [pytest.mark.e2e, pytest.mark.slow, pytest.mark.xdist_group("model")]
MODEL = "smollm2-135m"
TOKENS, DRAIN_AT, BLOCK = 160, 60, 16
GAP_S = {"shm": 0.25, "zmq": 0.5}
QUIET_TOKEN_S = 0.03
"""What a token takes on a machine that nobody else uses, at most; on a crowded one a pause is longer, too."""
OPTIONS = ("--dtype", "float32", "--kv-cache-memory", "512MiB")


def prompt(length: int, seed: int) -> list[int]:
    rng = random.Random(seed)
    return [rng.randrange(17, 49000) for _ in range(length)]


def stream(
    server: Server, body: dict[str, Any], at: dict[int, Callable[[], object]] | None = None
) -> tuple[list[int], list[float]]:
    """Tokens of a streamed answer and when each came; `at[n]` is called at the n-th."""
    tokens: list[int] = []
    times: list[float] = []
    asked = {"model": MODEL, "temperature": 0, "ignore_eos": True, "return_token_ids": True}
    with (
        httpx.Client(timeout=PATIENCE_S) as client,
        client.stream(
            "POST", f"{server.url}/v1/completions", json={**asked, **body, "stream": True}
        ) as reply,
    ):
        assert reply.status_code == 200, reply.read()
        for line in reply.iter_lines():
            if line.startswith("data: {"):
                for choice in json.loads(line.removeprefix("data: "))["choices"]:
                    for token in choice.get("token_ids") or ():
                        tokens.append(token)
                        times.append(time.monotonic())
                        if at and len(tokens) in at:
                            at[len(tokens)]()
    return tokens, times


def computed(server: Server) -> int:
    """Prompt tokens computed by all workers, of heartbeats that have come since."""
    server.await_heartbeats()
    return sum(w["totals"]["prefill_tokens"] for w in server.cluster()["workers"])


@pytest.fixture
def server(request: pytest.FixtureRequest) -> Iterator[Server]:
    with Server("--pd", "1p2d", "--transport", request.param, *OPTIONS) as server:
        yield server


@pytest.mark.deep
@pytest.mark.parametrize("server", ["shm", "zmq"], indirect=True)
def test_a_drained_worker_hands_its_answer_over_with_its_kv(
    server: Server, request: pytest.FixtureRequest
) -> None:
    road = request.node.callspec.params["server"]
    body = {"prompt": prompt(700, 1), "max_tokens": TOKENS}
    undisturbed, _ = stream(server, body)
    before = computed(server)
    seen = []
    for _ in range(ATTEMPTS):
        again, times = stream(
            server, body, {DRAIN_AT: threading.Thread(target=drain(server)).start}
        )
        assert again == undisturbed
        now = computed(server)
        assert now - before <= 4 * BLOCK, "its beginning was cached, and the answer was read"
        gaps = [after - before for before, after in itertools.pairwise(times)]
        usual = statistics.median(gaps)
        seen.append(f"longest gap {max(gaps):.3f} s, usual {usual:.3f} s")
        if max(gaps) - usual <= GAP_S[road] * max(usual / QUIET_TOKEN_S, 1.0):
            print(f"{road}: {seen[-1]}")
            return
        assert server.client.post("/cluster/scale", json={"decode": 2}).is_success
        until(lambda: len(server.cluster()["workers"]) == 3, "another decode worker")
        undisturbed, _ = stream(server, body)
        before = computed(server)
    raise AssertionError((road, seen))


def drain(server: Server) -> Callable[[], None]:
    """Takes the decode worker that writes something out of its pool."""

    def now() -> None:
        workers = server.cluster()["workers"]
        busy = next(w for w in workers if w["role"] == "decode" and w["requests"]["running"])
        assert server.client.post(f"/cluster/workers/{busy['id']}/drain").status_code == 200

    return now
