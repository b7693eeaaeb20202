"""Requests that are held open until they are left, read by one thread. Owns their sockets; knows nothing of what is decided about them."""

from __future__ import annotations

import json
import selectors
import socket
import threading
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from types import TracebackType
    from typing import Self

CHUNK_BYTES = 1 << 16
HEAD_BYTES = 4096


@dataclass(eq=False)
class Held:
    """One request. `status` comes with its head, `is_answered` with the first line behind it, `is_over` when the server closed."""

    number: int
    model: str
    socket: socket.socket
    status: int = 0
    is_answered: bool = False
    is_over: bool = False
    head: bytes = field(default=b"", repr=False)

    def hear(self, chunk: bytes) -> None:
        """What came."""
        if not chunk:
            self.is_over = True
        elif not self.is_answered:
            self.head += chunk
            first, _, rest = self.head.partition(b"\r\n\r\n")
            if rest:
                self.status = int(first.split(b" ", 2)[1])
                self.is_answered = True


class HeldRequests:
    """All of them. What comes is read and thrown away, so that no answer waits for its reader."""

    def __init__(self, port: int) -> None:
        self._port = port
        self._selector = selectors.DefaultSelector()
        self._lock = threading.Lock()
        self._ends = threading.Event()
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    def ask(self, number: int, path: str, body: dict[str, Any]) -> Held:
        """Send it; the answer comes when it comes."""
        connection = socket.create_connection(("127.0.0.1", self._port))
        sent = json.dumps(body).encode()
        head = f"POST {path} HTTP/1.1\r\nHost: 127.0.0.1\r\nConnection: close\r\nContent-Type: application/json\r\nContent-Length: {len(sent)}\r\n\r\n"
        connection.sendall(head.encode() + sent)
        held = Held(number, body["model"], connection)
        connection.setblocking(False)
        with self._lock:
            self._selector.register(connection, selectors.EVENT_READ, held)
        return held

    def leave(self, held: Held) -> None:
        """Close it, in whatever state it is."""
        with self._lock:
            if held.socket.fileno() >= 0:
                if held.socket in self._selector.get_map():
                    self._selector.unregister(held.socket)
                held.socket.close()

    def _read(self) -> None:
        while not self._ends.is_set():
            with self._lock:
                ready = self._selector.select(0.0) if self._selector.get_map() else []
                for key, _ in ready:
                    self._hear(key.data)
            self._ends.wait(0.01)

    def _hear(self, held: Held) -> None:
        try:
            chunk = held.socket.recv(CHUNK_BYTES)
        except BlockingIOError:
            return
        except ConnectionError:
            chunk = b""
        held.hear(chunk)
        if held.is_over:
            self._selector.unregister(held.socket)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._ends.set()
        self._reader.join()
        for key in list(self._selector.get_map().values()):
            key.data.socket.close()
        self._selector.close()
