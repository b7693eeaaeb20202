"""Files of a log, one call at a time. Owns every system call on them, and whether the page cache is passed by; decides
nothing. Tests put another disk in its place: one that is full, breaks, or forgets what was not synced.

Blocks pass the page cache by (O_DIRECT): on the disk that was measured that is three times as quick, for a tenth of the
processor, and takes no memory from models (`docs/adr/0024-a-log-of-proven-blocks.md`).
"""

from __future__ import annotations

import ctypes
import errno
import fcntl
import os
import stat
import threading
from mmap import mmap
from typing import TYPE_CHECKING

from kvtransfer.store.layout import ALIGN, padded
from protocol.errors import StoreError

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

OWNER = "owner"
_MODE = 0o600
_MOST_PARTS = 1024
"""Of one system call."""
_PUNCH_HOLE, _KEEP_SIZE = 2, 1
_libc = ctypes.CDLL(None, use_errno=True)
_libc.fallocate.argtypes = (ctypes.c_int, ctypes.c_int, ctypes.c_int64, ctypes.c_int64)


class DiskFile:
    """One open file. Offsets and lengths of data are multiples of 4,096; what any method raises is an OSError."""

    def __init__(self, path: Path, *, create: bool) -> None:
        self.path = path
        flags = os.O_CLOEXEC | os.O_NOFOLLOW | (os.O_CREAT | os.O_EXCL if create else 0)
        self.writable, self._fd = _open_best(path, flags)
        self._direct_fd = self._open_direct()
        self._bounce = threading.local()

    def _open_direct(self) -> int:
        access = os.O_RDWR if self.writable else os.O_RDONLY
        flags = access | os.O_CLOEXEC | os.O_NOFOLLOW
        try:
            return os.open(self.path, flags | os.O_DIRECT)
        except OSError as error:  # a file system that has no such thing
            if error.errno != errno.EINVAL:
                os.close(self._fd)
                raise
            return os.open(self.path, flags)

    def write_data(self, offset: int, parts: Sequence[memoryview]) -> None:
        """Whole pages, one part after the other, each from memory that begins at a page, as `aligned` gives."""
        for first in range(0, len(parts), _MOST_PARTS):
            some = parts[first : first + _MOST_PARTS]
            written = os.pwritev(self._direct_fd, some, offset)
            for part in some:
                _write_all(self._direct_fd, offset + min(written, part.nbytes), part[written:])
                offset, written = offset + part.nbytes, max(0, written - part.nbytes)

    def read_data(self, offset: int, into: memoryview) -> bool:
        """Fill `into`, wherever it lies, with bytes from a multiple of 4,096 on; False where the file is shorter."""
        if into.nbytes % ALIGN == 0 and _address(into) % ALIGN == 0:
            return _read_all(self._direct_fd, offset, into) == into.nbytes
        buffer = self._bounce_of(padded(into.nbytes))
        num_bytes = _read_all(self._direct_fd, offset, buffer)
        into[:] = buffer[: into.nbytes]
        return num_bytes >= into.nbytes

    def _bounce_of(self, num_bytes: int) -> memoryview:
        held: memoryview | None = getattr(self._bounce, "buffer", None)
        if held is None or held.nbytes < num_bytes:
            held = self._bounce.buffer = aligned(num_bytes)
        return held[:num_bytes]

    def write_meta(self, offset: int, data: bytes) -> None:
        """A few bytes, through the page cache."""
        _write_all(self._fd, offset, memoryview(data))

    def read_meta(self, offset: int, num_bytes: int) -> bytes:
        """A few bytes, through the page cache; fewer at the file's end."""
        return os.pread(self._fd, num_bytes, offset)

    def sync(self) -> None:
        """Whatever was written before survives from now on."""
        os.fdatasync(self._fd)

    def punch(self, offset: int, num_bytes: int) -> None:
        """Give these bytes' space back; they read as zeros. EOPNOTSUPP where that cannot be."""
        if _libc.fallocate(self._fd, _PUNCH_HOLE | _KEEP_SIZE, offset, num_bytes):
            number = ctypes.get_errno()
            raise OSError(number, os.strerror(number), str(self.path))

    def truncate(self, num_bytes: int) -> None:
        """Nothing is left behind there."""
        os.ftruncate(self._fd, num_bytes)

    def size(self) -> int:
        """Length in bytes."""
        return os.fstat(self._fd).st_size

    def disk_bytes(self) -> int:
        """What it takes of the disk."""
        return os.fstat(self._fd).st_blocks * 512

    def close(self) -> None:
        """Let go of it."""
        for fd in (self._fd, self._direct_fd):
            os.close(fd)
        self._fd = self._direct_fd = -1  # another file has these numbers soon


