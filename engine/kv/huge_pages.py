"""Mappings that can lie in huge pages. Owns alignment, MADV_COLLAPSE and MADV_POPULATE; must not know what is mapped.

A memfd gets no huge pages by itself on most systems (`shmem_enabled` is `never`), but MADV_COLLAPSE
makes them whatever that setting is, if the mapping starts at a multiple of their size.
"""

from __future__ import annotations

import ctypes
import mmap
import os
import weakref
from typing import Any

from protocol.errors import ConfigError, InternalError

HUGE_BYTES = 2 << 20
_MADV_DONTNEED = 4
_MADV_POPULATE_READ, _MADV_POPULATE_WRITE, _MADV_COLLAPSE = 22, 23, 25
_MAP_FIXED = 0x10
_MAP_NORESERVE = 0x4000

_libc = ctypes.CDLL(None, use_errno=True)
_libc.mmap.restype = ctypes.c_void_p
_libc.mmap.argtypes = [
    ctypes.c_void_p,
    ctypes.c_size_t,
    ctypes.c_int,
    ctypes.c_int,
    ctypes.c_int,
    ctypes.c_long,
]
_libc.munmap.argtypes = [ctypes.c_void_p, ctypes.c_size_t]
_libc.madvise.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int]


def map_aligned(descriptor: int, size: int, *, writable: bool) -> ctypes.Array[ctypes.c_uint8]:
    """[size] bytes of the file, shared, at a multiple of a huge page; unmapped when the last view dies.

    A write through a mapping that is not `writable` kills the process. Raises ConfigError.
    """
    reserved = size + HUGE_BYTES
    private = mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS | _MAP_NORESERVE
    room: int = _libc.mmap(None, reserved, 0, private, -1, 0)
    start = -(-room // HUGE_BYTES) * HUGE_BYTES
    access = mmap.PROT_READ | (mmap.PROT_WRITE if writable else 0)
    address = _libc.mmap(start, size, access, mmap.MAP_SHARED | _MAP_FIXED, descriptor, 0)
    if address != start:
        raise ConfigError(f"cannot map {size} bytes: {os.strerror(ctypes.get_errno())}")
    array: Any = (ctypes.c_uint8 * size).from_address(start)
    # Not at exit: another thread may still read then, and the process's end unmaps everything.
    weakref.finalize(array, _libc.munmap, room, reserved).atexit = False
    return array  # type: ignore[no-any-return]


def collapse(array: ctypes.Array[ctypes.c_uint8]) -> bool:
    """Put the mapped bytes into huge pages; False when the kernel does not, and only speed is lost."""
    size = len(array) // HUGE_BYTES * HUGE_BYTES
    return size == 0 or _libc.madvise(ctypes.addressof(array), size, _MADV_COLLAPSE) == 0


def forget_pages(address: int, size: int) -> None:
    """Take the mapping of a file out of this process's memory; what is read of it later comes from the file again.

    Never of bytes that were written through a private mapping: those would be lost. `address` is a multiple of the page size.
    """
    if _libc.madvise(address, size, _MADV_DONTNEED):
        raise InternalError(f"a mapping cannot be let go: {os.strerror(ctypes.get_errno())}")


def populate(address: int, size: int, *, writable: bool) -> bool:
    """Enter every page into this process's page table now, so that no copy pays for it page by page later.

    `address` is a multiple of the page size. False when the kernel does not (before 5.14), and only speed
    is lost. Lets go of the interpreter lock.
    """
    advice = _MADV_POPULATE_WRITE if writable else _MADV_POPULATE_READ
    failed: int = _libc.madvise(address, size, advice)
    return not failed
