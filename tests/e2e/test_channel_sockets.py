"""Real sockets between those of a cluster and those who are not: on loopback, through proxies, on paths."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import msgspec
import psutil
import pytest
import zmq

from kvtransfer.heard import FromReader
from kvtransfer.peers import PeerNetwork
from kvtransfer.transports.descriptors import path_at
from kvtransfer.transports.select import usable
from protocol.channel_keys import Channel, ChannelKeys, ClusterKeys, KeyPair
from protocol.channels import Channels
from protocol.errors import OutOfReach, PeerLost
from protocol.ids import files_identity
from protocol.messages.peers import Pulled
from protocol.messages.records import PeerAddress
from protocol.roles import Role
from protocol.specs import CoordinatorSpec, WorkerSpec
from tests.e2e.fault_proxy import Fault, FaultProxy
from tests.e2e.launcher_driver import MODEL
from tests.e2e.transport_rig import ProcessPeer, Reader, start_peer
from tests.patience import PATIENCE_S, until
from tests.unit.kvtransfer.test_meeting import OURS as LAYOUT

pytestmark = pytest.mark.e2e
OURS = ClusterKeys.generate()
OTHERS = ClusterKeys.generate()
LOOPBACK = "tcp://127.0.0.1:0"
SILENCE_MS = 300
ANSWER_MS = int(PATIENCE_S * 1000)


@contextmanager
def channels(keys: ChannelKeys | None) -> Iterator[Channels]:
    made = Channels(keys)
    try:
        yield made
    finally:
        made.close()
        made.context.destroy(linger=0)


def hear(listener: zmq.Socket[bytes], timeout_ms: int) -> list[bytes] | None:
    return listener.recv_multipart() if listener.poll(timeout_ms) else None


@pytest.mark.parametrize(
    ("channel", "server", "client"),
    [
        ("control", OURS.for_coordinator(), OURS.for_worker()),
        ("control", OURS.for_coordinator(), OURS.for_launcher()),
        ("peers", OURS.for_worker(), OURS.for_worker()),
        ("control", None, None),
    ],
)
def test_those_of_a_cluster_hear_each_other(channel: Channel, server: Any, client: Any) -> None:
    with channels(server) as there, channels(client) as here:
        listener = there.socket(zmq.ROUTER)
        address = there.listen(listener, LOOPBACK, channel)
        socket = here.socket(zmq.DEALER)
        here.connect(socket, address, channel)
        socket.send(b"hello")
        heard = hear(listener, ANSWER_MS)
        assert heard is not None
        listener.send_multipart([heard[0], b"welcome"])
        assert hear(socket, ANSWER_MS) == [b"welcome"]
        assert there.refused == 0


def stranger(kind: str, address: str, context: zmq.Context) -> zmq.Socket[bytes]:
    """A peer that has no business here, connected."""
    socket: zmq.Socket[bytes] = context.socket(zmq.DEALER)
    socket.linger = 0
    own = KeyPair.generate() if kind != "launcher" else OURS.launcher
    server = OTHERS.worker.public if kind == "other cluster" else OURS.worker.public
    if kind != "plain":
        socket.curve_serverkey = server.encode()
        socket.curve_publickey, socket.curve_secretkey = own.public.encode(), own.secret.encode()
    socket.connect(address)
    return socket


@pytest.mark.parametrize("kind", ["plain", "wrong key", "other cluster", "launcher"])
def test_strangers_are_refused_and_counted_while_a_peer_is_served(kind: str) -> None:
    with channels(OURS.for_worker()) as there, channels(OURS.for_worker()) as here:
        listener = there.socket(zmq.ROUTER)
        address = there.listen(listener, LOOPBACK, "peers")
        socket = stranger(kind, address, here.context)
        socket.send(b"let me in")
        assert hear(listener, SILENCE_MS) is None
        peer = here.socket(zmq.DEALER)
        here.connect(peer, address, "peers")
        peer.send(b"hello")
        heard = hear(listener, ANSWER_MS)
        assert heard is not None
        assert heard[-1] == b"hello"
        until(lambda: there.refused > 0, "its being counted")


def test_nobody_is_let_in_when_the_guard_is_gone() -> None:
    with channels(OURS.for_worker()) as there, channels(OURS.for_worker()) as here:
        listener = there.socket(zmq.ROUTER)
        address = there.listen(listener, LOOPBACK, "peers")
        assert there._guard is not None
        there._guard.close()
        peer = here.socket(zmq.DEALER)
        here.connect(peer, address, "peers")
        peer.send(b"hello")
        assert hear(listener, SILENCE_MS) is None


def test_a_server_without_the_secret_gets_nothing() -> None:
    with channels(OTHERS.for_worker()) as there, channels(OURS.for_worker()) as here:
        listener = there.socket(zmq.ROUTER)
        address = there.listen(listener, LOOPBACK, "peers")
        socket = here.socket(zmq.DEALER)
        here.connect(socket, address, "peers")
        socket.send(b"secret")
        assert hear(listener, SILENCE_MS) is None


def test_listeners_come_and_go_without_leaving_threads_or_monitors() -> None:
    with channels(OURS.for_worker()) as there:
        before = threading.active_count()
        for _ in range(50):
            listener = there.socket(zmq.ROUTER)
            there.listen(listener, LOOPBACK, "peers")
            listener.close()
        assert threading.active_count() == before
    assert "baton-guard" not in {thread.name for thread in threading.enumerate()}


# ---- peers


def hear_reader(source: PeerNetwork) -> FromReader:
    """The next message of a reader to `source`, whose welcomes are answered meanwhile."""
    poller = zmq.Poller()
    for socket in source.sockets():
        poller.register(socket, zmq.POLLIN)
    while poller.poll(ANSWER_MS):
        for event in source.receive():
            assert isinstance(event, FromReader)
            return event
    raise AssertionError("the reader was not heard")


def test_a_reader_is_still_known_after_its_connection_broke() -> None:
    with channels(OURS.for_worker()) as there, channels(OURS.for_worker()) as here:
        source = PeerNetwork(there, LOOPBACK, "prefill-0", "i", LAYOUT)
        reader = PeerNetwork(here, LOOPBACK, "decode-0", "j", LAYOUT)
        proxy = FaultProxy(("127.0.0.1", int(source.address.rpartition(":")[2])), Fault())
        address = PeerAddress(
            worker_id="prefill-0",
            incarnation="i",
            host="h",
            control=f"tcp://127.0.0.1:{proxy.port}",
            transports={},
        )
        for attempt in range(3):
            reader.send_to_source(address, Pulled(incarnation="j", request_id="r", attempt=attempt))
            message = hear_reader(source).message
            assert isinstance(message, Pulled)
            assert message.attempt == attempt
            proxy.break_connections()
        assert source.dropped_messages == 0
        reader.close()
        source.close()
        proxy.close()


# ---- shared memory is for one host


def test_a_path_of_another_host_is_not_tried_though_it_exists_here(tmp_path: Path) -> None:
    peer = start_peer("shm", tmp_path)
    reader = Reader("shm", tmp_path, 8)
    try:
        peer.do("lease", "lease", [1])
        address = peer.address.transports["shm"]
        assert path_at(address).is_socket()
        elsewhere = address.rpartition("@")[0] + "@another-boot/mnt:[1]"
        with pytest.raises(OutOfReach, match="another host"):
            path_at(elsewhere)
        done = reader.pull(peer, [1], address=peer.address_at(elsewhere))
        assert isinstance(done.error, OutOfReach)
    finally:
        reader.close()
        peer.close()


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can start a process of another user")
def test_a_reader_refuses_what_another_user_serves(tmp_path: Path) -> None:
    with tempfile.TemporaryDirectory(dir="/tmp") as shared:
        Path(shared).chmod(0o777)
        path = f"{shared}/pool.shm"
        code = (
            "import socket, sys\n"
            "one = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)\n"
            f"one.bind({path!r})\none.listen()\nprint('ready', flush=True)\nsys.stdin.read()"
        )
        with subprocess.Popen(
            [
                "/usr/bin/python3" if Path("/usr/bin/python3").exists() else sys.executable,
                "-c",
                code,
            ],
            user=65534,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
        ) as squatter:
            assert squatter.stdout is not None
            assert squatter.stdout.readline() == b"ready\n"
            reader = Reader("shm", tmp_path, 8)
            with pytest.raises(PeerLost, match="another user, uid 65534"):
                reader.transports["shm"].connect(f"{path}@{files_identity()}", "i", 1.0)
            reader.close()
            squatter.kill()


@pytest.mark.parametrize("transport", ["zmq", "ucx", "nixl"])
def test_a_pool_of_one_host_is_heard_on_loopback_only(transport: str, tmp_path: Path) -> None:
    if reason := usable()[transport]:
        pytest.skip(reason)
    peer = ProcessPeer(transport, tmp_path)
    try:
        connections = psutil.Process(peer.process.pid).net_connections("tcp")
        heard_on = {c.laddr.ip for c in connections if c.status == psutil.CONN_LISTEN}
        assert heard_on == {"127.0.0.1"}
    finally:
        peer.close()


@pytest.mark.parametrize("control", ["tcp://0.0.0.0:0", "tcp://*:0"])
def test_a_coordinator_without_keys_does_not_start_beyond_loopback(
    control: str, tmp_path: Path
) -> None:
    spec = CoordinatorSpec(
        model=MODEL,
        control=control,
        host="127.0.0.1",
        port=0,
        expected={},
        max_model_len=64,
        block_size=16,
    )
    ended = started("deploy.processes.coordinator_main", spec, tmp_path)
    assert ended.returncode == 2
    assert "put ClusterKeys.generate() into the specs" in ended.stderr


def test_a_worker_without_keys_does_not_start_beyond_loopback(tmp_path: Path) -> None:
    spec = WorkerSpec(
        worker_id="decode-0",
        role=Role.DECODE,
        model=MODEL,
        control="tcp://127.0.0.1:9",
        run_directory=str(tmp_path),
        peer_host="10.213.7.9",
    )
    ended = started("deploy.processes.worker_main", spec, tmp_path)
    assert ended.returncode == 2
    assert "peer_host: tcp://10.213.7.9:0 can be reached from other hosts" in ended.stderr


def started(
    module: str, spec: CoordinatorSpec | WorkerSpec, directory: Path
) -> subprocess.CompletedProcess[str]:
    """A child that ends by itself."""
    path = directory / "spec.json"
    path.write_bytes(msgspec.json.encode(spec))
    command = [sys.executable, "-m", module, str(path)]
    return subprocess.run(command, capture_output=True, text=True, timeout=PATIENCE_S, check=False)
