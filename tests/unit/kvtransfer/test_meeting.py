"""Workers that differ are refused when they meet, and the refusal names the field."""

from __future__ import annotations

from pathlib import Path

import msgspec
import pytest
import zmq

from coordinator.cluster.registry import Registry
from kvtransfer.heard import FromReader, FromSource
from kvtransfer.peers import PeerNetwork
from protocol.channels import Channels
from protocol.fingerprint import Fingerprint
from protocol.messages.peers import PeerRefuse, Pulled
from protocol.messages.records import PeerAddress
from protocol.messages.reports import Hello
from protocol.roles import Role
from protocol.worker_load import STEP_TOKEN_BUCKETS, BlockCounts, WorkerLoad

OURS = Fingerprint(
    model="llama-30x576",
    weights="w1",
    tokenizer="t1",
    dtype="bfloat16",
    layout="block:layer:kv:head:token:dim",
    block_size=16,
    num_layers=30,
    num_kv_heads=3,
    head_dim=64,
    rope="theta=100000.0",
)
DIFFERENCES = [
    ("block_size", 32),
    ("dtype", "float32"),
    ("layout", "other"),
    ("num_kv_heads", 9),
    ("rope", "theta=10000.0"),
    ("weights", "w2"),
    ("tokenizer", "t2"),
    ("protocol_major", 1),
]


def address(worker_id: str, control: str) -> PeerAddress:
    return PeerAddress(
        worker_id=worker_id, incarnation="i", host="h", control=control, transports={}
    )


def hello(worker_id: str, fingerprint: Fingerprint) -> Hello:
    return Hello(
        worker_id=worker_id,
        incarnation=worker_id,
        role=Role.PREFILL,
        pid=1,
        host="h",
        boot_id="b",
        fingerprint=fingerprint,
        address=address(worker_id, ""),
        num_blocks=8,
        block_size=16,
        max_model_len=64,
        max_num_seqs=4,
        max_num_batched_tokens=64,
        backend="mock",
    )


def test_a_pool_has_its_size_before_the_first_heartbeat() -> None:
    offered = hello("prefill-0", OURS)
    record = Registry().register(offered, b"", 0.0)
    blocks = record.load.blocks
    assert (blocks.total, blocks.free, blocks.held) == (offered.num_blocks, offered.num_blocks, 0)
    assert offered.num_blocks > 0


@pytest.mark.parametrize(("field", "value"), DIFFERENCES)
def test_coordinator_refuses_a_worker_that_differs(field: str, value: object) -> None:
    registry = Registry()
    registry.register(hello("prefill-0", OURS), b"", 0.0)
    theirs = msgspec.structs.replace(OURS, **{field: value})
    assert f"differ in {field}:" in (registry.refusal(hello("decode-0", theirs)) or "")
    assert registry.refusal(hello("decode-0", OURS)) is None


def answer_to(reader: PeerNetwork, source: PeerNetwork) -> FromReader | FromSource:
    """The first thing either side hears after the reader said Pulled."""
    said = Pulled(incarnation="j", request_id="r", attempt=1)
    reader.send_to_source(address("prefill-0", source.address), said)
    poller = zmq.Poller()
    for socket in (*source.sockets(), *reader.sockets()):
        poller.register(socket, zmq.POLLIN)
    while True:
        assert poller.poll(5000), "nobody said anything"
        for event in (*source.receive(), *reader.receive()):
            return event


def met(tmp_path: Path, theirs: Fingerprint) -> FromReader | FromSource:
    """The first thing either side hears after a reader with `theirs` said Pulled."""
    channels = Channels()
    source = PeerNetwork(channels, f"ipc://{tmp_path}/a", "prefill-0", "i", OURS)
    reader = PeerNetwork(channels, f"ipc://{tmp_path}/b", "decode-0", "j", theirs)
    try:
        return answer_to(reader, source)
    finally:
        reader.close()
        source.close()
        channels.context.term()


@pytest.mark.parametrize(("field", "value"), DIFFERENCES)
def test_worker_refuses_a_reader_that_differs(tmp_path: Path, field: str, value: object) -> None:
    event = met(tmp_path, msgspec.structs.replace(OURS, **{field: value}))
    assert isinstance(event, FromSource)
    assert isinstance(event.message, PeerRefuse)
    assert event.message.field == field


def test_worker_hears_a_reader_that_is_alike(tmp_path: Path) -> None:
    event = met(tmp_path, OURS)
    assert isinstance(event, FromReader)
    assert isinstance(event.message, Pulled)


def test_lifetime_totals_survive_a_worker() -> None:
    registry = Registry()
    for _ in range(2):
        record = registry.register(hello("prefill-0", OURS), b"", 0.0)
        record.load = WorkerLoad(
            blocks=BlockCounts(total=0, free=0, cached=0, held=0),
            preemptions=3,
            stepped_tokens=9,
            step_sizes=[1] * (len(STEP_TOKEN_BUCKETS) + 1),
        )
        assert registry.remove("prefill-0", "lost", 0.0) is record
    assert registry.lifetime().preemptions == 6
    assert registry.lifetime().stepped_tokens == 18
    assert set(registry.lifetime().step_sizes) == {2}


def test_a_reader_that_goes_on_is_known_however_many_came_after_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It was forgotten as the first that came, and every prompt that it wanted to read failed from then on."""
    monkeypatch.setattr("kvtransfer.peers.MAX_READERS", 2)
    channels = Channels()
    source = PeerNetwork(channels, f"ipc://{tmp_path}/a", "prefill-0", "i", OURS)
    first, *others = readers = [
        PeerNetwork(channels, f"ipc://{tmp_path}/{name}", name, "j", OURS) for name in "bcd"
    ]

    try:
        for other in others:
            assert isinstance(answer_to(first, source), FromReader)
            assert isinstance(answer_to(other, source), FromReader)
        assert isinstance(answer_to(first, source), FromReader)
    finally:
        for network in (source, *readers):
            network.close()
        channels.context.term()


def test_a_source_that_reads_nothing_ends_no_reader(tmp_path: Path) -> None:
    """After a thousand messages it did: there was no room for another, and that ended the reader's loop."""
    channels = Channels()
    reader = PeerNetwork(channels, f"ipc://{tmp_path}/b", "decode-0", "j", OURS)
    stopped = address("prefill-0", f"ipc://{tmp_path}/nobody")
    try:
        for number in range(5000):
            said = Pulled(incarnation="j", request_id=str(number), attempt=1)
            reader.send_to_source(stopped, said)
    finally:
        reader.close()
        channels.context.term()
