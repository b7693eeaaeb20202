"""One set of facts for every road: right bytes, or an error that names the cause; blocks back; source unharmed.

Moments inside a transfer are hit through the digest check, which runs as blocks land: no sleeping.
"""

from __future__ import annotations

import random
import threading
import time
from pathlib import Path

import pytest

import kvtransfer.pulling.puller
import kvtransfer.transports.cuda_ipc
from kvtransfer.promises.proofs import block_digest
from kvtransfer.transports.select import usable
from protocol.errors import (
    DigestMismatch,
    LayoutMismatch,
    LeaseExpired,
    PeerLost,
    TransferError,
)
from tests.e2e.transport_rig import RESULT_TIMEOUT_S, Reader, start_peer

pytestmark = [pytest.mark.e2e]
MIB = 1 << 20


def _road(name, *marks):
    reason = usable().get(name, "not known")
    usable_mark = pytest.mark.skipif(reason is not None, reason=f"{name}: {reason}")
    return pytest.param(name, marks=[*marks, usable_mark, pytest.mark.nixl])


def _on_gpu(name):
    """A road between pools on a GPU, as road@cuda."""
    marks = [pytest.mark.gpu, pytest.mark.skipif(not GPU, reason="no NVIDIA GPU")]
    return pytest.param(f"{name}@cuda", marks=marks)


GPU = Path("/dev/nvidiactl").exists()
ROADS = [
    "inprocess",
    "shm",
    "zmq",
    _road("ucx"),
    _road("nixl", pytest.mark.deep),
    _on_gpu("cuda"),
    _on_gpu("zmq"),
]
REMOTE_ROADS = ROADS[1:]
MAPPED = ("shm", "cuda")
"""The reader copies from the peer's memory itself."""


class Rig:
    """Makes peers and readers of one road, and checks at the end that nothing is left."""

    def __init__(self, road, directory):
        self.transport, _, memory = road.partition("@")
        self.memory = memory or "host"
        self.directory = directory
        self.made = []

    def peer(self, **overrides):
        peer = start_peer(self.transport, self.directory, memory=self.memory, **overrides)
        self.made.append(peer)
        if not overrides.pop("unleased", False):
            peer.do("lease", "lease", list(range(peer.spec["num_blocks"])))
        return peer

    def reader(self, num_blocks=128, block_bytes=4096):
        reader = Reader(self.transport, self.directory, num_blocks, block_bytes, self.memory)
        self.made.append(reader)
        return reader


@pytest.fixture(params=ROADS)
def rig(request, tmp_path, monkeypatch):
    monkeypatch.setattr(kvtransfer.transports.cuda_ipc, "PIECE_BYTES", MIB)
    rig = Rig(request.param, tmp_path)
    yield rig
    for made in reversed(rig.made):
        made.close()


@pytest.fixture
def at_landing(monkeypatch):
    """at_landing(n, act): when the n-th digest is checked, `act` runs first, once. Another thread that copies for the
    same read waits meanwhile: it would be through before the act is."""

    def install(number, act):
        counted, lock = 0, threading.Lock()

        def digest(header, block):
            nonlocal counted
            with lock:
                counted += 1
                if counted == number:
                    act()
            return block_digest(header, block)

        monkeypatch.setattr(kvtransfer.pulling.puller, "block_digest", digest)

    return install


def test_one_block(rig):
    peer, reader = rig.peer(), rig.reader()
    done = reader.pull(peer, [7])
    assert done.error is None
    assert done.road == rig.transport
    assert done.num_bytes == 4096


def test_no_block(rig):
    peer, reader = rig.peer(), rig.reader()
    assert reader.pull(peer, []).error is None


def test_ten_thousand_blocks(rig):
    peer = rig.peer(num_blocks=10_000, block_bytes=512)
    reader = rig.reader(10_000, 512)
    assert reader.pull(peer, list(range(10_000))).error is None
    assert peer.do("is_unharmed")


def test_ten_thousand_scattered_blocks(rig):
    peer = rig.peer(num_blocks=10_000, block_bytes=512)
    reader = rig.reader(10_000, 512)
    ids = random.Random(3).sample(range(10_000), 10_000)
    assert reader.pull(peer, ids).error is None
    assert peer.do("is_unharmed")


def test_blocks_larger_than_a_request(rig):
    peer = rig.peer(num_blocks=6, block_bytes=3 * MIB)
    reader = rig.reader(6, 3 * MIB)
    assert reader.pull(peer, [4, 5, 1, 0]).error is None


