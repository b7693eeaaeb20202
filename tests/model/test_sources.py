"""A prompt that is read from several sources, explored."""

from __future__ import annotations

import pytest

import kvtransfer.promises.proofs
import kvtransfer.pulling.puller
from engine.kv.block_pool import BlockPool, Hold
from kvtransfer.promises.lease import LeaseTable
from tests.marks import deep
from tests.model.explore import Explorer
from tests.model.source_sides import (
    ALONE,
    GAP,
    NARROW,
    SHAPES,
    STALE,
    TIERS,
    Sources,
    with_faults,
)
from tests.model.test_explore import assert_clean, quiet

__all__ = ["quiet"]
FETCHED = {TIERS.name: 3, GAP.name: 2, STALE.name: 1, NARROW.name: 2}
"""Blocks that come from a source where nothing goes wrong."""


def fetched_blocks(configuration: Sources) -> int:
    """Of a run in which everything happens in the order in which it is found."""
    moves = Explorer(configuration).moves
    world = moves.first()
    while following := list(moves.moves(world)):
        world = following[0][1]()
    return moves.parts.revive(world.states[0]).decode.prefixes.fetched_blocks


@pytest.mark.parametrize("shape", SHAPES, ids=lambda c: c.name)
def test_what_is_there_is_read_and_every_order_ends_alike(shape: Sources) -> None:
    found = Explorer(shape).run(5_000)
    assert_clean(found)
    assert (found.is_complete, found.terminal) == (True, 1)
    assert fetched_blocks(shape) == FETCHED[shape.name]


@pytest.mark.sim
@pytest.mark.parametrize(
    "configuration",
    [one if one.has == TIERS.has else deep(one) for one in ALONE],
    ids=lambda c: c.name,
)
def test_every_state_with_one_fault_is_right_and_ends_empty(configuration: Sources) -> None:
    found = Explorer(configuration).run(20_000)
    assert_clean(found)
    assert found.is_complete


def test_search_finds_what_a_missing_digest_lets_through(monkeypatch: pytest.MonkeyPatch) -> None:
    for module in (kvtransfer.promises.proofs, kvtransfer.pulling.puller):
        monkeypatch.setattr(module, "block_digest", lambda header, block: b"")
    found = Explorer(with_faults(TIERS, "flip")).run(20_000)
    assert found.violation is not None
    assert "wrong bytes" in found.violation


def test_search_finds_what_nobody_promised(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without digests, and with leases that hold nothing, what is evicted while it is read is another's."""
    for module in (kvtransfer.promises.proofs, kvtransfer.pulling.puller):
        monkeypatch.setattr(module, "block_digest", lambda header, block: b"")
    kept = LeaseTable.grant

    def grant(table: LeaseTable, lease_id: str, hold: Hold, duration_s: float) -> None:
        pool: BlockPool = hold._pool
        kept(table, lease_id, pool.empty_hold(hold.owner), duration_s)
        hold.release()

    assert_clean(Explorer(with_faults(TIERS, "evict")).run(20_000))
    monkeypatch.setattr(LeaseTable, "grant", grant)
    found = Explorer(with_faults(TIERS, "evict")).run(20_000)
    assert found.violation is not None
    assert "wrong bytes" in found.violation
