"""Who may listen where, and who may connect: the rule, the keys, and real sockets on loopback."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import msgspec
import pytest
import zmq
from zmq.utils import z85

from deploy.processes.worker_main import check_network
from kvtransfer.transports.select import chosen_names
from protocol.addresses import check_can_advertise, host_of, is_beyond_loopback, tcp_endpoint
from protocol.channel_keys import ChannelKeys, ClusterKeys, KeyPair
from protocol.channels import Channels, require_keys, verdict
from protocol.errors import ConfigError
from protocol.roles import Role
from protocol.specs import WorkerSpec
from tests.e2e.launcher_driver import MODEL

OURS = ClusterKeys.generate()
OTHERS = ClusterKeys.generate()
LOOPBACK = "tcp://127.0.0.1:0"
SILENCE_MS = 300
ANSWER_MS = 5000


@contextmanager
def channels(keys: ChannelKeys | None) -> Iterator[Channels]:
    made = Channels(keys)
    try:
        yield made
    finally:
        made.close()
        made.context.destroy(linger=0)


def spec(**fields: Any) -> WorkerSpec:
    return WorkerSpec(
        worker_id="decode-0",
        role=Role.DECODE,
        model=MODEL,
        run_directory="/tmp",
        **{"control": "ipc:///tmp/x", **fields},
    )


@pytest.mark.parametrize(
    ("endpoint", "host", "is_beyond"),
    [
        ("tcp://127.0.0.1:0", "127.0.0.1", False),
        ("tcp://127.8.9.1:5", "127.8.9.1", False),
        ("tcp://localhost:5", "localhost", False),
        ("tcp://[::1]:5", "::1", False),
        ("tcp://0.0.0.0:5", "0.0.0.0", True),
        ("tcp://*:5", "*", True),
        ("tcp://10.1.2.3:5", "10.1.2.3", True),
        ("tcp://[fd00::1]:5", "fd00::1", True),
        ("tcp://node-7:5", "node-7", True),
        ("tcp://localhost.example:5", "localhost.example", True),
    ],
)
def test_who_reaches_an_endpoint(endpoint: str, host: str, is_beyond: bool) -> None:
    assert host_of(endpoint) == host
    assert is_beyond_loopback(endpoint) is is_beyond


def test_a_unix_socket_is_not_reached_from_elsewhere() -> None:
    assert not is_beyond_loopback("ipc:///tmp/control.sock")


@pytest.mark.parametrize("host", ["10.0.0.1", "fd00::1"])
def test_an_endpoint_names_its_host(host: str) -> None:
    assert host_of(tcp_endpoint(host, 7)) == host


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "224.0.0.1", "*", "eth0", "node-7"])
def test_what_peers_cannot_connect_to_is_refused(host: str) -> None:
    with pytest.raises(ConfigError, match=r"peer_host: .*other hosts reach"):
        check_can_advertise(host, "peer_host")


@pytest.mark.parametrize(
    ("fields", "named"),
    [
        ({"peer_host": "10.0.0.1"}, "peer_host: tcp://10.0.0.1:0"),
        ({"control": "tcp://10.0.0.1:5"}, "control: tcp://10.0.0.1:5"),
    ],
)
def test_worker_refuses_to_leave_loopback_without_keys(fields: Any, named: str) -> None:
    with pytest.raises(ConfigError, match=f"{named} .*ClusterKeys.generate"):
        check_network(spec(**fields))
    check_network(spec(**fields, keys=OURS.for_worker()))


def test_listener_refuses_to_leave_loopback_without_keys() -> None:
    with channels(None) as plain:
        for endpoint in ("tcp://*:0", "tcp://0.0.0.0:0", "tcp://10.0.0.1:0"):
            with pytest.raises(ConfigError, match="keys"):
                plain.listen(plain.socket(zmq.ROUTER), endpoint, "control")
    require_keys("tcp://0.0.0.0:0", OURS.for_coordinator(), "control")


@pytest.mark.parametrize("choice", ["ucx", "nixl"])
def test_roads_without_encryption_need_a_trusted_network(choice: str) -> None:
    with pytest.raises(ConfigError, match=f"--transport {choice}: .*--kv-network trusted"):
        chosen_names(choice, "10.0.0.1", "encrypted")


def test_auto_keeps_to_encrypted_roads_between_hosts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("kvtransfer.transports.select.has_rdma", lambda: True)
    everything = dict.fromkeys(("shm", "nixl", "ucx", "zmq"))
    monkeypatch.setattr("kvtransfer.transports.select.usable", lambda: everything)
    assert chosen_names("auto", "10.0.0.1", "encrypted") == ("shm", "zmq")
    assert chosen_names("auto", "10.0.0.1", "trusted") == ("shm", "nixl", "ucx", "zmq")


# ---- keys


def test_keys_go_through_a_spec_file_and_are_never_shown() -> None:
    keys = OURS.for_worker()
    again = msgspec.json.decode(msgspec.json.encode(spec(keys=keys)), type=WorkerSpec)
    assert again.keys == keys
    shown = [repr(again), str(OURS), repr(OURS.worker.__rich_repr__())]
    assert [text for text in shown if keys.own.secret in text] == []


def test_each_process_gets_its_own_secret_only() -> None:
    for keys in (OURS.for_coordinator(), OURS.for_worker(), OURS.for_launcher()):
        text = msgspec.json.encode(keys).decode()
        pairs = (OURS.coordinator, OURS.worker, OURS.launcher)
        assert [pair.secret in text for pair in pairs].count(True) == 1


@pytest.mark.parametrize("secret", ["", " " * 40, "short"])
def test_an_empty_secret_does_not_start(secret: str) -> None:
    keys = OURS.for_worker()
    bad = msgspec.structs.replace(keys, own=KeyPair(public=keys.worker, secret=secret))
    with pytest.raises(ConfigError, match="keys:"):
        Channels(bad)


def test_keys_of_two_clusters_do_not_start() -> None:
    with pytest.raises(ConfigError, match="keys:"):
        Channels(msgspec.structs.replace(OURS.for_worker(), own=OTHERS.worker))


def ask(domain: str, pair: KeyPair, mechanism: bytes = b"CURVE") -> bytes:
    request = [b"1.0", b"7", domain.encode(), b"10.0.0.9", b"", mechanism]
    answer = verdict([*request, z85.decode(pair.public)], OURS.for_coordinator())
    assert answer[1] == b"7"
    return answer[2]


def test_verdict_allows_the_keys_of_a_channel_and_denies_the_rest() -> None:
    assert ask("control", OURS.worker) == ask("control", OURS.launcher) == b"200"
    assert ask("peers", OURS.worker) == b"200"
    assert ask("peers", OURS.launcher) == ask("peers", OURS.coordinator) == b"400"
    assert ask("control", OTHERS.worker) == ask("", OURS.worker) == ask("x", OURS.worker) == b"400"
    assert ask("control", OURS.worker, b"NULL") == ask("control", OURS.worker, b"PLAIN") == b"400"


@pytest.mark.parametrize("frames", [[], [b"1.0"], [b"1.0", b"7"] + [b""] * 4, [b"\xff"] * 7])
def test_verdict_denies_what_is_no_request(frames: list[bytes]) -> None:
    assert verdict(frames, OURS.for_coordinator())[2] == b"400"
