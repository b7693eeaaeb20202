"""One copy of a model's weights in huge pages, for all workers of a host. Owns an inherited memfd's filling and mapping.

    launcher: memfd, empty ──inherited──► workers ── the first to lock it fills it, collapses it into
                                                      huge pages and seals it; all map it read-only

Files on disk get no huge pages, so a core that reads weights from one spends a third of its time on
page tables. MADV_COLLAPSE makes huge pages of a memfd whatever the system's setting is. The seal
tells that the filling is complete: a worker that dies in the middle leaves the work to the next.
"""

from __future__ import annotations

import ctypes
import fcntl
import mmap
import os
from typing import TYPE_CHECKING

from engine.api.errors import ConfigError

if TYPE_CHECKING:
    from pathlib import Path

_HUGE_BYTES = 2 << 20
_MADV_COLLAPSE = 25
_MAP_FIXED = 0x10
_SEALS = fcntl.F_SEAL_WRITE | fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW


def create() -> int:
    """An empty, sealable memfd that children inherit by its number."""
    return os.memfd_create("baton-weights", os.MFD_ALLOW_SEALING | os.MFD_CLOEXEC)


def map_shared(descriptor: int, path: Path) -> int:
    """Address of a read-only mapping of the memfd, which holds the bytes of `path` then.

    Raises ConfigError when the memfd was filled from a file of another size.
    """
    size = path.stat().st_size
    fcntl.lockf(descriptor, fcntl.LOCK_EX)
    try:
        if not fcntl.fcntl(descriptor, fcntl.F_GET_SEALS) & fcntl.F_SEAL_WRITE:
            _fill(descriptor, path, size)
    finally:
        fcntl.lockf(descriptor, fcntl.LOCK_UN)
    if os.fstat(descriptor).st_size != size:
        raise ConfigError(f"the shared weights are not those of {path}; start the server again")
    return _map(descriptor, size)


def _fill(descriptor: int, path: Path, size: int) -> None:
    os.ftruncate(descriptor, size)
    os.lseek(descriptor, 0, os.SEEK_SET)
    with path.open("rb") as file:
        sent = 0
        while sent < size:
            sent += os.sendfile(descriptor, file.fileno(), sent, size - sent)
    fcntl.fcntl(descriptor, fcntl.F_ADD_SEALS, _SEALS)


def _map(descriptor: int, size: int) -> int:
    """Map at a multiple of a huge page's size, and ask for huge pages; without them only speed is lost."""
    libc = ctypes.CDLL(None, use_errno=True)
    libc.mmap.restype = ctypes.c_void_p
    libc.mmap.argtypes = [ctypes.c_void_p, *[ctypes.c_size_t] * 4, ctypes.c_long]
    libc.madvise.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int]
    private = mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS
    room: int = libc.mmap(None, size + _HUGE_BYTES, 0, private, ctypes.c_size_t(-1).value, 0)
    start = -(-room // _HUGE_BYTES) * _HUGE_BYTES
    flags = mmap.MAP_SHARED | _MAP_FIXED
    address: int | None = libc.mmap(start, size, mmap.PROT_READ, flags, descriptor, 0)
    if address != start:
        raise ConfigError(f"cannot map the weights: {os.strerror(ctypes.get_errno())}")
    libc.madvise(start, size // _HUGE_BYTES * _HUGE_BYTES, _MADV_COLLAPSE)
    return start
