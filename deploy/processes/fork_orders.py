"""What a launcher and a fork server tell each other. Owns both directions of their socket, whose ends keep messages apart.

launcher ──spec's path; two descriptors: the worker's output, the pipe of the launcher's word──► fork server
         ◄──the worker's pid, 0 where the system has no room──
"""

from __future__ import annotations

import socket
from pathlib import Path

GO = b"g"
"""The word at which a worker begins."""
_PATH_BYTES = 1 << 12
_PID_BYTES = 8


def pair() -> tuple[socket.socket, socket.socket]:
    """The launcher's end, which never waits, and the server's."""
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    ours.settimeout(0)
    return ours, theirs


def order(to: socket.socket, path: Path, output: int, word: int) -> None:
    """Ask for a worker; OSError where the server is gone, or has read nothing for long."""
    socket.send_fds(to, [str(path).encode()], [output, word])


def next_order(orders: socket.socket) -> tuple[Path, int, int] | None:
    """Path, output and word of the next worker; None when nobody will ask any more."""
    path, descriptors, _, _ = socket.recv_fds(orders, _PATH_BYTES, 2)
    if not path:
        return None
    output, word = descriptors
    return Path(path.decode()), output, word


def tell_pid(orders: socket.socket, pid: int) -> None:
    """The answer to an order; 0 for none."""
    orders.send(pid_bytes(pid))


def next_pid(told: socket.socket) -> int | None:
    """The answer to the oldest order that has none; None where the server is gone."""
    try:
        answer = told.recv(_PID_BYTES)
    except ConnectionError:
        return None
    return pid_of(answer) if answer else None


def pid_bytes(pid: int) -> bytes:
    """A pid through a pipe or the socket."""
    return pid.to_bytes(_PID_BYTES, "little")


def pid_of(told: bytes) -> int:
    """0 where nothing was told."""
    return int.from_bytes(told, "little")
