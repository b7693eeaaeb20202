"""Workers on two hosts over real addresses: right tokens, nothing in clear, strangers refused."""

from __future__ import annotations

import random
import socket
import threading
from collections.abc import Iterator

import msgspec
import pytest
import zmq

from engine.attesting import _slot, attested_tokens
from protocol.channel_keys import ClusterKeys, KeyPair
from protocol.content_keys import root_key
from protocol.messages.launcher import LauncherHello
from protocol.wire import encode
from tests.e2e.two_hosts import (
    ADDRESSES,
    CONTROL_PORT,
    HTTP_PORT,
    SpreadCluster,
    TwoHosts,
    Wiretap,
    obstacle,
    run,
)
from tests.marks import deep
from tests.patience import PATIENCE_S
from worker.engine_start import start_engine

pytestmark = [pytest.mark.e2e, pytest.mark.slow]
CONTROL = f"tcp://{ADDRESSES['a']}:{CONTROL_PORT}"
STRANGE_CONNECTIONS = 1000
COUNT = 12


@pytest.fixture(scope="module")
def hosts() -> Iterator[TwoHosts]:
    if reason := obstacle():
        pytest.skip(reason)
    made = TwoHosts()
    yield made
    made.close()


@pytest.fixture(scope="module")
def cluster(hosts: TwoHosts) -> Iterator[SpreadCluster]:
    made = SpreadCluster(hosts)
    try:
        made.start()
        yield made
    finally:
        made.close()


def prompt(seed: int, length: int = 200) -> list[int]:
    return random.Random(seed).choices(range(33_000, 49_000), k=length)


def root(cluster: SpreadCluster) -> bytes:
    engine = start_engine(cluster.plan.workers[0])
    return root_key(engine.fingerprint.hash_bytes(), "")


def check_tokens(cluster: SpreadCluster, seed: int) -> None:
    expected = attested_tokens(root(cluster), prompt(seed), COUNT, 5)
    assert cluster.complete(prompt(seed), COUNT) == expected


def slots(cluster: SpreadCluster, token_ids: list[int]) -> list[bytes]:
    """The KV bytes of every token of a prompt."""
    before, found = b"", []
    for token_id in token_ids:
        before = _slot(root(cluster), before, token_id)
        found.append(before)
    return found


def tapped(cluster: SpreadCluster, seed: int) -> tuple[bool, bool]:
    """Whether token ids, and KV bytes, of one request could be read on the cable."""
    tap = Wiretap(cluster.hosts)
    check_tokens(cluster, seed)
    heard = tap.stop()
    assert len(heard) > 16 * 150, "the blocks did not cross the cable"
    pairs = [msgspec.msgpack.encode(prompt(seed)[i : i + 4])[1:] for i in range(0, 196, 4)]
    return (
        any(pair in heard for pair in pairs),
        any(slot in heard for slot in slots(cluster, prompt(seed))),
    )


def test_blocks_move_between_hosts_and_tokens_are_right(cluster: SpreadCluster) -> None:
    for seed in range(3):
        check_tokens(cluster, seed)
    cluster.until(
        lambda: cluster.worker("decode-0")["totals"]["transfers"] >= 3,
        "told by a heartbeat",
        PATIENCE_S,
    )
    assert cluster.worker("decode-0")["totals"]["transfer_failures"] == 0


def test_nothing_crosses_the_cable_in_clear(cluster: SpreadCluster) -> None:
    assert tapped(cluster, 100) == (False, False)


def test_on_a_trusted_network_blocks_are_in_clear_and_tokens_are_not(hosts: TwoHosts) -> None:
    """Shows too that the tap hears what there is to hear."""
    cluster = SpreadCluster(hosts, 1, **{"kv-network": "trusted", "transport": "zmq"})
    try:
        cluster.start()
        assert tapped(cluster, 101) == (False, True)
    finally:
        cluster.close()


def test_every_listener_is_on_the_address_it_was_given(cluster: SpreadCluster) -> None:
    for side, count in (("a", 4), ("b", 2)):  # control, HTTP; and of each worker peers, zmq
        found = cluster.hosts.listeners(side)
        assert {host for host, _ in found} == {ADDRESSES[side]}
        assert len(found) == count


