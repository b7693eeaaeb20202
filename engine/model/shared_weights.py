"""One copy of a model's weights in huge pages, for all workers of a host. Owns an inherited memfd's filling and mapping.

    launcher: memfd, empty ──inherited──► workers ── the first to lock it fills it, collapses it into
                                                      huge pages and seals it; all map it read-only

Files on disk get no huge pages, so a core that reads weights from one spends a third of its time on
page tables. MADV_COLLAPSE makes huge pages of a memfd whatever the system's setting is. The seal
tells that the filling is complete: a worker that dies in the middle leaves the work to the next.
"""

from __future__ import annotations

import fcntl
import os
from typing import TYPE_CHECKING

from engine.kv.huge_pages import collapse, map_aligned
from protocol.errors import ConfigError

if TYPE_CHECKING:
    import ctypes
    from pathlib import Path

_SEALS = fcntl.F_SEAL_WRITE | fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW


def create() -> int:
    """An empty, sealable memfd that children inherit by its number."""
    return os.memfd_create("baton-weights", os.MFD_ALLOW_SEALING | os.MFD_CLOEXEC)


def map_shared(descriptor: int, path: Path) -> ctypes.Array[ctypes.c_uint8]:
    """The memfd, which holds the bytes of `path` then; read-only, whatever the type says.

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
    array = map_aligned(descriptor, size, writable=False)
    collapse(array)
    return array


def _fill(descriptor: int, path: Path, size: int) -> None:
    os.ftruncate(descriptor, size)
    os.lseek(descriptor, 0, os.SEEK_SET)
    with path.open("rb") as file:
        sent = 0
        while sent < size:
            sent += os.sendfile(descriptor, file.fileno(), sent, size - sent)
    fcntl.fcntl(descriptor, fcntl.F_ADD_SEALS, _SEALS)
