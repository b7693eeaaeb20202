"""A network that cuts, resets, stalls, delays and corrupts, between a reader and its source over zmq.

The ucx and nixl roads are in `test_transport_detours.py`.
"""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import time
from urllib.parse import urlsplit

import pytest

from kvtransfer.pulling.puller import BASE_TIMEOUT_S, MIN_RATE_BYTES_S
from kvtransfer.transports import zmq_tcp
from protocol.errors import DigestMismatch, PeerLost, TransferError
from tests.e2e.fault_proxy import Fault, FaultProxy
from tests.e2e.transport_rig import ROOT, Reader, start_peer
from tests.marks import deep
from tests.patience import PATIENCE_S, until

pytestmark = [pytest.mark.e2e]
NUM_BLOCKS, BLOCK_BYTES = 32, 256 << 10
ALL = list(range(NUM_BLOCKS))
SILENCE_S = 3.0
"""A connection that says nothing for so long is given up."""
WHOLE_PULL_S = BASE_TIMEOUT_S + NUM_BLOCKS * BLOCK_BYTES / MIN_RATE_BYTES_S
"""What a pull has when nobody says how long."""


class Path:
    """A source, a reader, and a proxy on the way from one to the other."""

    def __init__(self, directory, fault):
        self.peer = start_peer("zmq", directory, num_blocks=NUM_BLOCKS, block_bytes=BLOCK_BYTES)
        self.peer.do("lease", "lease", ALL)
        target = urlsplit(self.peer.address.transports["zmq"])
        assert target.port is not None
        self.proxy = FaultProxy(("127.0.0.1", target.port), fault)
        self.direct = self.peer.address
        self.through = self.peer.address_at(f"tcp://127.0.0.1:{self.proxy.port}")
        self.reader = Reader("zmq", directory, NUM_BLOCKS, BLOCK_BYTES)

    def pull(self, **overrides):
        return self.reader.pull(self.peer, ALL, address=self.through, **overrides)

    def heal(self):
        """No fault from now on, for new connections."""
        self.proxy.fault = Fault()

    def close(self):
        self.reader.close()
        self.proxy.close()
        self.peer.close()


@pytest.fixture
def path(request, tmp_path):
    path = Path(tmp_path, request.param)
    yield path
    path.close()


def faults(*cases):
    return pytest.mark.parametrize("path", cases, indirect=True, ids=repr)


@faults(Fault())
def test_no_fault(path):
    assert path.pull().error is None


@faults(
    deep(Fault(cut_at=0)),
    deep(Fault(cut_at=0, reset=True)),
    Fault(cut_at=40),
    deep(Fault(cut_at=40, reset=True)),
    deep(Fault(cut_at=5_000_000)),
    Fault(cut_at=5_000_000, reset=True),
)
def test_a_cut_connection_is_named_and_the_next_pull_is_right(path):
    error = path.pull().error
    assert path.proxy.did.is_set()
    assert isinstance(error, PeerLost)
    path.heal()
    assert path.pull().error is None


@faults(Fault(corrupt_at=3_000_000), Fault(corrupt_at=8_000_000))
def test_a_flipped_payload_bit_is_found_by_the_digest(path):
    error = path.pull().error
    assert path.proxy.did.is_set()
    assert isinstance(error, DigestMismatch)
    path.heal()
    assert path.pull().error is None


@faults(
    *(Fault(corrupt_at=at) for at in (66, 260)),
    *(deep(Fault(corrupt_at=at)) for at in (0, 10, 12, 70, 100, 130, 160, 200, 230, 300)),
)
def test_a_flipped_bit_of_the_framing_never_passes_for_a_transfer(path):
    """Greeting, handshake, heartbeat and headers: an error, or a flip that nobody reads."""
    done = path.pull(timeout_s=4.0)
    assert path.proxy.did.is_set()
    assert done.error is None or isinstance(done.error, TransferError)
    path.heal()
    assert path.pull().error is None


@faults(Fault(stall_at=2_000_000))
def test_a_stalled_connection_ends_in_time(path):
    start_s = time.perf_counter()
    error = path.pull().error
    assert path.proxy.did.is_set()
    assert isinstance(error, PeerLost)
    assert time.perf_counter() - start_s < WHOLE_PULL_S


@faults(Fault(stall_at=2_000_000))
def test_a_transfer_ends_by_the_deadline_of_its_request(path):
    start_s = time.perf_counter()
    assert isinstance(path.pull(timeout_s=0.5).error, PeerLost)
    assert time.perf_counter() - start_s < SILENCE_S


@faults(Fault(latency_s=0.01))
def test_a_slow_network_only_takes_longer(path):
    assert path.pull().error is None


@faults(Fault())
def test_a_connection_that_broke_while_idle_is_made_anew(path):
    assert path.pull().error is None
    path.proxy.break_connections()
    assert path.pull().error is None


@faults(Fault(stall_at=2_000_000))
def test_replies_that_come_after_a_timeout_write_nowhere(path):
    job = path.reader.job(path.peer, ALL, address=path.through, timeout_s=0.3)
    (done,) = path.reader.results()
    assert isinstance(done.error, PeerLost)
    before = [bytes(path.reader.memory.block(i)) for i in job.target_ids]
    path.proxy._closing.set()  # the stalled bytes flow on
    path.heal()
    hold = path.reader.holds.pop(job.key)
    hold.release()
    other = path.reader.pull(path.peer, ALL[:1], address=path.direct)
    assert other.error is None
    written = other.job.target_ids[0]
    after = [bytes(path.reader.memory.block(i)) for i in job.target_ids]
    changed = [i for i, b, a in zip(job.target_ids, before, after, strict=True) if b != a]
    assert set(changed) <= {written}


@faults(Fault(latency_s=0.03))
def test_a_reader_that_was_stopped_itself_reads_on(path, tmp_path):
    """The source ends a connection that says nothing for three seconds; who was stopped makes it anew."""
    told = {
        "directory": str(tmp_path),
        "incarnation": path.peer.spec["incarnation"],
        "address": path.through.transports["zmq"],
        "num_blocks": NUM_BLOCKS,
        "block_bytes": BLOCK_BYTES,
    }
    command = [sys.executable, "-m", "tests.e2e.paused_reader", json.dumps(told)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, cwd=ROOT) as reader:
        await_bytes(path.proxy, 1_000_000)
        reader.send_signal(signal.SIGSTOP)
        time.sleep(6.0)
        reader.send_signal(signal.SIGCONT)
        path.heal()
        said, _ = reader.communicate(timeout=PATIENCE_S)
    assert json.loads(said) == {"error": None}
    assert path.proxy.num_connections == 2


def await_bytes(proxy, count):
    until(lambda: proxy.passed_bytes >= count, f"the first {count} bytes", every_s=0.01)


def test_memory_under_way_is_bounded():
    assert zmq_tcp.WINDOW * zmq_tcp.MAX_REQUEST_BYTES <= 16 << 20
