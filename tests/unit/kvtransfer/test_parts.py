"""The pure parts: digest, runs, handshake, choice of roads."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from engine.kv.block_pool import BlockPool
from engine.kv.pool_memory import KvMemory
from kvtransfer.promises import proofs
from kvtransfer.promises.lease import LeaseTable
from kvtransfer.runs import group_runs, join_runs
from kvtransfer.transport import LocalPool
from kvtransfer.transports import handshake, rdma, select
from protocol.clock import ManualClock
from protocol.errors import (
    ConfigError,
    LayoutMismatch,
    LeaseExpired,
    PeerLost,
    ProtocolError,
    TransferError,
)
from protocol.failures import ErrorKind, Failure, transfer_error_of

HEADER = proofs.digest_header(b"f" * 32, proofs.full_block_identity(b"key"), 3, 7)


def _pool(**changes):
    leases = LeaseTable(ManualClock())
    blocks = BlockPool(8)
    hold = blocks.allocate(4, "lease:x")
    assert hold is not None
    leases.grant("x", hold, 5.0)
    given_ = {"incarnation": "i", "fingerprint": b"f", **changes}
    return LocalPool(KvMemory(8, 64), leases, **given_), hold.block_ids


def test_the_header_has_its_documented_size():
    assert len(HEADER) == 92


def test_a_digest_has_sixteen_bytes_and_repeats():
    assert len(proofs.block_digest(HEADER, b"block")) == proofs.DIGEST_BYTES
    assert proofs.block_digest(HEADER, b"block") == proofs.block_digest(HEADER, b"block")


@pytest.mark.parametrize(
    "header",
    [
        proofs.digest_header(b"g" * 32, proofs.full_block_identity(b"key"), 3, 7),
        proofs.digest_header(b"f" * 32, proofs.full_block_identity(b"kez"), 3, 7),
        proofs.digest_header(b"f" * 32, proofs.full_block_identity(b"key"), 4, 7),
        proofs.digest_header(b"f" * 32, proofs.full_block_identity(b"key"), 3, 8),
        proofs.digest_header(b"f" * 32, proofs.partial_block_identity("key", 0), 3, 7),
    ],
    ids=["fingerprint", "key", "index", "generation", "partial"],
)
def test_every_field_of_the_header_is_in_the_digest(header):
    assert proofs.block_digest(header, b"block") != proofs.block_digest(HEADER, b"block")


def test_a_partial_block_belongs_to_one_attempt():
    assert proofs.partial_block_identity("r", 1) != proofs.partial_block_identity("r", 2)
    assert proofs.partial_block_identity("r/1", 2) != proofs.partial_block_identity("r", 12)


@given(st.binary(min_size=1, max_size=4096), st.data())
def test_any_flipped_bit_changes_the_digest(block, data):
    bit = data.draw(st.integers(0, len(block) * 8 - 1))
    flipped = bytearray(block)
    flipped[bit // 8] ^= 1 << bit % 8
    assert proofs.block_digest(HEADER, block) != proofs.block_digest(HEADER, flipped)


IDS = st.lists(st.integers(0, 40), unique=True, max_size=30)


@given(IDS, st.integers(1, 8), st.integers(1, 5))
def test_grouped_runs_say_the_same_as_the_ids(source_ids, max_blocks, max_runs):
    target_ids = sorted(source_ids)
    groups = group_runs(source_ids, target_ids, max_blocks, max_runs)
    pairs = [
        (run.source + i, run.target + i)
        for group in groups
        for run in group
        for i in range(run.length)
    ]
    assert pairs == list(zip(source_ids, target_ids, strict=True))
    for group in groups:
        assert sum(run.length for run in group) <= max_blocks
        assert len(group) <= max_runs


def test_neighbours_are_joined():
    assert join_runs([4, 5, 6, 9], [1, 2, 3, 4]) == [(4, 1, 3), (9, 4, 1)]


def test_ids_of_different_number_are_refused():
    with pytest.raises(ValueError, match="shorter"):
        join_runs([1, 2], [1])


def test_a_leased_run_is_not_refused():
    pool, block_ids = _pool()
    assert handshake.refusal(pool, "i", "x", [(min(block_ids), 4)]) is None


@pytest.mark.parametrize(
    ("incarnation", "lease_id", "runs", "error"),
    [
        ("j", "x", [(0, 1)], PeerLost),
        ("i", "y", [(0, 1)], LeaseExpired),
        ("i", "x", [(4, 1)], LeaseExpired),
        ("i", "x", [(8, 1)], TransferError),
        ("i", "x", [(0, 0)], TransferError),
        ("i", "x", [(0, 1 << 40)], TransferError),
        ("i", "x", [(0, 4)] * 3, TransferError),
    ],
)
def test_what_is_refused_and_the_error_it_becomes(incarnation, lease_id, runs, error):
    pool, _ = _pool()
    failure = handshake.refusal(pool, incarnation, lease_id, runs)
    assert failure is not None
    assert type(transfer_error_of(failure)) is error


@pytest.mark.parametrize(
    ("changes", "error"),
    [
        ({"incarnation": "j"}, PeerLost),
        ({"block_bytes": 65}, LayoutMismatch),
        ({"fingerprint": b"g"}, LayoutMismatch),
        ({"version": 1}, LayoutMismatch),
        ({"error": Failure(ErrorKind.LEASE_EXPIRED, "over")}, LeaseExpired),
    ],
)
def test_an_answer_that_differs_is_named(changes, error):
    pool, _ = _pool()
    greeting = handshake.greeting_for(pool, "i")
    answer = handshake.Answer(
        **{
            "incarnation": "i",
            "block_bytes": 64,
            "num_blocks": 8,
            "fingerprint": b"f",
            **changes,
        }
    )
    assert not handshake.are_same(greeting, answer)
    with pytest.raises(error):
        handshake.check_answer(greeting, answer)


def test_a_pool_without_fingerprint_is_compared_by_size_alone():
    pool, _ = _pool(fingerprint=b"")
    other, _ = _pool()
    assert handshake.are_same(handshake.greeting_for(pool, "i"), handshake.answer_of(other))


@given(st.binary(max_size=200))
def test_bytes_from_the_network_never_raise_anything_but_protocol_errors(frame):
    for decoder in (handshake.greeting_decoder, handshake.answer_decoder):
        try:
            decoder.decode(frame)
        except ProtocolError:
            continue


def test_auto_leaves_rdma_roads_out_where_there_is_no_rdma(tmp_path, monkeypatch):
    monkeypatch.setattr(select, "usable", lambda: dict.fromkeys(select.PREFERENCE))
    monkeypatch.setattr(rdma, "DEVICES", tmp_path / "none")
    assert select.chosen_names("auto") == ("shm", "zmq")
    (tmp_path / "mlx5_0").mkdir()
    monkeypatch.setattr(rdma, "DEVICES", tmp_path)
    assert select.chosen_names("auto") == ("shm", "nixl", "ucx", "zmq")


def test_a_forced_road_that_is_missing_says_what_to_install(monkeypatch):
    monkeypatch.setattr(select, "usable", lambda: {"ucx": "optional: pip install ucxx-cu12"})
    with pytest.raises(ConfigError, match="pip install ucxx-cu12"):
        select.chosen_names("ucx")


def test_an_unknown_road_is_refused():
    with pytest.raises(ConfigError, match="unknown transport"):
        select.chosen_names("carrier-pigeon")
