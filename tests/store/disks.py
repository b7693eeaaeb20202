"""Disks that fail. Owns one that refuses, one that kills its process, and one that remembers everything it was told so
that any crash can be made of it."""

from __future__ import annotations

import errno
import os
import random
import signal
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from kvtransfer.store.disk import Disk, DiskFile

SECTOR = 512


class HastyDisk(Disk):
    """A real one that says that it has synced: for what is not about crashes."""

    def open(self, name: str, *, create: bool = False) -> DiskFile:
        return HastyFile(self.path / name, create=create)

    def sync(self) -> None:
        pass


class HastyFile(DiskFile):
    def sync(self) -> None:
        pass


class RefusingDisk(Disk):
    """A real one that fails with `refuses` (an errno) whatever is named in `what`: data, meta, sync, punch, read, open."""

    def __init__(self, path: Path, what: set[str] | None = None, refuses: int = errno.EIO) -> None:
        super().__init__(path)
        self.what = what if what is not None else set()
        self.refuses = refuses
        self.free: int | None = None

    def check(self, what: str) -> None:
        if what in self.what:
            raise OSError(self.refuses, os.strerror(self.refuses))

    def open(self, name: str, *, create: bool = False) -> DiskFile:
        if create:
            self.check("open")
        return RefusingFile(self, self.path / name, create=create)

    def free_bytes(self) -> int:
        return super().free_bytes() if self.free is None else self.free


class RefusingFile(DiskFile):
    def __init__(self, disk: RefusingDisk, path: Path, *, create: bool) -> None:
        super().__init__(path, create=create)
        self._disk = disk

    def write_data(self, offset: int, parts: Sequence[memoryview]) -> None:
        self._disk.check("data")
        super().write_data(offset, parts)

    def write_meta(self, offset: int, data: bytes) -> None:
        self._disk.check("meta")
        super().write_meta(offset, data)

    def read_data(self, offset: int, into: memoryview) -> bool:
        self._disk.check("read")
        return super().read_data(offset, into)

    def sync(self) -> None:
        self._disk.check("sync")
        super().sync()

    def punch(self, offset: int, num_bytes: int) -> None:
        self._disk.check("punch")
        super().punch(offset, num_bytes)


class KillingDisk(Disk):
    """A real one at whose n-th operation the process dies, in the middle of that when it is a write."""

    def __init__(self, path: Path, dies_at: int, torn: float) -> None:
        super().__init__(path)
        self._left = dies_at
        self.torn = torn

    def step(self) -> bool:
        """Whether this is the last operation."""
        self._left -= 1
        return self._left == 0

    def open(self, name: str, *, create: bool = False) -> DiskFile:
        if create and self.step():
            die()
        return KillingFile(self, self.path / name, create=create)

    def unlink(self, name: str) -> None:
        if self.step():
            die()
        super().unlink(name)

    def replace(self, name: str, data: bytes) -> None:
        if self.step():
            (self.path / f"{name}.new").write_bytes(data[: int(len(data) * self.torn)])
            die()
        super().replace(name, data)


