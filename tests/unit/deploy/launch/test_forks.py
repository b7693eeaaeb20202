"""Who waits for a fork, and what becomes of it, over a real socket pair; the server is this test."""

from __future__ import annotations

import asyncio
import errno
import os
import socket
from collections.abc import Awaitable, Callable
from pathlib import Path

import pytest

from deploy.launch.local.forks import Fork, Forks
from deploy.processes import fork_orders
from protocol.clock import ManualClock


class Server:
    """Stands for the process."""

    def __init__(self, orders_fd: int, on_exit: Callable[[int], None]) -> None:
        self.orders = socket.socket(fileno=os.dup(orders_fd))
        self.on_exit = on_exit
        self.was_killed = False

    def kill(self) -> None:
        self.was_killed = True

    def ends(self) -> None:
        self.orders.close()
        self.on_exit(-9)


class Parent:
    """Begins servers, unless the system has no room, and keeps what is due later."""

    def __init__(self) -> None:
        self.servers: list[Server] = []
        self.due: list[tuple[float, Callable[[], None]]] = []
        self.is_full = False

    def later(self, delay_s: float, action: Callable[[], None]) -> None:
        self.due.append((delay_s, action))

    def begin_server(self, orders_fd: int, on_exit: Callable[[int], None]) -> Server:
        if self.is_full:
            raise OSError("no descriptors")
        self.servers.append(Server(orders_fd, on_exit))
        return self.servers[-1]


class Rig:
    """Forks with a server, and what they told."""

    def __init__(self) -> None:
        self.parent, self.told = Parent(), list[Fork | None]()
        self.forks = Forks(self.parent, ManualClock())  # type: ignore[arg-type]
        self.forks.start()

    def ask(self, name: str = "red.decode-0.json") -> bool:
        return self.forks.fork(Path(name), self.told.append)

    def close(self) -> None:
        self.forks.close()
        for server in self.parent.servers:
            server.orders.close()


def with_rig(test: Callable[[Rig], Awaitable[None]]) -> Callable[[], None]:
    async def run() -> None:
        rig = Rig()
        try:
            await test(rig)
        finally:
            rig.close()

    return lambda: asyncio.run(run())


async def heard() -> None:
    """The loop reads what is there."""
    for _ in range(5):
        await asyncio.sleep(0)


async def ordered(rig: Rig) -> None:
    assert rig.ask()
    path, output, word = fork_orders.next_order(rig.parent.servers[0].orders) or (None, 0, 0)
    assert path == Path("red.decode-0.json")
    os.write(output, b"hello")
    os.close(output)
    fork_orders.tell_pid(rig.parent.servers[0].orders, 4711)
    await heard()
    (fork,) = rig.told
    assert fork is not None
    assert (fork.pid, os.read(fork.output, 99)) == (4711, b"hello")
    fork.go()
    assert os.read(word, 9) == fork_orders.GO
    assert os.read(word, 9) == b""
    os.close(word)
    os.close(fork.output)


async def unwanted(rig: Rig) -> None:
    rig.ask()
    _, output, word = fork_orders.next_order(rig.parent.servers[0].orders) or (None, 0, 0)
    fork_orders.tell_pid(rig.parent.servers[0].orders, 4711)
    await heard()
    (fork,) = rig.told
    assert fork is not None
    fork.refuse()
    assert os.read(word, 9) == b"", "it ends"
    os.close(output)
    os.close(word)


async def no_room(rig: Rig) -> None:
    rig.ask()
    rig.ask()
    for _ in range(2):
        _, *descriptors = fork_orders.next_order(rig.parent.servers[0].orders) or (None, 0, 0)
        for one in descriptors:
            os.close(one)
    fork_orders.tell_pid(rig.parent.servers[0].orders, 0)
    await heard()
    assert rig.told == [None]


async def its_end(rig: Rig) -> None:
    rig.ask()
    rig.ask()
    rig.parent.servers[0].ends()
    await heard()
    assert rig.told == [None, None]
    assert not rig.ask(), "there is nobody to ask"
    delay_s, again = rig.parent.due[-1]
    assert delay_s == 0.2
    again()
    assert len(rig.parent.servers) == 2
    assert rig.ask()


async def silence(rig: Rig) -> None:
    rig.ask()
    (delay_s, look) = rig.parent.due[-1]
    assert delay_s > 1.0
    look()
    assert rig.parent.servers[0].was_killed


async def want_of_room_for_it(rig: Rig) -> None:
    rig.parent.is_full = True
    rig.parent.servers[0].ends()
    rig.parent.due[-1][1]()
    assert not rig.ask()
    rig.parent.is_full = False
    rig.parent.due[-1][1]()
    assert rig.ask()


async def want_of_a_descriptor_for_it(rig: Rig) -> None:
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(fork_orders, "pair", no_descriptor)
        rig.parent.servers[0].ends()
        rig.parent.due[-1][1]()
    assert not rig.ask()
    rig.parent.due[-1][1]()
    assert rig.ask()


def no_descriptor() -> tuple[socket.socket, socket.socket]:
    raise OSError(errno.EMFILE, "Too many open files")


@pytest.mark.parametrize(
    "test",
    [
        ordered,
        unwanted,
        no_room,
        its_end,
        silence,
        want_of_room_for_it,
        want_of_a_descriptor_for_it,
    ],
)
def test_an_order_is_answered_once(test: Callable[[Rig], Awaitable[None]]) -> None:
    with_rig(test)()
