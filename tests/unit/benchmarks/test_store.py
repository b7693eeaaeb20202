"""`baton bench store` counts hits of a real log against an ideal one on the same requests."""

from __future__ import annotations

import argparse
from pathlib import Path

from benchmarks.store.bench import ideal_hits, measure_disk, replay

CHATS = [list(range(chat * 100, chat * 100 + turns)) for turns in range(1, 9) for chat in range(5)]
"""Five conversations that grow by a block each turn, in turn."""


def test_an_ideal_lru_finds_all_but_what_is_new_when_everything_fits() -> None:
    assert ideal_hits(CHATS, 1000) == sum(map(len, CHATS)) - 5 * 8


def test_a_log_with_room_for_all_finds_what_the_ideal_does(tmp_path: Path) -> None:
    found = replay(tmp_path, CHATS, 200)
    assert found["of_ideal"] == 1.0
    assert found["proofs_failed"] == 0


def test_rates_are_measured_beside_the_bare_disk(tmp_path: Path) -> None:
    asked = argparse.Namespace(block_bytes=8192, blocks=20, threads=2, repeats=1)
    found = measure_disk(tmp_path, asked)
    assert found["read_of_bare"] > 0
    assert list(tmp_path.iterdir()) == [tmp_path / "log"]
    assert list((tmp_path / "log").iterdir()) == []
