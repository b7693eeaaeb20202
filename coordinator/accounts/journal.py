"""Requests on their way into the ledger, in memory that a file backs. Owns slots and their states; survives SIGKILL.

    FREE ─take─► HELD ─close─► CLOSED ─hand over─► DELIVERED ─(the database has it)─► FREE
                  │                │
                  └─── found after a crash: not delivered ───┘          found after a crash: booked

A store into mapped memory is the kernel's at once, so nothing waits for a disk, and whatever kills the process finds
it done. Each state is one byte, written after what it speaks of. What was written here and not yet in the database is
put there by the next start; an entry's id is unique there, so twice is once. Power failures are another matter: then
the last seconds are gone.
"""

from __future__ import annotations

import fcntl
import mmap
import os
from typing import TYPE_CHECKING, NamedTuple

import msgspec

from coordinator.accounts.records import Held, UsageRecord
from protocol.errors import ConfigError

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator
    from pathlib import Path

SLOT_BYTES = 1536
HELD_AT, CLOSED_AT = 4, 320
NUM_SLOTS = 4096
FREE, HELD, CLOSED, DELIVERED = range(4)
MAX_HELD_BYTES = CLOSED_AT - HELD_AT - 2
MAX_CLOSED_BYTES = SLOT_BYTES - CLOSED_AT - 2


class Found(NamedTuple):
    """What a crash left in a slot: `record` of a request whose answer was handed over."""

    slot: int
    held: Held
    record: UsageRecord | None


class Journal:
    """`take` gives a slot or None where all are taken."""

    def __init__(self, memory: mmap.mmap, descriptor: int = -1) -> None:
        self._memory = memory
        self._descriptor = descriptor
        self._num_slots = len(memory) // SLOT_BYTES
        self._free = list(range(self._num_slots))
        self._encoder = msgspec.msgpack.Encoder()

    @classmethod
    def open(cls, path: Path, num_slots: int = NUM_SLOTS) -> Journal:
        """The file, made if need be. ConfigError where another server has it; OSError where it cannot be written."""
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            size = max(os.fstat(descriptor).st_size // SLOT_BYTES, num_slots) * SLOT_BYTES
            os.posix_fallocate(descriptor, 0, size)
            return cls(mmap.mmap(descriptor, size), descriptor)
        except BlockingIOError:
            os.close(descriptor)
            raise ConfigError(f"--keys-db: another server uses {path}") from None
        except OSError:
            os.close(descriptor)
            raise

    @classmethod
    def in_memory(cls, num_slots: int = NUM_SLOTS) -> Journal:
        """For a disk that cannot be written: nothing survives."""
        return cls(mmap.mmap(-1, num_slots * SLOT_BYTES))

    def found(self) -> Iterator[Found]:
        """What the process before this one left; `clear` follows when the database has it, `keep` when it has not yet."""
        for slot in range(self._num_slots):
            state = self._memory[slot * SLOT_BYTES]
            if state == FREE:
                continue
            held = msgspec.msgpack.decode(self._read(slot, HELD_AT), type=Held)
            record = None
            if state == DELIVERED:
                record = msgspec.msgpack.decode(self._read(slot, CLOSED_AT), type=UsageRecord)
            yield Found(slot, held, record)

    def clear(self) -> None:
        """All slots are free."""
        for slot in range(self._num_slots):
            self._memory[slot * SLOT_BYTES] = FREE

    def keep(self, slots: Iterable[int]) -> None:
        """They stay as they were found, until they are freed."""
        kept = {*slots}
        self._free = [slot for slot in self._free if slot not in kept]

    def take(self, held: Held) -> int | None:
        """A request is admitted."""
        if not self._free:
            return None
        slot = self._free.pop()
        self._write(slot, HELD_AT, self._encoder.encode(held), MAX_HELD_BYTES)
        self._memory[slot * SLOT_BYTES] = HELD
        return slot

    def close_entry(self, slot: int, record: UsageRecord) -> None:
        """Its usage is known; its last bytes are still here."""
        self._write(slot, CLOSED_AT, self._encoder.encode(record), MAX_CLOSED_BYTES)
        self._memory[slot * SLOT_BYTES] = CLOSED

    def hand_over(self, slot: int) -> None:
        """Its last bytes go now."""
        self._memory[slot * SLOT_BYTES] = DELIVERED

    def take_back(self, slot: int) -> None:
        """They did not go yet."""
        self._memory[slot * SLOT_BYTES] = CLOSED

    def free(self, slot: int) -> None:
        """The database has it, or it never was."""
        self._memory[slot * SLOT_BYTES] = FREE
        self._free.append(slot)

    def close(self) -> None:
        """Let others have the file."""
        self._memory.close()
        if self._descriptor >= 0:
            os.close(self._descriptor)

    def _write(self, slot: int, at: int, told: bytes, most: int) -> None:
        if len(told) > most:
            raise ValueError(f"an entry of {len(told)} bytes is longer than {most}")
        begin = slot * SLOT_BYTES + at
        self._memory[begin : begin + 2] = len(told).to_bytes(2, "little")
        self._memory[begin + 2 : begin + 2 + len(told)] = told

    def _read(self, slot: int, at: int) -> bytes:
        begin = slot * SLOT_BYTES + at
        size = int.from_bytes(self._memory[begin : begin + 2], "little")
        return self._memory[begin + 2 : begin + 2 + size]
