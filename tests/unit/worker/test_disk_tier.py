"""The disk under a store's pool: what is used is kept, what is asked for is loaded as far as it is proven."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from kvtransfer.sharing.exchange import Load, Loaded
from kvtransfer.store.log import BlockLog
from tests.patience import PATIENCE_S, is_readable
from tests.store.blocks import BLOCK_BYTES, IDENTITY, data, key, opened
from worker.disk_tier import DiskTier


class Pool:
    """Blocks in host memory. Satisfies as much of BlockMemory as the tier needs."""

    def __init__(self, num_blocks: int) -> None:
        self.content = bytearray(num_blocks * BLOCK_BYTES)
        self.filled: list[int] = []

    def readable(self, first: int, count: int) -> memoryview:
        return memoryview(self.content)[first * BLOCK_BYTES : (first + count) * BLOCK_BYTES]

    def writable(self, first: int, count: int) -> memoryview:
        return self.readable(first, count)

    def written(self, first: int, count: int) -> None:
        self.filled += range(first, first + count)


class Store:
    """A tier over a log, and a pool of eight blocks of which the first four hold blocks 0 to 3."""

    def __init__(self, path: Path) -> None:
        self.log: BlockLog = opened(path)
        self.pool = Pool(8)
        for number in range(4):
            self.pool.writable(number, 1)[:] = data(number)
        self.tier = DiskTier(self.log, self.pool, IDENTITY, 16)  # type: ignore[arg-type]

    def keep(self, *numbers: int) -> None:
        """Offered twice, as what is kept and then lent is."""
        for _ in range(2):
            self.tier.used([key(n) for n in numbers], bytes(16), list(numbers))
        self.log.flush()

    def load(self, *numbers: int, into: int = 4) -> Loaded:
        block_ids = list(range(into, into + len(numbers)))
        self.tier.load(Load(7, [key(number) for number in numbers], block_ids))
        ready = is_readable(self.tier.fileno(), PATIENCE_S)
        assert ready
        (loaded,) = self.tier.done()
        return loaded


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Store]:
    found = Store(tmp_path)
    yield found
    found.tier.close()


def test_what_was_used_is_loaded_again(store: Store) -> None:
    store.keep(0, 1, 2)
    assert store.load(0, 1, 2) == Loaded(7, 3)
    assert bytes(store.pool.readable(5, 1)) == data(1)
    assert store.pool.filled == [4, 5, 6]


def test_load_ends_at_the_first_block_that_is_not_there(store: Store) -> None:
    store.keep(0, 1, 3)
    assert store.load(0, 1, 2, 3) == Loaded(7, 2)
    assert store.pool.filled == [4, 5]


def test_block_that_is_damaged_is_not_loaded(store: Store, tmp_path: Path) -> None:
    store.keep(0)
    for file in (path for path in tmp_path.rglob("*") if path.stat().st_size > BLOCK_BYTES):
        content = bytearray(file.read_bytes())
        where = content.find(data(0)[:64])
        content[where] ^= 1
        file.write_bytes(content)
    assert store.load(0) == Loaded(7, 0)
    assert not store.tier.contains(key(0))
    assert store.tier.stats.proofs_failed == 1


def test_a_disk_that_fails_ends_the_load_and_not_the_thread(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    store.keep(0)
    with monkeypatch.context() as patch:
        patch.setattr(store.log, "read", lambda *_: 1 / 0)
        assert store.load(0) == Loaded(7, 0)
    assert store.load(0) == Loaded(7, 1)


def test_changes_are_told_once_each_as_it_is_now(store: Store) -> None:
    store.keep(0, 1)
    changes = store.tier.take_changes()
    assert changes is not None
    assert set(changes[0]) == {key(0), key(1)}
    assert store.tier.take_changes() == ([], [])
    assert set(store.tier.keys()) == {key(0), key(1)}


def test_closing_writes_what_waits(tmp_path: Path) -> None:
    store = Store(tmp_path)
    for _ in range(2):
        store.tier.used([key(0)], bytes(16), [0])
    store.tier.close()
    log = opened(tmp_path)
    assert log.contains(key(0))
    log.close()
