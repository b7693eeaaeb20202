"""A process that has imported what every worker needs, and becomes one by a fork. Owns what it imports, and how a worker begins in it.

usage: python -m deploy.processes.fork_server SOCKET_FD --parent PID

    order ─► fork server ─fork─► starter ─fork─► worker: the starter ends, and who started the server adopts the worker

It has one thread, maps no weights and opens no socket of its own, so that a fork of it is as good as a new process. A worker
begins at the launcher's word, when it is watched; the end of the pipe instead means that nobody wants it.
"""

from __future__ import annotations

import argparse
import contextlib
import gc
import importlib
import os
import socket
import sys
from typing import TYPE_CHECKING

from deploy.processes.child import end_by_interrupt, follow_parent, harden
from deploy.processes.fork_orders import GO, next_order, pid_bytes, pid_of, tell_pid
from deploy.processes.worker_main import serve_file

if TYPE_CHECKING:
    from pathlib import Path

MODULES = (
    "engine.grammar.compiler",
    "engine.runner",
    "worker.engine_start",
    "worker.grammars",
    "worker.wiring",
)
"""Importing them is most of a worker's start."""


def load() -> None:
    """Import everything, and let no garbage collector of a fork touch it, which would copy its pages."""
    for name in MODULES:
        importlib.import_module(name)
    gc.collect()
    gc.freeze()


def serve(orders: socket.socket) -> Path | None:
    """Fork as ordered. Returns the path of its spec in every worker, and None in the server once nobody asks any more."""
    while True:
        asked = next_order(orders)
        if asked is None:
            return None
        path, output, word = asked
        pid = fork_away()
        if pid is None:
            orders.close()
            return path if begins(output, word) else None
        os.close(output)
        os.close(word)
        tell_pid(orders, pid)


def fork_away() -> int | None:
    """None in a new process that is not this one's child; its pid here, 0 where the system has no room for it."""
    reading, writing = os.pipe()
    try:
        starter = os.fork()
    except OSError:
        starter = -1
    if starter == 0:
        os.close(reading)
        _start(writing)
        return None
    os.close(writing)
    told = os.read(reading, 64)
    os.close(reading)
    if starter > 0:
        os.waitpid(starter, 0)
    return pid_of(told)


def _start(writing: int) -> None:
    """The starter ends here, and has told the worker's pid; the worker goes on, as the leader of a process group."""
    try:
        worker = os.fork()
    except OSError:
        os._exit(1)  # noqa: TID251 - a fork that must not go on as its parent
    if worker:
        with contextlib.suppress(
            OSError
        ):  # it has ended already, or the server has: whoever asks will see
            os.setpgid(worker, worker)
            os.write(writing, pid_bytes(worker))
        os._exit(0)  # noqa: TID251 - as above
    os.close(writing)


def begins(output: int, word: int) -> bool:
    """In a worker: speak through `output` from now on, and wait for the word."""
    for number in (sys.stdout.fileno(), sys.stderr.fileno()):
        os.dup2(output, number)
    os.close(output)
    is_wanted = os.read(word, len(GO)) == GO
    os.close(word)
    return is_wanted


def main() -> int:
    """The server's exit status, and in a worker that one's."""
    parser = argparse.ArgumentParser()
    parser.add_argument("socket_fd", type=int)
    parser.add_argument("--parent", type=int, default=0)
    arguments = parser.parse_args()
    follow_parent(arguments.parent)
    end_by_interrupt()
    harden()
    load()
    with socket.socket(fileno=arguments.socket_fd) as orders:
        path = serve(orders)
    return 0 if path is None else serve_file(path, arguments.parent)


if __name__ == "__main__":
    sys.exit(main())
