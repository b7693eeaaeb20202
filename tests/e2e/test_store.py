"""A store over real processes: what it keeps outlives everybody, on its disk a restart of everything, and nothing needs it."""

from __future__ import annotations

import os
import random
import signal
from pathlib import Path
from typing import Any

import httpx
import pytest

from engine.attesting import attested_tokens
from tests.e2e.crowd import Crowd, mock_root
from tests.e2e.server import MOCK, Server
from tests.patience import until

pytestmark = [pytest.mark.e2e]
BLOCK = 16
PROMPT_TOKENS, ANSWER_TOKENS = 320, 40
SHAPE = ("--pd", "1p1d1s", "--dtype", "float32")
"""What the oracle of `ask` computes in, whatever this processor would choose."""
KEPT = (PROMPT_TOKENS + ANSWER_TOKENS - 1) // BLOCK


def prompt_of(seed: int) -> list[int]:
    rng = random.Random(seed)
    return [rng.randrange(17, 49_000) for _ in range(PROMPT_TOKENS)]


def ask(server: Server, prompt: list[int], max_tokens: int = ANSWER_TOKENS) -> int:
    """Its cached tokens; the answer is what a faultless engine says."""
    reply = server.complete(
        model="smollm2-135m",
        prompt=prompt,
        max_tokens=max_tokens,
        temperature=0,
        seed=1,
        ignore_eos=True,
        return_token_ids=True,
    )
    expected = attested_tokens(mock_root(), prompt, max_tokens, 1)
    assert reply["choices"][0]["token_ids"] == expected
    cached: int = reply["usage"]["prompt_tokens_details"]["cached_tokens"]
    return cached


def workers(server: Server) -> dict[str, dict[str, Any]]:
    return {worker["id"]: worker for worker in server.cluster()["workers"]}


def await_ready(server: Server, before: dict[str, int] | None = None) -> dict[str, int]:
    """All three are ready, in other processes than `before`; their pids."""

    def are() -> bool:
        now = workers(server)
        return len(now) == 3 and all(
            w["state"] == "ready" and w["pid"] != (before or {}).get(name)
            for name, w in now.items()
        )

    until(are, "all workers being ready")
    return {name: worker["pid"] for name, worker in workers(server).items()}


def await_kept(server: Server, blocks: int = KEPT, where: str = "kept_blocks") -> None:
    until(
        lambda: workers(server)["store-0"].get("store", {}).get(where, 0) >= blocks,
        f"{blocks} blocks being there",
    )


def serve(*arguments: str) -> Server:
    return Server(*SHAPE, "--kv-cache-memory", "64MiB", *arguments, program=MOCK)


def test_a_known_prompt_is_read_after_every_other_worker_was_killed() -> None:
    with serve("--kv-store", "dram=64MiB") as server:
        before = await_ready(server)
        assert ask(server, prompt_of(1)) == 0
        await_kept(server)
        computing = {n: pid for n, pid in before.items() if not n.startswith("store")}
        for pid in computing.values():
            os.kill(pid, signal.SIGKILL)
        await_ready(server, computing)
        assert ask(server, prompt_of(1)) == (PROMPT_TOKENS - 1) // BLOCK * BLOCK
        assert server.audit()["balanced"]
        told = httpx.get(f"{server.url}/metrics").text
        assert 'baton_store_lent_blocks_total{tier="memory",worker="store-0"}' in told


def test_a_restart_of_everything_stays_warm_and_damaged_blocks_are_computed(tmp_path: Path) -> None:
    store = ["--kv-store", f"dram=64MiB,disk=256MiB,path={tmp_path}"]
    with serve(*store) as server:
        await_ready(server)
        ask(server, prompt_of(1))
        await_kept(server, where="disk_blocks")
    with serve(*store) as server:
        await_ready(server)
        until(lambda: server.cluster()["storing"]["known_blocks"] >= KEPT, "the disk being known")
        assert ask(server, prompt_of(1)) == (PROMPT_TOKENS - 1) // BLOCK * BLOCK
    for file in (path for path in tmp_path.rglob("*") if path.is_file()):
        content = bytearray(file.read_bytes())
        for position in range(200, len(content), 61):  # every block: the mock's have 256 bytes
            content[position] ^= 1
        file.write_bytes(content)
    with serve(*store) as server:
        await_ready(server)
        assert ask(server, prompt_of(1)) == 0
        assert server.audit()["balanced"]


def test_a_store_that_is_stopped_and_killed_under_load_costs_no_token() -> None:
    with serve("--kv-store", "dram=64MiB") as server:
        pid = await_ready(server)["store-0"]
        with Crowd(server.url, 4) as crowd:
            crowd.await_more(8)
            os.kill(pid, signal.SIGSTOP)
            crowd.await_more(8)
            os.kill(pid, signal.SIGCONT)
            crowd.await_more(8)
            os.kill(workers(server)["store-0"]["pid"], signal.SIGKILL)
            crowd.await_more(8)
            await_ready(server)
            crowd.await_more(8)
        until(lambda: server.cluster()["requests"]["live"] == 0, "the load being over")
        until(lambda: server.audit()["balanced"], "every account adding up")


def test_a_store_is_added_and_taken_away_while_it_serves() -> None:
    with Server("--pd", "1p1d", *SHAPE[2:], "--kv-cache-memory", "64MiB", program=MOCK) as server:
        assert "store" not in server.cluster()["target"]
        scaled = server.client.post("/cluster/scale", json={"store": 1})
        assert scaled.json()["target"]["store"] == 1
        await_ready(server)
        ask(server, prompt_of(1))
        await_kept(server)
        refused = server.client.post("/cluster/workers/store-0/role", json={"role": "decode"})
        assert (refused.status_code, refused.json()["error"]["param"]) == (400, "role")
        server.client.post("/cluster/scale", json={"store": 0})
        until(lambda: "store-0" not in workers(server), "the store having left")
        assert ask(server, prompt_of(2)) == 0
