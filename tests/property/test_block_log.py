"""A block log is a dictionary that may forget: hypothesis puts, reads, evicts, damages and restarts, beside a dictionary."""

from __future__ import annotations

import shutil
import tempfile
from pathlib import Path

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from kvtransfer.store.log import BlockLog
from kvtransfer.store.records import BlockRecord, EventKind
from tests.store.blocks import BLOCK_BYTES, IDENTITY, OTHER, block, key
from tests.store.disks import HastyDisk

CAPACITY = 40 * BLOCK_BYTES
NUMBERS = st.integers(0, 80)


class LogMachine(RuleBasedStateMachine):
    def __init__(self) -> None:
        super().__init__()
        self.path = Path(tempfile.mkdtemp(prefix="storelog-machine-"))
        self.put_ever: dict[bytes, bytes] = {}
        self.there: dict[bytes, BlockRecord] = {}
        self.log = self.open()

    def open(self, identity: object = IDENTITY) -> BlockLog:
        return BlockLog.open(self.path, CAPACITY, identity, disk=HastyDisk(self.path))  # type: ignore[arg-type]

    def teardown(self) -> None:
        self.log.close()
        shutil.rmtree(self.path)

    @rule(numbers=st.lists(NUMBERS, max_size=9), num_bytes=st.integers(1, BLOCK_BYTES))
    def put(self, numbers: list[int], num_bytes: int) -> None:
        for number in numbers:
            record, content = block(number, num_bytes=num_bytes)
            if not self.log.contains(record.key) and self.log.put(record, content):
                self.put_ever[record.key] = content

    @rule(number=NUMBERS)
    def read(self, number: int) -> None:
        record = self.log.record(key(number))
        into = memoryview(bytearray(BLOCK_BYTES))
        digest = self.log.read(key(number), into)
        assert (digest is not None) == (record is not None)
        if record is not None:
            assert digest == record.digest
            assert into[: record.num_bytes] == self.put_ever[record.key]

    @rule()
    def flush(self) -> None:
        self.log.flush()
        self.hear()
        assert {record.key: record for record in iter(self.log.keys())} == self.there

    def hear(self) -> None:
        """The index that another process would keep."""
        for event in self.log.events() or ():
            if event.kind is EventKind.STORED:
                self.there[event.record.key] = event.record
            else:
                self.there.pop(event.record.key, None)

    @rule()
    def restart(self) -> None:
        self.log.close()
        self.hear()
        self.log = self.open()
        assert {record.key: record for record in iter(self.log.keys())} == self.there

    @rule()
    def serve_another_model(self) -> None:
        """Who puts nothing takes nothing away."""
        self.log.close()
        self.hear()
        other = self.open(OTHER)
        assert not list(other.keys())
        other.close()
        self.log = self.open()
        assert {record.key for record in iter(self.log.keys())} == set(self.there)

    @rule()
    def clear(self) -> None:
        self.log.clear()
        self.hear()
        assert not self.there

    @rule(numbers=st.lists(NUMBERS, max_size=5))
    def touch(self, numbers: list[int]) -> None:
        self.log.touch([key(number) for number in numbers])

    @invariant()
    def within_its_capacity(self) -> None:
        assert self.log.stats.disk_bytes <= CAPACITY
        assert self.log.stats.proofs_failed == 0
        assert self.log.stats.errors == 0


TestLog = LogMachine.TestCase
TestLog.settings = settings(max_examples=30, stateful_step_count=25, deadline=None)