def test_concurrent_pulls_from_two_peers(rig):
    peers = [rig.peer(seed=1), rig.peer(seed=2)]
    peers[1].name = "prefill-1"
    peers[1].address = peers[1].address_at(peers[1].address.transports[rig.transport])
    reader = rig.reader(2048)
    choose = random.Random(5)
    wanted = {}
    for number in range(40):
        peer = peers[number % 2]
        job = reader.job(peer, choose.sample(range(64), 32))
        wanted[job.key] = peer
    for done in reader.results(40):
        assert done.error is None
        reader.finish(done, wanted[done.job.key])


def test_several_readers_of_one_peer(rig):
    peer = rig.peer()
    readers = [rig.reader() for _ in range(3)]
    for reader in readers:
        reader.job(peer, list(range(64)))
    for reader in readers:
        (done,) = reader.results()
        assert done.error is None
        reader.finish(done, peer)
    assert peer.do("is_unharmed")


def test_peer_killed_before(rig):
    peer, reader = rig.peer(), rig.reader()
    peer.kill()
    assert isinstance(reader.pull(peer, [1, 2]).error, PeerLost)


def test_peer_killed_during(rig, at_landing):
    peer = rig.peer(num_blocks=48, block_bytes=MIB)
    reader = rig.reader(48, MIB)
    at_landing(3, peer.kill)
    start_s = time.perf_counter()
    done = reader.pull(peer, list(range(48)))
    assert isinstance(done.error, PeerLost)
    assert time.perf_counter() - start_s < RESULT_TIMEOUT_S / 2


def test_peer_killed_after(rig):
    peer, reader = rig.peer(), rig.reader()
    assert reader.pull(peer, [1, 2]).error is None
    peer.kill()
    assert isinstance(reader.pull(peer, [3]).error, PeerLost)


def test_other_peers_are_served_while_one_is_stopped(rig):
    if rig.transport == "inprocess":
        pytest.skip("one process cannot be stopped in part")
    stopped, alive = rig.peer(), rig.peer(seed=9)
    alive.name = "prefill-1"
    alive.address = alive.address_at(alive.address.transports[rig.transport])
    reader = rig.reader()
    assert reader.pull(stopped, [0]).error is None
    stopped.stop()
    reader.job(stopped, [1, 2])
    key = reader.job(alive, [3, 4]).key
    first, second = reader.results(2)
    if rig.transport not in MAPPED:  # a stopped process's memory can be read as well
        assert first.job.key == key
        assert isinstance(second.error, PeerLost)
    for done in (first, second):
        reader.finish(done, alive if done.job.key == key else stopped)
    stopped.resume()
    assert reader.pull(stopped, [5]).error is None


def test_peer_stopped_during_then_continued(rig, at_landing):
    if rig.transport == "inprocess":
        pytest.skip("one process cannot be stopped in part")
    peer = rig.peer(num_blocks=48, block_bytes=MIB)
    reader = rig.reader(48, MIB)
    at_landing(3, peer.stop)
    done = reader.pull(peer, list(range(48)), timeout_s=5.0)
    assert done.error is None or isinstance(done.error, PeerLost)
    peer.resume()
    assert reader.pull(peer, list(range(48))).error is None
    assert peer.do("is_unharmed")


def test_forgotten_peer_fails_its_pull_at_once(rig, at_landing):
    if rig.transport == "inprocess":
        pytest.skip("one process cannot be stopped in part")
    peer = rig.peer(num_blocks=48, block_bytes=MIB)
    reader = rig.reader(48, MIB)

    def stop():
        peer.stop()
        reader.puller.forget_peer(peer.name)

    at_landing(3, stop)
    start_s = time.perf_counter()
    assert isinstance(reader.pull(peer, list(range(48))).error, PeerLost)
    assert time.perf_counter() - start_s < RESULT_TIMEOUT_S / 2


def test_lease_unknown(rig):
    peer, reader = rig.peer(), rig.reader()
    done = reader.pull(peer, [1], lease_id="never granted")
    if rig.transport in MAPPED:  # one user's processes on one host: the bytes decide
        assert done.error is None
    else:
        assert isinstance(done.error, LeaseExpired)


def test_lease_of_other_blocks(rig):
    peer, reader = rig.peer(), rig.reader()
    peer.do("lease", "narrow", [1, 2])
    assert reader.pull(peer, [1, 2], lease_id="narrow").error is None
    if rig.transport not in MAPPED:
        assert isinstance(reader.pull(peer, [2, 3], lease_id="narrow").error, LeaseExpired)


