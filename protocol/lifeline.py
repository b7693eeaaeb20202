"""A lock in shared memory that the kernel takes from whoever dies with it. Owns the lock, and the wait for that moment.

The end of a process is told by its pidfd after its memory was given back: 45 ms for 300 MiB and a small pool, a second for a large
one. A robust mutex (`pthread_mutexattr_setrobust`) is let go of before that.

    worker: Lifeline(), held by the thread that made it ──fd──► Hello ──► coordinator: watch(pid, fd) ── a thread waits ──► cut()
"""

from __future__ import annotations

import contextlib
import ctypes
import mmap
import os
import threading
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable

NONE = -1
"""In place of a descriptor, where there is no such lock."""
_ATTRIBUTE_BYTES = 64
_SHARED, _ROBUST = 1, 1
_libc = ctypes.CDLL(None)
_held: list[_SharedLock] = []
"""The C library has them in a list of the thread: they stay mapped to its end."""


class Lifeline:
    """Held by the thread that makes it for as long as it lives: a process has one, of its main thread. `fd` is NONE where
    the system has no robust locks."""

    def __init__(self) -> None:
        self.fd = NONE
        fd = os.memfd_create("baton-lifeline", os.MFD_CLOEXEC)
        os.ftruncate(fd, mmap.PAGESIZE)
        self._lock = _SharedLock(fd)
        if self._lock.make() and self._lock.take():
            self.fd = fd
            _held.append(self._lock)
        else:
            os.close(fd)


class _SharedLock:
    """A mutex at the beginning of a mapped file."""

    def __init__(self, fd: int) -> None:
        self._mutex = (ctypes.c_uint8 * mmap.PAGESIZE).from_buffer(mmap.mmap(fd, mmap.PAGESIZE))

    def make(self) -> bool:
        """Whether the system has such locks."""
        attributes = (ctypes.c_uint8 * _ATTRIBUTE_BYTES)()
        failed: int = _libc.pthread_mutexattr_init(attributes)
        failed |= _libc.pthread_mutexattr_setpshared(attributes, _SHARED)
        failed |= _libc.pthread_mutexattr_setrobust(attributes, _ROBUST)
        return not (failed | _libc.pthread_mutex_init(self._mutex, attributes))

    def take(self) -> bool:
        """Waits, without the interpreter's lock, until its holder died; whether it was free."""
        return bool(_libc.pthread_mutex_lock(self._mutex) == 0)

    def give(self) -> None:
        """The next who waits has it then, and so hears of the death, too."""
        _libc.pthread_mutex_consistent(self._mutex)
        _libc.pthread_mutex_unlock(self._mutex)


def watch(pid: int, fd: int, cut: Callable[[], None]) -> None:
    """Call `cut` once, in another thread, when the holder of that process's lock is dead. OSError when it is already, or may
    not be looked at."""
    own = os.open(f"/proc/{pid}/fd/{fd}", os.O_RDWR | os.O_CLOEXEC)
    try:
        lock = _SharedLock(own)
    finally:
        os.close(own)

    def wait() -> None:
        lock.take()
        lock.give()
        cut()
        hasten(pid)

    threading.Thread(target=wait, name=f"baton-life-{pid}"[:15], daemon=True).start()


def hasten(pid: int) -> None:
    """Let the threads of a dying process end at the usual priority, where we may. One that runs only while nobody else wants
    its core (SCHED_IDLE) dies as slowly as it ran, and whichever is the last gives the memory of all back: minutes on a full
    machine."""
    for task in _tasks(pid):
        with contextlib.suppress(OSError):  # it is over, or this system does not let us
            if os.sched_getscheduler(task) == os.SCHED_IDLE:
                os.sched_setscheduler(task, os.SCHED_OTHER, os.sched_param(0))


def _tasks(pid: int) -> list[int]:
    try:
        return [int(name) for name in os.listdir(f"/proc/{pid}/task")]  # noqa: PTH208 - names are all that is wanted
    except OSError:
        return []
