"""The bytes of a block pool. Owns one sealed, anonymous shared-memory file; must not know what is in a block.

A memfd has no name: the kernel frees it with its last descriptor, so nothing survives SIGKILL and
nothing lies in /dev/shm. Seals forbid resizing, so a reader can never be hit by SIGBUS.
"""

from __future__ import annotations

import ctypes
import fcntl
import os
import weakref
from typing import TYPE_CHECKING

from engine.kv.huge_pages import map_aligned, populate
from protocol.errors import ConfigError, InternalError

if TYPE_CHECKING:
    from collections.abc import Sequence

_KEEP_SIZE, _PUNCH_HOLE = 1, 2
_libc = ctypes.CDLL(None, use_errno=True)
_SEALS = fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW | fcntl.F_SEAL_SEAL


class KvMemory:
    """`num_blocks` blocks of `block_bytes` each, contiguous, allocated at construction and not at first touch. The descriptor
    goes with the object, whether or not it was closed."""

    kind = "host"

    def __init__(self, num_blocks: int, block_bytes: int) -> None:
        self.num_blocks = num_blocks
        self.block_bytes = block_bytes
        self.size_bytes = num_blocks * block_bytes
        self.fd = os.memfd_create("baton-kv", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
        self._let_go = weakref.finalize(self, os.close, self.fd)
        os.ftruncate(self.fd, self.size_bytes)
        mapped = map_aligned(self.fd, self.size_bytes, writable=True)
        try:
            self._reserve()
        except ConfigError:
            self._let_go()
            raise
        self._address = ctypes.addressof(mapped)
        populate(self._address, self.size_bytes, writable=True)
        self.is_away = False
        fcntl.fcntl(self.fd, fcntl.F_ADD_SEALS, _SEALS)
        self.buffer = memoryview(mapped).cast("B")

    @property
    def held_bytes(self) -> int:
        """What of the host's memory is taken now."""
        return 0 if self.is_away else self.size_bytes

    def give_back(self) -> None:
        """The host has the memory again; file, mapping and addresses stay, and what is read there is zeros. Nobody may hold
        a block whose bytes matter."""
        size = ctypes.c_long(self.size_bytes)
        if _libc.fallocate(self.fd, _PUNCH_HOLE | _KEEP_SIZE, ctypes.c_long(0), size):
            raise InternalError(f"the KV cache is kept: {os.strerror(ctypes.get_errno())}")
        self.is_away = True

    def take_again(self) -> None:
        """All of it, as at the start; raises ConfigError, and takes nothing, where the host has not as much."""
        if not self.is_away:
            return
        self._reserve()
        populate(self._address, self.size_bytes, writable=True)
        self.is_away = False

    def _reserve(self) -> None:
        try:
            os.posix_fallocate(self.fd, 0, self.size_bytes)
        except OSError as error:
            raise ConfigError(
                f"cannot reserve {self.size_bytes} bytes of KV cache ({error.strerror}); "
                "lower --kv-cache-memory"
            ) from error

    def block(self, block_id: int) -> memoryview:
        """The bytes of one block, writable."""
        start = block_id * self.block_bytes
        return self.buffer[start : start + self.block_bytes]

    def materials(self, block_ids: Sequence[int]) -> list[memoryview]:
        """What stands for each block in its digest: its bytes."""
        return [self.block(block_id) for block_id in block_ids]

    def readable(self, first: int, count: int) -> memoryview:
        """The bytes of `count` blocks from `first` on, where they lie."""
        return self.buffer[first * self.block_bytes : (first + count) * self.block_bytes]

    writable = readable

    def written(self, first: int, count: int) -> None:
        """The bytes are where they belong already."""

    def close(self) -> None:
        """Give the memory back; views still alive keep the mapping until they die."""
        self.buffer.release()
        self._let_go()
