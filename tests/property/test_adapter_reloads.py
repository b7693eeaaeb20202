"""One adapter's name and path, loaded ten thousand times with other content: no block of an earlier content is ever found."""

from __future__ import annotations

import asyncio
import hashlib
import random

import pytest

from coordinator.cluster.block_index import BlockIndex
from coordinator.cluster.router import PrefixMemory
from coordinator.edge.answers.adapters import AdapterBook, KeptContents
from engine.kv.prefix_cache import PrefixCache
from protocol.clock import ManualClock
from protocol.content_keys import block_keys, content_salt, root_key
from protocol.messages.reports import BlocksChanged
from tests.marks import deep

NAME, PATH, WORKER, START = "sql", "/adapters/sql", "decode-0", "start"
BLOCK_SIZE, NUM_BLOCKS, NUM_CONTENTS = 16, 4096, 40
PROMPTS = [[first, *range(100 * first, 100 * first + 63)] for first in range(3)]


class Disk:
    """What lies under the path now, and what is kept of it."""

    def __init__(self) -> None:
        self.content = b""
        self.contents = KeptContents(self._prepare, lambda _: None, set)

    def _prepare(self, path: str) -> str:
        assert path == PATH
        return hashlib.sha256(self.content).hexdigest()


class Worker:
    """Its cache, what the coordinator believes of it, and which content computed what each of these knows."""

    def __init__(self) -> None:
        self.cache, self.index, self.memory = PrefixCache(), BlockIndex(), PrefixMemory(BLOCK_SIZE)
        self.cache.changes.begin()
        self.cache.changes.take()
        self.index.said(WORKER, BlocksChanged(incarnation=START, number=1, is_anew=True))
        self._number = 1
        self._made: dict[int, bytes] = {}
        self._told: dict[bytes, bytes] = {}
        self._hinted: dict[tuple[int, str], bytes] = {}

    def answer(self, prompt: list[int], salt: str, content: bytes) -> list[bytes]:
        """Which content made each of the blocks that were found, by the worker, the index of blocks and the memory of prefixes."""
        keys = block_keys(root_key(b"model", salt), prompt, BLOCK_SIZE)
        found = [self._made[block] for block in self.cache.longest_prefix(keys)]
        found += [self._told[key] for key in keys[: self.index.run_at(WORKER, keys)]]
        if self.memory.hits(prompt, salt):
            found.append(self._hinted[prompt[0], salt])
        self._compute(keys, content)
        self.memory.remember(prompt, salt, [WORKER])
        self._hinted.setdefault((prompt[0], salt), content)
        return found

    def _compute(self, keys: list[bytes], content: bytes) -> None:
        for key in keys:
            if not self.cache.has(key):
                full = len(self.cache) == NUM_BLOCKS
                block = self.cache.evict() if full else len(self.cache)
                self.cache.store(block, key)
                self.cache.mark_idle(block)
                self._made[block] = self._told[key] = content
        stored, evicted = self.cache.changes.take()
        self._number += 1
        changed = BlocksChanged(
            incarnation=START, number=self._number, stored=stored, evicted=evicted
        )
        self.index.said(WORKER, changed)


def found_in(reloads: int, seed: int, *, by_name: bool = False) -> tuple[int, int]:
    """How many blocks were found in so many reloads, and how many of these another content had made. `by_name`: with keys
    that know an adapter by its name and path."""
    chance, disk, worker = random.Random(seed), Disk(), Worker()
    contents = [chance.randbytes(16) for _ in range(NUM_CONTENTS)]

    async def run() -> tuple[int, int]:
        book = AdapterBook({"base": disk.contents}, ManualClock(), {"base": "base"})
        found = stale = 0
        for _ in range(reloads):
            disk.content = (
                chance.choice(contents) if chance.random() < 0.7 else chance.randbytes(16)
            )
            await book.load(NAME, PATH, in_place=True)
            known = book.find(NAME)
            assert known is not None
            for prompt in chance.choices(PROMPTS, k=2):
                salt = content_salt("", PATH if by_name else known.ref.digest)
                blocks = worker.answer(prompt, salt, disk.content)
                found += len(blocks)
                stale += sum(made != disk.content for made in blocks)
            if chance.random() < 0.1:
                await book.unload(NAME)
        return found, stale

    return asyncio.run(run())


@pytest.mark.parametrize("reloads", [1000, deep(10_000)])
def test_what_replaces_an_adapter_finds_none_of_its_blocks(reloads: int) -> None:
    found, stale = found_in(reloads, seed=1)
    assert found > reloads  # contents come back, and find their own
    assert stale == 0


def test_keys_that_knew_an_adapter_by_its_path_would_find_them() -> None:
    _, stale = found_in(100, seed=1, by_name=True)
    assert stale > 100
