"""The bytes of a block pool. Owns one sealed, anonymous shared-memory file; must not know what is in a block.

A memfd has no name: the kernel frees it with its last descriptor, so nothing survives SIGKILL and
nothing lies in /dev/shm. Seals forbid resizing, so a reader can never be hit by SIGBUS.
"""

from __future__ import annotations

import fcntl
import mmap
import os

from engine.api.errors import ConfigError

_SEALS = fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW | fcntl.F_SEAL_SEAL
_MADV_HUGEPAGE = 14


class KvMemory:
    """`num_blocks` blocks of `block_bytes` each, contiguous, allocated at construction and not at first touch."""

    def __init__(self, num_blocks: int, block_bytes: int) -> None:
        self.num_blocks = num_blocks
        self.block_bytes = block_bytes
        self.size_bytes = num_blocks * block_bytes
        self.fd = os.memfd_create("baton-kv", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
        try:
            os.posix_fallocate(self.fd, 0, self.size_bytes)
        except OSError as error:
            os.close(self.fd)
            raise ConfigError(
                f"cannot reserve {self.size_bytes} bytes of KV cache ({error.strerror}); "
                "lower --kv-cache-memory"
            ) from error
        fcntl.fcntl(self.fd, fcntl.F_ADD_SEALS, _SEALS)
        self._map = mmap.mmap(self.fd, self.size_bytes, mmap.MAP_SHARED)
        self._advise_huge_pages()
        self.buffer = memoryview(self._map)

    def _advise_huge_pages(self) -> None:
        try:
            self._map.madvise(_MADV_HUGEPAGE)
        except OSError:  # the kernel has no huge pages for shared memory: only speed is lost
            return

    def block(self, block_id: int) -> memoryview:
        """The bytes of one block, writable."""
        start = block_id * self.block_bytes
        return self.buffer[start : start + self.block_bytes]

    def close(self) -> None:
        """Give the memory back; views still alive keep the mapping until they die."""
        self.buffer.release()
        os.close(self.fd)