def stranger(cluster: SpreadCluster, keys: KeyPair | None, server: str = "") -> None:
    """Speaks to the coordinator from the other host, as well as it can."""

    def speak() -> None:
        context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
        talker = context.socket(zmq.DEALER)
        talker.linger = 0
        talker.routing_id = b"launcher"
        if keys is not None:
            talker.curve_serverkey = server.encode()
            talker.curve_publickey = keys.public.encode()
            talker.curve_secretkey = keys.secret.encode()
        talker.connect(CONTROL)
        talker.send(encode(LauncherHello(launcher="evil")))
        assert not talker.poll(500), "a stranger was answered"
        context.destroy(linger=0)

    before = refusals(cluster)
    cluster.hosts.on("b", speak)
    cluster.until(lambda: refusals(cluster) > before, "refused", PATIENCE_S)


def refusals(cluster: SpreadCluster) -> int:
    return cluster.log().count("proved no key of this cluster")


def test_a_plain_peer_is_refused_and_told_of(cluster: SpreadCluster) -> None:
    stranger(cluster, None)
    check_tokens(cluster, 10)


def test_a_worker_with_another_clusters_keys_never_registers(cluster: SpreadCluster) -> None:
    spec = msgspec.structs.replace(
        cluster.plan.workers[1], worker_id="decode-9", keys=ClusterKeys.generate().for_worker()
    )
    process = cluster.spawn("b", "decode-9", spec)
    cluster.until(lambda: "decode-9 engine ready" in cluster.log(), "started", PATIENCE_S)
    check_tokens(cluster, 11)
    cluster.until(lambda: "channel keys of the same cluster?" in cluster.log(), "told", PATIENCE_S)
    assert process.poll() is None
    names = [worker["id"] for worker in cluster.get("/cluster").json()["workers"]]
    assert sorted(names) == ["decode-0", "prefill-0"]
    process.terminate()
    process.wait(PATIENCE_S)


def nonsense(rng: random.Random) -> bytes:
    """Random bytes, half a greeting, or a whole one with nonsense behind it."""
    greeting = (
        b"\xff" + bytes(8) + b"\x7f\x03\x01" + rng.choice([b"CURVE", b"NULL\0"]).ljust(52, b"\0")
    )
    kinds = [rng.randbytes(rng.randrange(1, 300)), greeting[: rng.randrange(1, 64)]]
    return rng.choice([*kinds, greeting + rng.randbytes(200), b""])


def test_a_thousand_strange_connections_leave_it_serving(cluster: SpreadCluster) -> None:
    """All stay open while requests are served; each is closed once its handshake's time is over."""
    rng = random.Random(3)
    ports = [port for _, port in cluster.hosts.listeners("a") if port != HTTP_PORT]

    def pester() -> list[socket.socket]:
        made = []
        for index in range(STRANGE_CONNECTIONS):
            one = socket.create_connection((ADDRESSES["a"], ports[index % len(ports)]), 10)
            made.append(one)
            try:
                one.sendall(nonsense(rng))
            except ConnectionError:  # closed already: it had sent enough
                continue
        return made

    strange = cluster.hosts.on("b", pester)
    for seed in range(20, 25):
        check_tokens(cluster, seed)

    def closed(one: socket.socket) -> bool:
        one.settimeout(PATIENCE_S)
        try:
            while one.recv(4096):
                pass
        except ConnectionError:
            return True
        except TimeoutError:
            return False
        return True

    assert all(closed(one) for one in strange)
    for one in strange:
        one.close()
    check_tokens(cluster, 26)
    assert cluster.get("/cluster/audit").json()["balanced"]


@pytest.mark.parametrize("seconds", [1.5, deep(6.0)])
def test_a_cut_cable_heals(cluster: SpreadCluster, seconds: float) -> None:
    """The long one outlasts every heartbeat: the decode worker is given up and comes back."""
    check_tokens(cluster, 30)
    name = cluster.hosts.names["b"]
    before = cluster.worker("decode-0")["incarnation"]

    def is_healed() -> bool:
        """A long cut ends with the worker given up, for a while not there, and back as a new one."""
        workers = cluster.get("/cluster").json()["workers"]
        starts = {w["incarnation"] for w in workers if w["id"] == "decode-0"}
        is_back = bool(starts) and (seconds < 3 or before not in starts)
        return is_back and cluster.get("/health").status_code == 200

    run("ip", "-n", name, "link", "set", "cable", "down")
    threading.Event().wait(seconds)
    run("ip", "-n", name, "link", "set", "cable", "up")
    cluster.until(is_healed, "healed", PATIENCE_S)
    for seed in range(31, 36):
        check_tokens(cluster, seed)
    assert cluster.get("/cluster/audit").json()["balanced"]
