"""Servers that benchmarks start. Owns their processes from start to end."""

from __future__ import annotations

import atexit
import contextlib
import os
import signal
import socket
import subprocess
import threading
import time
import urllib.error
import urllib.request
from pathlib import Path
from typing import TYPE_CHECKING, NoReturn

if TYPE_CHECKING:
    from collections.abc import Iterator
    from types import FrameType

READY_LIMIT_S = 400.0

_started: list[subprocess.Popen[bytes]] = []


def free_port() -> int:
    """A port that nobody listens on now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def await_ready(url: str, process: subprocess.Popen[bytes]) -> float:
    """Seconds until `/health` answers 200."""
    started = time.perf_counter()
    while time.perf_counter() - started < READY_LIMIT_S:
        if process.poll() is not None:
            raise SystemExit(f"the server for {url} ended at its start ({process.returncode})")
        try:
            with urllib.request.urlopen(f"{url}/health", timeout=2) as reply:
                if reply.status == 200:
                    return time.perf_counter() - started
        except (urllib.error.URLError, OSError):
            pass  # not listening yet
        time.sleep(0.05)
    raise SystemExit(f"{url} was not ready after {READY_LIMIT_S:g} s")


def end(process: subprocess.Popen[bytes]) -> None:
    """SIGINT to the server's own session; SIGKILL to what is left of it once the server has ended, or after a while."""
    _signal_session(process, signal.SIGINT)
    with contextlib.suppress(subprocess.TimeoutExpired):
        process.wait(timeout=20)
    _signal_session(process, signal.SIGKILL)
    process.wait()
    if process in _started:
        _started.remove(process)


def _signal_session(process: subprocess.Popen[bytes], number: signal.Signals) -> None:
    with contextlib.suppress(ProcessLookupError):  # nothing is left
        os.killpg(process.pid, number)


def start(command: list[str], log: Path) -> subprocess.Popen[bytes]:
    """A server in a session of its own, its output in a file. From now on SIGTERM unwinds this process, so that whoever
    owns the server ends it; one that nobody owns yet ends with this process."""
    with _undisturbed(), log.open("wb") as output:
        server = subprocess.Popen(
            command, stdout=output, stderr=subprocess.STDOUT, start_new_session=True
        )
        _started.append(server)
    return server


@contextlib.contextmanager
def _undisturbed() -> Iterator[None]:
    """SIGTERM waits for the end of this block: a process that exists has somebody who knows it. And a shell that started
    this one in the background had it ignore SIGINT: its servers, which are ended by it, do not inherit that."""
    if threading.current_thread() is not threading.main_thread():
        yield  # signals are the main thread's, which waits for this one
        return
    came: list[int] = []
    signal.signal(signal.SIGTERM, lambda number, _frame: came.append(number))
    is_deaf = signal.getsignal(signal.SIGINT) is signal.SIG_IGN
    if is_deaf:
        signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        yield
    finally:
        if is_deaf:
            signal.signal(signal.SIGINT, signal.SIG_IGN)
        signal.signal(signal.SIGTERM, _leave)
        if came:
            _leave(came[0], None)


@atexit.register
def _end_what_is_left() -> None:
    for server in _started.copy():
        end(server)


def _leave(number: int, _frame: FrameType | None) -> NoReturn:
    raise SystemExit(128 + number)


def descendants(ancestor: int) -> list[int]:
    """Pids below it, whatever their session."""
    parents: dict[int, int] = {}
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                stat = (entry / "stat").read_text(encoding="utf-8", errors="replace")
            except (FileNotFoundError, ProcessLookupError):
                continue
            parents[int(entry.name)] = int(stat.rpartition(")")[2].split()[1])
    found = [ancestor]
    for pid in found:
        found += [child for child, parent in parents.items() if parent == pid]
    return found[1:]
