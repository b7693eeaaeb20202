"""A store's disk over real processes: tenants, damage while it serves, disks that are tiny, full or read-only, and nothing left."""

from __future__ import annotations

import os
import signal
import subprocess
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.e2e.crowd import Crowd
from tests.e2e.server import BATON, MOCK, Server
from tests.e2e.test_store import BLOCK, PROMPT_TOKENS, SHAPE, ask, await_ready, prompt_of, workers
from tests.patience import until

pytestmark = [pytest.mark.e2e]
KNOWN = (PROMPT_TOKENS - 1) // BLOCK * BLOCK
SMALL = (*SHAPE, "--kv-cache-memory", "24MiB")
"""Each pool holds one prompt with its answer, and not two."""


def serve(path: Path, disk: str = "256MiB", *more: str) -> Server:
    return Server(*SMALL, "--kv-store", f"dram=24MiB,disk={disk},path={path}", *more, program=MOCK)


def store(server: Server) -> dict[str, Any]:
    told: dict[str, Any] = workers(server).get("store-0", {}).get("store", {})
    return told


def await_on_disk(server: Server, blocks: int) -> None:
    until(lambda: store(server).get("disk_blocks", 0) >= blocks, f"{blocks} blocks on the disk")


def await_read(server: Server, prompts: list[list[int]]) -> None:
    """Some prompt is read from the disk: no pool has room for all, and a reader does not wait long."""

    def is_read() -> bool:
        for prompt in prompts:
            ask(server, prompt)
        return bool(store(server)["lent_disk_blocks"] > before)

    until(lambda: "lent_disk_blocks" in store(server), "the store having said what it does")
    before = store(server)["lent_disk_blocks"]
    until(is_read, "blocks being read from the disk")


def files(path: Path) -> list[Path]:
    return sorted(file for file in path.rglob("*") if file.is_file())


