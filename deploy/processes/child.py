"""What every child process does first. Owns its tie to the launcher and its log format."""

from __future__ import annotations

import ctypes
import logging
import os
import resource
import signal
import sys
import threading
from typing import TYPE_CHECKING

from deploy.processes.log_lines import LineFormatter, QueuedLines
from protocol.errors import ConfigError

if TYPE_CHECKING:
    from collections.abc import Callable

_PR_SET_PDEATHSIG = 1
_NICE = 10


def follow_parent(parent_pid: int, number: int = signal.SIGKILL) -> None:
    """Die with the launcher: the kernel sends SIGKILL, or another signal, when it ends, however it ends."""
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.prctl(_PR_SET_PDEATHSIG, number, 0, 0, 0) != 0:
        raise ConfigError(f"prctl failed: {os.strerror(ctypes.get_errno())}")
    if parent_pid and os.getppid() != parent_pid:
        raise SystemExit("the launcher is gone already")


def end_by_interrupt() -> None:
    """SIGINT ends the process without a word until it has a handler of its own, whoever ignored or blocked it before. One that
    came while it was blocked ends it here."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGINT})


def harden() -> None:
    """No core dumps (they hold prompts), private files, and room for connections of strangers."""
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))
    os.umask(0o077)


def unhurried(work: Callable[[], None]) -> None:
    """Do it while nobody else wants the processor: in a thread that may be kept waiting. Threads that it starts may, too."""

    def run() -> None:
        os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), _NICE)
        work()

    thread = threading.Thread(target=run)
    thread.start()
    thread.join()


def log_to_stderr(name: str, level: str) -> None:
    """One line a record, prefixed with the process's name; never waits for a reader."""
    logging.basicConfig(handlers=[QueuedLines(sys.stderr.fileno())], level=level.upper())
    log_as(name)


def log_as(name: str) -> None:
    """From now on with that prefix: a standby has become a worker."""
    for handler in logging.getLogger().handlers:
        handler.setFormatter(LineFormatter(name))