def test_lease_expired_before_and_blocks_reused(rig):
    peer, reader = rig.peer(), rig.reader()
    peer.do("end_lease", "lease")
    peer.do("overwrite", [1], 0xAA)
    assert isinstance(reader.pull(peer, [0, 1]).error, LeaseExpired)


def test_lease_expired_mid_read(rig, at_landing):
    peer = rig.peer(num_blocks=48, block_bytes=MIB)
    reader = rig.reader(48, MIB)

    def expire():
        peer.do("end_lease", "lease")
        peer.do("overwrite", list(range(4, 48)), 0xAA)

    at_landing(3, expire)
    assert isinstance(reader.pull(peer, list(range(48))).error, LeaseExpired)


def test_bytes_that_changed_under_a_valid_lease(rig):
    peer, reader = rig.peer(), rig.reader()
    peer.do("flip", 2, 4095)
    assert isinstance(reader.pull(peer, [1, 2, 3]).error, DigestMismatch)
    assert reader.pull(peer, [1, 3]).error is None


def test_torn_block(rig):
    peer, reader = rig.peer(), rig.reader()
    for offset in range(2048, 4096, 64):
        peer.do("flip", 5, offset)
    assert isinstance(reader.pull(peer, [5]).error, DigestMismatch)


def test_a_road_that_delivers_wrong_bytes_three_times_is_not_used(rig):
    peer, reader = rig.peer(), rig.reader()
    peer.do("flip", 2, 0)
    for _ in range(3):
        assert isinstance(reader.pull(peer, [2]).error, DigestMismatch)
    error = reader.pull(peer, [1]).error
    assert isinstance(error, TransferError)
    assert "wrong bytes" in str(error)


def test_wrong_block_size(rig):
    peer, reader = rig.peer(block_bytes=8192), rig.reader()
    reader.job(peer, [1])
    (done,) = reader.results()
    reader.holds.pop(done.job.key).release()
    assert isinstance(done.error, LayoutMismatch)
    assert done.error.field == "block_bytes"
    assert peer.do("is_unharmed")


def test_wrong_fingerprint(rig):
    peer, reader = rig.peer(fingerprint=(b"g" * 32).hex()), rig.reader()
    done = reader.pull(peer, [1])
    assert isinstance(done.error, LayoutMismatch)
    assert done.error.field == "fingerprint"


def test_block_outside_the_pool(rig):
    peer, reader = rig.peer(), rig.reader()
    assert isinstance(reader.pull(peer, [64]).error, TransferError)
    assert reader.pull(peer, [63]).error is None


def test_right_bytes_of_another_block(rig):
    """Row 29: what another block holds does not pass for this one."""
    peer, reader = rig.peer(), rig.reader()
    job = reader.job(peer, [1])
    swapped = reader.job(peer, [2])
    reader.results(2)
    for key in (job.key, swapped.key):
        reader.holds.pop(key).release()
    hold = reader.pool.allocate(1, "pull:x")
    reader.holds["x", 0] = hold
    reader.puller.submit(
        type(job)(("x", 0), job.source, "lease", [2], hold.block_ids, job.headers, job.digests)
    )
    (done,) = reader.results()
    assert isinstance(done.error, DigestMismatch)
    reader.holds.pop(("x", 0)).release()


def test_two_peers_with_the_same_name(rig):
    first, second = rig.peer(seed=1), rig.peer(seed=2)
    reader = rig.reader()
    for _ in range(3):
        assert reader.pull(first, [1, 2]).error is None
        assert reader.pull(second, [1, 2]).error is None


def test_another_start_at_the_same_address(rig):
    first, reader = rig.peer(seed=1), rig.reader()
    address = first.address.transports[rig.transport]
    assert reader.pull(first, [1]).error is None
    first.kill()
    second = rig.peer(seed=2, address=address)
    error = reader.pull(first, [1]).error
    assert isinstance(error, PeerLost)
    assert "restarted" in str(error)
    assert reader.pull(second, [1]).error is None


def test_nothing_but_a_socket_path_is_left_after_a_kill(rig):
    peer, reader = rig.peer(), rig.reader()
    assert reader.pull(peer, [1]).error is None
    peer.kill()
    assert isinstance(reader.pull(peer, [1]).error, PeerLost)
    left = [path for path in rig.directory.iterdir() if not path.is_socket()]
    assert left == []
