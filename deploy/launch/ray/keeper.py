"""Keeps one engine process on a node. Owns its restarts and its end; must not know Ray.

usage: python -P -m deploy.launch.ray.keeper ORDER_FILE      (returns when the keeper listens, in the background)

A seat (the Ray actor) connects to ORDER_FILE's `.sock` and hears what happens. When the seat is gone the
keeper goes on without: Ray may be away, and requests must not notice. An engine that crashes is started again
after 0.2, 1, 2 … 60 s; one that leaves by itself (status 0: stopped, drained, or without a coordinator for too
long; status 2: refused) ends its keeper, so nothing outlives the cluster it belongs to.
"""

from __future__ import annotations

import asyncio
import fcntl
import logging
import os
import signal
import socket
import sys
from collections import deque
from pathlib import Path
from typing import TYPE_CHECKING

import msgspec

from deploy.config.topology import child_environment
from deploy.launch.child_process import ChildProcess
from deploy.launch.ray.lines import Lines
from deploy.launch.ray.node_directory import remove_keeper
from deploy.launch.ray.records import (
    Adopt,
    End,
    Ended,
    KeeperHello,
    KeeperOrder,
    Leaving,
    Line,
    Ready,
    SeatOrder,
    Started,
)
from deploy.processes.child import harden, log_to_stderr
from launching.backoff import Backoff
from protocol.clock import SystemClock
from protocol.messages.launcher import NOT_STARTED

if TYPE_CHECKING:
    from deploy.launch.ray.records import KeeperNews
    from protocol.clock import Clock

log = logging.getLogger(__name__)
FINAL = (0, 2)
"""Statuses of an engine that left on purpose."""
KEPT_NEWS = 200
SPOT_NOTICE_S = 30.0
"""How long a machine that sends SIGTERM is believed to go on."""