class KillingFile(DiskFile):
    def __init__(self, disk: KillingDisk, path: Path, *, create: bool) -> None:
        super().__init__(path, create=create)
        self._disk = disk

    def write_data(self, offset: int, parts: Sequence[memoryview]) -> None:
        if self._disk.step():
            data = b"".join(parts)
            part = int(len(data) * self._disk.torn) // SECTOR * SECTOR
            super().write_meta(offset, data[:part])
            die()
        super().write_data(offset, parts)

    def write_meta(self, offset: int, data: bytes) -> None:
        if self._disk.step():
            super().write_meta(offset, data[: int(len(data) * self._disk.torn)])
            die()
        super().write_meta(offset, data)

    def sync(self) -> None:
        if self._disk.step():
            die()
        super().sync()

    def punch(self, offset: int, num_bytes: int) -> None:
        if self._disk.step():
            super().punch(offset, num_bytes // 2)
            die()
        super().punch(offset, num_bytes)


def die() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


@dataclass
class Operation:
    """On a file; `data` None is a hole. A sync has no bytes; the folder's own is that of file \"\"."""

    name: str
    what: str
    offset: int = 0
    data: bytes = b""


@dataclass
class RememberingDisk(Disk):
    """A real one, and the list of all that was done on it."""

    path: Path
    operations: list[Operation] = field(default_factory=list)

    def note(self, *what: object) -> None:
        self.operations.append(Operation(*what))  # type: ignore[arg-type]

    def open(self, name: str, *, create: bool = False) -> DiskFile:
        if create:
            self.note(name, "create")
        return RememberingFile(self, self.path / name, create=create)

    def unlink(self, name: str) -> None:
        self.note(name, "unlink")
        super().unlink(name)

    def replace(self, name: str, data: bytes) -> None:
        self.note(name, "replace", 0, data)
        super().replace(name, data)

    def sync(self) -> None:
        self.note("", "sync")
        super().sync()


class RememberingFile(DiskFile):
    def __init__(self, disk: RememberingDisk, path: Path, *, create: bool) -> None:
        super().__init__(path, create=create)
        self._disk = disk

    def write_data(self, offset: int, parts: Sequence[memoryview]) -> None:
        self._disk.note(self.path.name, "write", offset, b"".join(parts))
        super().write_data(offset, parts)

    def write_meta(self, offset: int, data: bytes) -> None:
        self._disk.note(self.path.name, "write", offset, data)
        super().write_meta(offset, data)

    def sync(self) -> None:
        self._disk.note(self.path.name, "sync")
        super().sync()

    def punch(self, offset: int, num_bytes: int) -> None:
        self._disk.note(self.path.name, "write", offset, bytes(num_bytes))
        super().punch(offset, num_bytes)

    def truncate(self, num_bytes: int) -> None:
        self._disk.note(self.path.name, "truncate", num_bytes)
        super().truncate(num_bytes)


def after_power_loss(operations: list[Operation], chance: random.Random) -> dict[str, bytes]:
    """Files as they may lie on the disk when the power fails right after these: what was synced is there; of the rest each
    operation may be, or not, or some of its sectors. Names come and go with a sync of the folder, or by luck."""
    files: dict[str, bytearray] = {}
    pending: dict[str, list[Operation]] = {}
    names: list[Operation] = []
    for operation in operations:
        if operation.what == "sync" and operation.name:
            for one in pending.pop(operation.name, []):
                apply(files.setdefault(one.name, bytearray()), one)
        elif operation.what == "sync":
            names.clear()
        elif operation.what in ("create", "unlink"):
            names.append(operation)
        elif operation.what == "replace":  # synced by itself; a rename is whole or not at all
            if chance.random() < 0.5:
                files[operation.name] = bytearray(operation.data)
        else:
            pending.setdefault(operation.name, []).append(operation)
    for left in pending.values():
        for one in left:
            tear(files.setdefault(one.name, bytearray()), one, chance)
    gone = {op.name for op in operations if op.what == "unlink"}
    unsure = {operation.name for operation in names}
    return {
        name: bytes(content)
        for name, content in files.items()
        if (name not in gone or (name in unsure and chance.random() < 0.5))
        and (name in gone or name not in unsure or chance.random() < 0.5)
    }


def apply(content: bytearray, operation: Operation) -> None:
    if operation.what == "truncate":
        del content[operation.offset :]
        return
    end = operation.offset + len(operation.data)
    content.extend(bytes(max(0, end - len(content))))
    content[operation.offset : end] = operation.data


def tear(content: bytearray, operation: Operation, chance: random.Random) -> None:
    fate = chance.random()
    if fate < 0.4:
        apply(content, operation)
    elif fate < 0.7 and operation.what == "write":
        for start in range(0, len(operation.data), SECTOR):
            if chance.random() < 0.5:
                sector = operation.data[start : start + SECTOR]
                at = operation.offset + start
                apply(content, Operation(operation.name, "write", at, sector))
