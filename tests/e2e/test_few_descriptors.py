"""Strangers on the ports of a cluster, and hardly a descriptor left: they are turned away, and those who belong here are not."""

from __future__ import annotations

import os
import resource
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import psutil
import pytest
import zmq

from protocol.channel_keys import ChannelKeys, ClusterKeys
from protocol.channels import HANDSHAKE_MS
from protocol.roles import COMPUTING
from tests.e2e.scarcity import few_descriptors
from tests.e2e.server import MOCK, Server
from tests.e2e.test_channel_sockets import ANSWER_MS, channels, hear
from tests.marks import deep
from tests.patience import PATIENCE_S, until

pytestmark = pytest.mark.e2e
MORE = 40
STRANGERS = """
import resource, socket, sys
port, count = int(sys.stdin.readline()), int(sys.argv[1])
held = [socket.create_connection(("127.0.0.1", port)) for _ in range(count)]
print("connected", flush=True)
sys.stdin.read()
"""


@contextmanager
def strangers(count: int) -> Iterator[subprocess.Popen[str]]:
    """A process that will connect so often to the port that it is told, and say nothing."""
    command = [sys.executable, "-c", STRANGERS, str(count)]
    process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    try:
        yield process
    finally:
        process.communicate(timeout=PATIENCE_S)


def come(process: subprocess.Popen[str], port: int) -> None:
    """They connect now."""
    assert process.stdin is not None
    assert process.stdout is not None
    process.stdin.write(f"{port}\n")
    process.stdin.flush()
    assert process.stdout.readline() == "connected\n"


def with_reserve(number: int) -> int:
    """So many more descriptors that `number` are no reserve: an eighth of all is one, and a process that ran many tests
    has hundreds open."""
    taken = len(list(Path("/proc/self/fd").iterdir()))
    return (taken + number) * 8 // 7 + 1 - taken


def keys_of() -> tuple[ChannelKeys, ChannelKeys]:
    """A worker's, and another one's."""
    keys = ClusterKeys.generate()
    return keys.for_worker(), keys.for_worker()


@pytest.mark.parametrize("has_keys", [True, deep(False)])
def test_strangers_are_turned_away_and_friends_are_heard(*, has_keys: bool) -> None:
    ours, theirs = keys_of() if has_keys else (None, None)
    with channels(ours) as listening, channels(theirs) as connecting, strangers(90) as crowd:
        router = listening.socket(zmq.ROUTER)
        address = listening.listen(router, "tcp://127.0.0.1:0", "peers")
        friends = [connecting.socket(zmq.DEALER) for _ in range(2)]
        connecting.connect(friends[0], address, "peers")
        friends[0].send(b"before")
        assert hear(router, ANSWER_MS)
        with few_descriptors(with_reserve(MORE)):
            come(crowd, int(address.rpartition(":")[2]))
            began_s = time.monotonic()
            while time.monotonic() - began_s < 1.0:
                friends[0].send(b"meanwhile")
                assert hear(router, ANSWER_MS)
            os.close(os.dup(0))
            until(lambda: listening.refused > 0, "a refusal")
            while time.monotonic() - began_s < HANDSHAKE_MS / 1000 + 1.0:
                assert hear(router, 100) is None
            connecting.connect(friends[1], address, "peers")
            friends[1].send(b"after")
            assert hear(router, ANSWER_MS)
        for socket in (router, *friends):
            socket.close()


@pytest.mark.deep
def test_a_cluster_on_one_host_has_no_port_but_http() -> None:
    """Its workers had plain tcp ports for KV: 20 connections with few descriptors left took the worker with them."""
    with Server(
        "--pd", "1p1d", "--kv-cache-memory", "64MiB", "--transport", "zmq", program=MOCK
    ) as server:
        for pid in (server.process.pid, *server.descendants()):
            listening = [
                c.laddr.port for c in psutil.Process(pid).net_connections() if c.status == "LISTEN"
            ]
            assert set(listening) <= {server.port}
        assert server.complete(prompt="x" * 400, max_tokens=4)["usage"]["completion_tokens"] == 4
        for role in COMPUTING:
            assert server.worker(role.value)["role"] == role.value


def test_a_worker_without_descriptors_is_audited_and_goes_on() -> None:
    with Server("--pd", "1p1d", "--kv-cache-memory", "64MiB", program=MOCK) as server:
        pids = {worker["pid"] for worker in server.cluster()["workers"]}
        for pid in pids:
            number = len(list(Path(f"/proc/{pid}/fd").iterdir()))
            _, hard = resource.prlimit(pid, resource.RLIMIT_NOFILE)
            resource.prlimit(pid, resource.RLIMIT_NOFILE, (number, hard))
        for _ in range(3):
            assert server.audit()["balanced"]
        assert server.complete(prompt="x" * 400, max_tokens=4)["usage"]["completion_tokens"] == 4
        assert {worker["pid"] for worker in server.cluster()["workers"]} == pids
