"""Loops of one process that others speak to: what fails once does not end them, nor hold up what comes after it."""

from __future__ import annotations

import asyncio
import logging
import os
import selectors
import socket
import threading
from pathlib import Path

import msgspec
import pytest
import zmq

from coordinator.cluster.control_socket import MAX_BYTES_A_TURN, ControlSocket
from deploy.launch.control import ControlLink
from engine.kv.pool_memory import KvMemory
from kvtransfer.promises.lease import LeaseTable
from kvtransfer.transport import LocalPool
from kvtransfer.transports.shm import ShmTransport
from protocol import wire
from protocol.channels import Channels
from protocol.clock import SystemClock
from protocol.messages.launcher import LauncherHello, LauncherOrder, StopOrder
from protocol.messages.reports import Heartbeat, WorkerMessage
from protocol.worker_load import BlockCounts, WorkerLoad
from tests.e2e.scarcity import few_descriptors
from tests.patience import PATIENCE_S, until
from worker.heartbeat import HeartbeatThread

pytestmark = pytest.mark.e2e


async def test_messages_behind_one_that_fails_are_heard(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    heard: list[str] = []
    over = asyncio.Event()

    def on_message(_: bytes, message: WorkerMessage) -> None:
        assert isinstance(message, LauncherHello)
        heard.append(message.launcher)
        if message.launcher == "1":
            raise RuntimeError("a bug of ours")
        if message.launcher == "3":
            over.set()

    control = ControlSocket(f"ipc://{tmp_path}/control", on_message)
    channels = Channels()
    dealer = channels.socket(zmq.DEALER)
    dealer.connect(control.address)
    for number in range(4):
        dealer.send(wire.encode(LauncherHello(launcher=str(number))))
    control.start()
    with caplog.at_level(logging.ERROR):
        await asyncio.wait_for(over.wait(), PATIENCE_S)
    assert heard == ["0", "1", "2", "3"]
    assert control.dropped_messages == 1
    assert "LauncherHello could not be followed" in caplog.text
    dealer.close()
    channels.context.term()
    control.close()


async def test_a_message_that_cannot_be_read_is_told_of(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """A worker that was started after an upgrade says hello with fields that this coordinator does not know."""
    over = asyncio.Event()
    control = ControlSocket(f"ipc://{tmp_path}/control", lambda *_: over.set())
    channels = Channels()
    dealer = channels.socket(zmq.DEALER)
    dealer.connect(control.address)
    for _ in range(3):
        dealer.send(msgspec.msgpack.encode({"type": "Hello", "worker_id": "decode-0", "new": 1}))
    dealer.send(wire.encode(LauncherHello(launcher="l")))
    control.start()
    with caplog.at_level(logging.WARNING):
        await asyncio.wait_for(over.wait(), PATIENCE_S)
    assert control.dropped_messages == 3
    told = [record.getMessage() for record in caplog.records]
    assert [line.split()[0] for line in told] == ["1", "2"]
    assert "another version" in told[0]
    dealer.close()
    channels.context.term()
    control.close()


async def test_a_message_that_came_before_one_to_nobody_is_heard(tmp_path: Path) -> None:
    """Sending to a worker that is gone may take the edge of the descriptor that told of the message."""
    heard: list[bytes] = []
    over = asyncio.Event()

    def on_message(identity: bytes, _: WorkerMessage) -> None:
        heard.append(identity)
        over.set()

    control = ControlSocket(f"ipc://{tmp_path}/control", on_message)
    channels = Channels()
    dealer = channels.socket(zmq.DEALER)
    dealer.connect(control.address)
    control.start()
    dealer.send(wire.encode(LauncherHello(launcher="1")))
    await asyncio.wait_for(over.wait(), PATIENCE_S)
    over.clear()
    dealer.send(wire.encode(LauncherHello(launcher="2")))
    with selectors.DefaultSelector() as selector:  # the loop sees nothing of this
        selector.register(control.fileno(), selectors.EVENT_READ)
        assert selector.select(PATIENCE_S)
    assert not control.send(b"nobody", StopOrder(worker_id="w"))
    await asyncio.wait_for(over.wait(), PATIENCE_S)
    assert len(heard) == 2
    dealer.close()
    channels.context.term()
    control.close()


async def test_large_messages_are_heard_in_turns(tmp_path: Path) -> None:
    """What a worker says at once does not keep everybody else from the loop."""
    heard: list[str] = []

    def on_message(_: bytes, message: WorkerMessage) -> None:
        assert isinstance(message, LauncherHello)
        heard.append(message.launcher)

    control = ControlSocket(f"ipc://{tmp_path}/control", on_message)
    channels = Channels()
    dealer = channels.socket(zmq.DEALER)
    dealer.connect(control.address)
    large = "x" * (MAX_BYTES_A_TURN // 2)
    for _ in range(7):
        dealer.send(wire.encode(LauncherHello(launcher=large)))
    turns = []
    async with asyncio.timeout(PATIENCE_S):
        while len(heard) < 7:
            before = len(heard)
            control.read()
            turns.append(len(heard) - before)
            await asyncio.sleep(0.001)
    assert max(turns) <= 2
    dealer.close()
    channels.context.term()
    control.close()


async def test_orders_behind_one_that_fails_are_heard(tmp_path: Path) -> None:
    heard: list[str] = []
    over = asyncio.Event()

    def on_order(order: LauncherOrder) -> None:
        assert isinstance(order, StopOrder)
        heard.append(order.worker_id)
        if order.worker_id == "1":
            raise OSError(24, "Too many open files")
        if order.worker_id == "2":
            over.set()

    channels = Channels()
    router = channels.socket(zmq.ROUTER)
    router.bind(f"ipc://{tmp_path}/control")
    link = ControlLink(f"ipc://{tmp_path}/control", on_order)
    link.send(LauncherHello(launcher="x"))
    identity, _ = await asyncio.to_thread(router.recv_multipart)
    for number in range(3):
        router.send_multipart([identity, wire.encode(StopOrder(worker_id=str(number)))])
    await asyncio.wait_for(over.wait(), PATIENCE_S)
    assert heard == ["0", "1", "2"]
    link.close()
    router.close()
    channels.context.term()


def test_a_sign_of_life_follows_one_that_failed(tmp_path: Path) -> None:
    channels = Channels()
    router = channels.socket(zmq.ROUTER)
    router.bind(f"ipc://{tmp_path}/control")
    counts = BlockCounts(total=1, free=1, cached=0, held=0)
    beat = Heartbeat(
        incarnation="i", identity=b"w", step=1, busy=False, load=WorkerLoad(blocks=counts)
    )
    fails = iter([True])

    def read() -> Heartbeat:
        if next(fails, False):
            raise RuntimeError("changed size during iteration")
        return beat

    thread = HeartbeatThread(channels, f"ipc://{tmp_path}/control", read)
    thread.start()
    assert router.poll(int(PATIENCE_S * 1000))
    thread.close()
    router.close()
    channels.context.term()


def test_a_server_without_descriptors_waits_and_goes_on(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """It tried again at once, ten thousand times a second, a line in the log for each."""
    pool = LocalPool(KvMemory(4, 4096), LeaseTable(SystemClock()), "i", b"f" * 32)
    server = ShmTransport(pool, tmp_path / "kv").serve()
    path = server.address.rpartition("@")[0]
    clients = [socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) for _ in range(3)]
    taken: list[int] = []
    with few_descriptors(0), caplog.at_level(logging.WARNING):
        try:
            while True:
                taken.append(os.dup(0))
        except OSError:
            pass
        for client in clients:
            client.connect(path)
        until(lambda: caplog.records, "a word of it")
        threading.Event().wait(1.0)
        assert 1 <= len(caplog.records) < 30
        for descriptor in taken:
            os.close(descriptor)
    for client in clients:
        client.settimeout(PATIENCE_S)
        client.send(b"?")
        assert client.recv(10) == b""  # it was accepted, and what it said is no greeting
        client.close()
    server.close()
