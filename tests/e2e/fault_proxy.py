"""A TCP proxy that breaks what passes it, from the server to the reader. Owns its threads and sockets."""

from __future__ import annotations

import contextlib
import socket
import struct
import threading
from dataclasses import dataclass
from typing import NamedTuple

CHUNK_BYTES = 64 << 10
_RESET = struct.pack("ii", 1, 0)


@dataclass
class Fault:
    """What to do with the stream from the server; offsets count from its first byte."""

    latency_s: float = 0.0
    cut_at: int | None = None
    reset: bool = False
    corrupt_at: int | None = None
    stall_at: int | None = None


class Way(NamedTuple):
    """Where a connection goes, and whether it is the source of blocks that made it. Others than those between source
    and reader are not tested: they pass unharmed."""

    target: tuple[str, int]
    is_from_source: bool = False
    is_tested: bool = True


class FaultProxy:
    """Listens on a free port; `did` is set once the fault has happened."""

    def __init__(self, target: tuple[str, int], fault: Fault) -> None:
        self.fault = fault
        self.did = threading.Event()
        self.passed_bytes = 0
        self.num_connections = 0
        self._target = target
        self._closing = threading.Event()
        self._sockets: list[socket.socket] = []
        self._tested: list[socket.socket] = []
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port: int = self._listener.getsockname()[1]
        self._threads = [threading.Thread(target=self._accept, daemon=True)]
        self._threads[0].start()

    def _accept(self) -> None:
        while True:
            try:
                near, peer = self._listener.accept()
            except OSError:
                return
            way = self.way(peer[1])
            self.num_connections += 1
            try:
                far = socket.create_connection(way.target)
            except OSError:
                near.close()
                continue
            self._sockets += [near, far]
            if way.is_tested:
                self._tested += [near, far]
            fault = self.fault if way.is_tested else Fault()
            source, reader = (near, far) if way.is_from_source else (far, near)
            for work in ((reader, source, Fault()), (source, reader, fault)):
                thread = threading.Thread(target=self._pump, args=work, daemon=True)
                self._threads.append(thread)
                thread.start()

    def way(self, port: int) -> Way:
        """Where a connection from this port goes."""
        del port
        return Way(self._target)

    def _pump(self, source: socket.socket, target: socket.socket, fault: Fault) -> None:
        passed = 0
        try:
            while data := source.recv(CHUNK_BYTES):
                if fault.latency_s:
                    self._closing.wait(fault.latency_s)
                broken, is_over = self._break(bytearray(data), passed, fault)
                target.sendall(broken)
                passed += len(broken)
                self.passed_bytes += len(broken)
                if is_over:
                    break
        except OSError:
            pass
        if fault.reset and self.did.is_set():
            target.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET)
        for end in (target, source):
            end.close()

    def _break(self, data: bytearray, passed: int, fault: Fault) -> tuple[bytearray, bool]:
        """The data with the fault applied, and whether the stream ends there."""
        end = passed + len(data)
        if fault.corrupt_at is not None and passed <= fault.corrupt_at < end:
            data[fault.corrupt_at - passed] ^= 0x40
            self.did.set()
        if fault.cut_at is not None and fault.cut_at < end:
            self.did.set()
            return data[: max(fault.cut_at - passed, 0)], True
        if fault.stall_at is not None and fault.stall_at < end:
            self.did.set()
            self._closing.wait(60)
        return data, False

    def break_connections(self) -> None:
        """End every connection under test that runs now; new ones are accepted."""
        for end in self._tested:
            with contextlib.suppress(OSError):  # closed by its own thread
                end.shutdown(socket.SHUT_RDWR)

    def close(self) -> None:
        """Close everything and wait for the threads."""
        self._closing.set()
        self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        for end in self._sockets:
            with contextlib.suppress(OSError):
                end.shutdown(socket.SHUT_RDWR)
            end.close()
        for thread in list(self._threads):
            thread.join(timeout=5)