class Disk:
    """The folder of one log."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def names(self) -> list[str]:
        """Of all that lies there."""
        return sorted(path.name for path in self.path.iterdir())

    def open(self, name: str, *, create: bool = False) -> DiskFile:
        """A file; a new one is only there for good after `sync`."""
        return DiskFile(self.path / name, create=create)

    def unlink(self, name: str) -> None:
        """Delete a file, if nobody has."""
        (self.path / name).unlink(missing_ok=True)

    def replace(self, name: str, data: bytes) -> None:
        """A file's whole content: the old or the new one survives a crash, never a mixture."""
        draft = self.path / draft_of(name)
        _write_new(draft, data, is_synced=True)
        draft.rename(self.path / name)

    def read(self, name: str) -> bytes:
        """A file's whole content."""
        return _read_whole(self.path / name)

    def sync(self) -> None:
        """New and deleted names survive from now on."""
        fd = os.open(self.path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            os.fsync(fd)
        finally:
            os.close(fd)

    def free_bytes(self) -> int:
        """What the file system would still give us."""
        found = os.statvfs(self.path)
        return found.f_bavail * found.f_frsize


class PathLock:
    """A folder that belongs to one process, by a lock on the folder itself: nothing of it outlives the process."""

    def __init__(self, path: Path) -> None:
        """Raises StoreError: the path cannot be used, or another process uses it."""
        self._path = path
        try:
            path.mkdir(mode=0o700, parents=True, exist_ok=True)
            self._fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        except OSError as error:
            raise StoreError(f"{path} cannot hold KV blocks: {error.strerror}") from error
        self._lock()

    def _lock(self) -> None:
        try:
            fcntl.flock(self._fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            os.close(self._fd)
            if error.errno != errno.EWOULDBLOCK:
                raise StoreError(f"{self._path} cannot be locked: {error.strerror}") from error
            raise StoreError(
                f"{self._path} is used by {self._owner()}: end it, or give this store a path of its own"
            ) from None
        try:
            _write_new(self._path / OWNER, str(os.getpid()).encode())
        except OSError:  # it cannot be written: still ours, and who is refused learns no number
            return

    def _owner(self) -> str:
        try:
            return f"process {int(_read_whole(self._path / OWNER))}"
        except (OSError, ValueError):
            return "another process"

    def release(self) -> None:
        """Others may have it."""
        try:
            (self._path / OWNER).unlink(missing_ok=True)
        except OSError:  # it cannot be written, and so there is no such file of ours
            pass
        finally:
            os.close(self._fd)


def draft_of(name: str) -> str:
    """What a file that is replaced is called until it is whole; a crash leaves it."""
    return f"{name}.new"


def aligned(num_bytes: int) -> memoryview:
    """Zeroed memory that begins at a page."""
    return memoryview(mmap(-1, num_bytes))


def _open_best(path: Path, flags: int) -> tuple[bool, int]:
    try:
        return True, os.open(path, flags | os.O_RDWR, _MODE)
    except OSError as error:
        if flags & os.O_CREAT or error.errno not in (errno.EROFS, errno.EACCES, errno.EPERM):
            raise
        return False, os.open(path, flags | os.O_RDONLY)


def _write_new(path: Path, data: bytes, *, is_synced: bool = False) -> None:
    """Whatever has that name goes first: a link would lead elsewhere, and a pipe keep us waiting for its reader."""
    path.unlink(missing_ok=True)
    fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, _MODE)
    try:
        _write_all(fd, 0, memoryview(data))
        if is_synced:
            os.fdatasync(fd)
    finally:
        os.close(fd)


def _read_whole(path: Path) -> bytes:
    """OSError for what is no plain file; nobody waits for the writer of a pipe."""
    fd = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    try:
        found = os.fstat(fd)
        if not stat.S_ISREG(found.st_mode):
            raise OSError(errno.EINVAL, "not a plain file", str(path))
        data = memoryview(bytearray(found.st_size))
        return bytes(data[: _read_all(fd, 0, data)])
    finally:
        os.close(fd)


def _address(view: memoryview) -> int:
    return ctypes.addressof(ctypes.c_char.from_buffer(view))


def _write_all(fd: int, offset: int, data: memoryview) -> None:
    while data.nbytes:
        written = os.pwrite(fd, data, offset)
        offset, data = offset + written, data[written:]


def _read_all(fd: int, offset: int, into: memoryview) -> int:
    total = 0
    while total < into.nbytes:
        num_bytes = os.preadv(fd, [into[total:]], offset + total)
        if num_bytes == 0:
            break
        total += num_bytes
    return total