class Keeper:
    """Runs until its engine leaves by itself or a seat says End. At most one seat is heard at a time."""

    def __init__(self, order: KeeperOrder, listener: socket.socket, clock: Clock) -> None:
        self.order = order
        self._listener, self._clock = listener, clock
        self._backoff = Backoff()
        self._news: deque[KeeperNews] = deque(maxlen=KEPT_NEWS)
        self._seat: Lines[SeatOrder] | None = None
        self._place = (order.node_id, order.session)
        self._ready: str | None = None
        self._child: ChildProcess | None = None
        self._started_s = 0.0
        self._ending = False
        self._tasks: set[asyncio.Task[None]] = set()

    async def run(self) -> None:
        """Until the end."""
        self._over = asyncio.Event()
        loop = asyncio.get_running_loop()
        loop.add_signal_handler(signal.SIGTERM, self._on_notice)
        server = await asyncio.start_unix_server(self._on_seat, sock=self._listener)
        self._start()
        await self._over.wait()
        server.close()
        if self._seat is not None:
            self._seat.close()

    # ---- the engine

    def _start(self) -> None:
        """Raises OSError when the system cannot start it now."""
        order = self.order
        command = [sys.executable, "-P", "-m", order.module, order.spec_path]
        command += ["--parent", str(os.getpid())]
        self._started_s = self._clock.now_s()
        if not order.tells_ready:
            self._run(command, ())
            return
        reading, writing = os.pipe()
        try:
            self._run([*command, "--ready-fd", str(writing)], (writing,))
        except OSError:
            os.close(reading)
            raise
        finally:
            os.close(writing)
        asyncio.get_running_loop().add_reader(reading, self._on_ready_line, reading)

    def _run(self, command: list[str], pass_fds: tuple[int, ...]) -> None:
        order = self.order
        self._child = ChildProcess(
            command,
            child_environment(order.num_threads, order.gpu, keeps_secrets=order.tells_ready),
            on_line=lambda line: self._tell(Line(name=order.name, text=line)),
            on_exit=self._on_exit,
            pass_fds=pass_fds,
        )
        self._tell(Started(name=order.name, pid=self._child.pid))

    def _on_ready_line(self, descriptor: int) -> None:
        line = os.read(descriptor, 1 << 16).decode("utf-8", "replace").strip()
        asyncio.get_running_loop().remove_reader(descriptor)
        os.close(descriptor)
        if line.startswith("ready"):
            self._ready = line.removeprefix("ready").strip()
            self._tell(Ready(name=self.order.name, news=self._ready))

    def _on_exit(self, status: int) -> None:
        assert self._child is not None
        tail = list(self._child.tail)[-1:]
        is_final = self._ending or status in FINAL
        self._ended(self._child.pid, status, tail[0] if tail else "", is_final=is_final)

    def _ended(self, pid: int, status: int, last_line: str, *, is_final: bool) -> None:
        lived_s = self._clock.now_s() - self._started_s
        delay_s = None if is_final else self._backoff.next_s(lived_s)
        self._tell(
            Ended(
                name=self.order.name,
                pid=pid,
                status=status,
                restart_in_s=delay_s,
                last_line=last_line,
            )
        )
        if delay_s is None:
            self._over.set()
        else:
            asyncio.get_running_loop().call_later(delay_s, self._start_again)

    def _start_again(self) -> None:
        """What the system cannot start now, for want of descriptors or memory, is tried again like what ended."""
        if self._ending:
            return
        try:
            self._start()
        except OSError as error:
            self._ended(0, NOT_STARTED, str(error), is_final=False)

    def _on_notice(self) -> None:
        """The machine is about to be taken away: say so, and be gone in time."""
        self._tell(Leaving(names=(self.order.name,), deadline_s=SPOT_NOTICE_S))
        asyncio.get_running_loop().call_later(SPOT_NOTICE_S, self._end, 1.0)

    def _end(self, timeout_s: float) -> None:
        self._ending = True
        if self._child is None or not self._child.running:
            self._over.set()
            return
        self._child.interrupt()
        asyncio.get_running_loop().call_later(timeout_s, self._child.kill)

    # ---- the seat

    def _tell(self, news: KeeperNews) -> None:
        if self._seat is None:
            self._news.append(news)
        else:
            self._seat.send(news)

    async def _on_seat(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """A seat asks who is here. It counts as ours once it adopts us."""
        seat: Lines[SeatOrder] = Lines(reader, writer, SeatOrder)
        node_id, session = self._place
        seat.send(
            KeeperHello(
                name=self.order.name,
                generation=self.order.generation,
                node_id=node_id,
                session=session,
                engine_pid=self._child.pid if self._child is not None else 0,
                ready=self._ready,
            )
        )
        try:
            while (order := await seat.receive()) is not None:
                match order:
                    case Adopt():
                        self._place = (order.node_id, order.session)
                        self._take(seat)
                    case End():
                        self._end(order.timeout_s)
        finally:
            if self._seat is seat:
                self._seat = None
            seat.close()

    def _take(self, seat: Lines[SeatOrder]) -> None:
        if self._seat is not None:
            self._seat.close()
        self._seat = seat
        while self._news:
            seat.send(self._news.popleft())


def listen(order_file: Path) -> socket.socket:
    """The keeper's socket; its directory is private."""
    path = order_file.with_suffix(".sock")
    path.unlink(missing_ok=True)
    listener = socket.socket(socket.AF_UNIX)
    listener.bind(str(path))
    listener.listen(8)
    return listener


def leave_background(order_file: Path) -> None:
    """On as a process of nobody: Ray ends the children of an actor that ends."""
    if os.fork():
        sys.stdout.flush()
        os._exit(0)  # noqa: TID251 - the short-lived parent of a daemon
    os.setsid()
    log_file = os.open(
        order_file.with_suffix(".log"), os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600
    )
    null = os.open(os.devnull, os.O_RDONLY)
    os.dup2(null, 0)
    os.dup2(log_file, 1)
    os.dup2(log_file, 2)
    os.close(null)
    os.close(log_file)


def main() -> int:
    """Exit status 0; what the engine did is told to the seat."""
    order_file = Path(sys.argv[1])
    harden()
    order = msgspec.json.decode(order_file.read_bytes(), type=KeeperOrder)
    lock = order_file.with_suffix(".lock").open("w", encoding="ascii")
    fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    listener = listen(order_file)
    leave_background(order_file)
    log_to_stderr(f"keeper of {order.name}", "info")
    try:
        asyncio.run(Keeper(order, listener, SystemClock()).run())
    finally:
        remove_keeper(order_file)
        lock.close()
    return 0


if __name__ == "__main__":
    sys.exit(main())