def clear(path: Path) -> None:
    done = subprocess.run(
        [BATON, "store", "clear", "--path", path], check=False, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr


def flip(file: Path, every: int) -> None:
    with file.open("r+b") as opened:
        size = os.fstat(opened.fileno()).st_size
        for position in range(200, size, every):
            opened.seek(position)
            byte = opened.read(1)
            opened.seek(position)
            opened.write(bytes([byte[0] ^ 1]))


def shrink(file: Path) -> None:
    os.truncate(file, file.stat().st_size // 2)


def in_memory() -> set[str]:
    return {file.name for file in Path("/dev/shm").iterdir()}


def damage_is_met(server: Server, prompts: list[list[int]]) -> bool:
    for prompt in prompts:
        ask(server, prompt)
    return bool(store(server)["disk_proofs_failed"] > 0)


@pytest.mark.deep
def test_what_is_damaged_while_it_serves_is_computed_and_counted(tmp_path: Path) -> None:
    prompts = [prompt_of(seed) for seed in range(4)]
    before = in_memory()
    with serve(tmp_path) as server:
        await_ready(server)
        for count, prompt in enumerate(prompts, start=1):
            ask(server, prompt)
            await_on_disk(server, count * KNOWN // BLOCK)
        await_read(server, prompts)
        (segment,) = [file for file in files(tmp_path) if file.suffix == ".seg"]
        flip(segment, 512)
        until(lambda: damage_is_met(server, prompts), "the damage being counted")
        assert "baton_store_disk_proofs_failed_total{" in metrics(server)
        shrink(segment)
        for prompt in prompts:
            ask(server, prompt)
        until(lambda: server.audit()["balanced"], "every account adding up")
    clear(tmp_path)
    assert list(tmp_path.iterdir()) == []
    assert in_memory() - before == set()


def metrics(server: Server) -> str:
    return httpx.get(f"{server.url}/metrics").text


def counted(server: Server, name: str) -> float:
    """A metric without labels, or of the store."""
    lines = [line for line in metrics(server).splitlines() if line.startswith(name)]
    return sum(float(line.rpartition(" ")[2]) for line in lines)


def test_what_was_cached_is_the_same_in_answers_metrics_and_accounts(tmp_path: Path) -> None:
    """Whichever tier it came from: computed tokens are a prompt's, less those."""
    with serve(tmp_path) as server:
        await_ready(server)
        prompts = [prompt_of(seed) for seed in range(3)]
        computed, hits = "baton_worker_prefill_tokens_total{", "vllm:prefix_cache_hits_total{"
        server.await_heartbeats()
        proving, cached = counted(server, computed), 0
        for count, prompt in enumerate(prompts, start=1):
            cached += ask(server, prompt)
            await_on_disk(server, count * KNOWN // BLOCK)
        for prompt in [*prompts, prompts[-1]]:
            cached += ask(server, prompt)
        asked = (2 * len(prompts) + 1) * PROMPT_TOKENS
        assert cached >= KNOWN
        until(lambda: counted(server, hits) == cached, "the metrics saying the same")
        rest = proving + asked - cached
        until(lambda: counted(server, computed) == rest, "workers having computed the rest")
        fetched = counted(server, "baton_worker_prefix_fetched_tokens_total{")
        lent = "baton_store_lent_blocks_total{"
        until(lambda: counted(server, lent) * BLOCK >= fetched, "the store saying what it lent")
        assert counted(server, "baton_store_disk_written_bytes_total{") > 0


@pytest.fixture
def keys(tmp_path: Path) -> dict[str, str]:
    """Two of one tenant, one of another, and one of nobody's."""
    told = ("--keys-db", str(tmp_path / "keys.db"))
    made: dict[str, tuple[str, ...]]
    made = {"ann": ("--tenant", "acme"), "bob": ("--tenant", "acme"), "eve": ("--tenant", "evil")}
    made |= {"boss": ("--scopes", "admin", "inference")}
    return {
        name: subprocess.run(
            [BATON, "keys", "create", *told, *words], check=True, capture_output=True, text=True
        ).stdout.strip()
        for name, words in made.items()
    }


def test_another_tenants_blocks_are_never_hit(tmp_path: Path, keys: dict[str, str]) -> None:
    prompt = prompt_of(1)

    def cached(server: Server, name: str, salt: str | None = None) -> int:
        body = {"model": "smollm2-135m", "prompt": prompt, "max_tokens": 8, "cache_salt": salt}
        headers = {"authorization": f"Bearer {keys[name]}"}
        reply = server.client.post("/v1/completions", json=body, headers=headers)
        assert reply.status_code == 200, reply.text
        found: int = reply.json()["usage"]["prompt_tokens_details"]["cached_tokens"]
        return found

    with serve(tmp_path / "kv", "64MiB", "--keys-db", str(tmp_path / "keys.db")) as server:
        server.client.headers["authorization"] = f"Bearer {keys['boss']}"
        before = await_ready(server)
        for count, salt in enumerate((None, "salt"), start=1):
            assert cached(server, "ann", salt) == 0
            await_on_disk(server, count * KNOWN // BLOCK)
        for pid in before.values():
            os.kill(pid, signal.SIGKILL)
        await_ready(server, before)
        until(lambda: server.cluster()["storing"]["known_blocks"] >= 40, "the disk being known")
        found = [cached(server, "eve"), cached(server, "eve", "salt"), cached(server, "boss")]
        assert found == [0, 0, 0]
        for salt in (None, "salt"):
            until(lambda: cached(server, "bob", salt) == KNOWN, "one's own tenant's being found")  # noqa: B023
        until(lambda: store(server).get("lent_disk_blocks", 0) > 0, "the disk having lent them")
        assert server.audit()["balanced"]


def test_a_store_on_a_tiny_disk_that_is_killed_under_load_costs_no_token(tmp_path: Path) -> None:
    limit = 1 << 20
    with serve(tmp_path, "1MiB") as server:
        pid = await_ready(server)["store-0"]
        with Crowd(server.url, 4) as crowd:
            until(lambda: store(server).get("disk_evicted_blocks", 0) > 0, "the disk being full")
            os.kill(pid, signal.SIGKILL)
            crowd.await_more(8)
            await_ready(server)
            until(lambda: store(server).get("disk_written_bytes", 0) > 0, "writes going on")
            crowd.await_more(8)
        assert crowd.failures == []
        assert sum(file.stat().st_blocks * 512 for file in files(tmp_path)) <= limit
        until(lambda: server.audit()["balanced"], "every account adding up")
