"""Workers' memory of their own, over 600 lengths of prompts: what they take they take at the start and while they warm up."""

from __future__ import annotations

import random
import re
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from tests.e2e.random_model import write_random_model
from tests.e2e.server import Server
from tests.marks import deep

pytestmark = [pytest.mark.e2e, pytest.mark.slow]
LONGEST = 1200
WARM_UP = (LONGEST, 513, 512, *range(3, 100))
GROWTH = 1.05


def own_bytes(pid: int) -> int:
    """Of one process alone, without its KV pool, whose pages it takes as blocks are first used, and shared weights: both are files."""
    rollup = Path(f"/proc/{pid}/smaps_rollup").read_text(encoding="ascii")
    found = re.search(r"^Anonymous: +(\d+) kB", rollup, re.MULTILINE)
    assert found is not None
    return int(found[1]) << 10


@pytest.mark.parametrize("num_lengths", [deep(600)])
def test_memory_is_flat_over_lengths_in_both_roles(tmp_path: Path, num_lengths: int) -> None:
    rng = random.Random(0)
    lengths = rng.sample(range(1, LONGEST), num_lengths)
    model = str(write_random_model(tmp_path))
    arguments = ("--pd", "1p1d", "--kv-cache-memory", "64MiB", "--max-num-seqs", "16")
    with Server(model, *arguments, afresh=True) as server, ThreadPoolExecutor(4) as clients:
        pids = {worker["role"]: worker["pid"] for worker in server.cluster()["workers"]}

        def ask(length: int) -> None:
            prompt = [rng.randrange(100, 49_000) for _ in range(length)]
            answer = server.complete(prompt=prompt, max_tokens=4, ignore_eos=True)
            assert answer["usage"]["prompt_tokens"] == length

        list(clients.map(ask, WARM_UP))
        before = {role: own_bytes(pid) for role, pid in pids.items()}
        list(clients.map(ask, lengths))
        after = {role: own_bytes(pid) for role, pid in pids.items()}
        print({role: (before[role], after[role]) for role in pids})
    assert all(after[role] < GROWTH * before[role] for role in pids), (before, after)
