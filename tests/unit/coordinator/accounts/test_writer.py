"""The thread that writes: whatever goes wrong is told, and it goes on."""

from __future__ import annotations

import threading

import pytest

from coordinator.accounts.database import open_database
from coordinator.accounts.records import Held, crashed
from coordinator.accounts.terms import KeyTerms, make_key
from coordinator.accounts.writer import Writer
from protocol.clock import SystemClock
from tests.patience import PATIENCE_S

RECORD = crashed(Held("e", "k", "t", 1.0, 1.0, "b", 1), 2.0)


class Rig:
    """A writer, and what it told; `broken` has what its callbacks raise instead."""

    def __init__(self, path, monkeypatch):
        monkeypatch.setattr("coordinator.accounts.writer.LOOK_S", 0.01)
        monkeypatch.setattr("coordinator.accounts.writer.RETRY_S", 0.01)
        self.database = open_database(path)
        self.other = open_database(path)
        self.broken: dict[str, Exception] = {}
        self.written: list[int] = []
        self.num_changes = 0
        self.writer = Writer(self.database, self._written, self._changed, SystemClock())
        self.writer.start()

    def _written(self, slots):
        if "written" in self.broken:
            raise self.broken["written"]
        self.written += slots

    def _changed(self, _):
        if "changed" in self.broken:
            raise self.broken["changed"]
        self.num_changes += 1

    def await_(self, condition):
        """Look again whenever the thread has gone round."""
        for _ in range(5000):
            if condition():
                return
            self.writer.call(lambda _: None).result(PATIENCE_S)
        raise AssertionError(self.writer.state())

    def close(self):
        self.writer.close()
        self.other.close()


@pytest.fixture
def rig(tmp_path, monkeypatch):
    made = Rig(tmp_path / "keys.db", monkeypatch)
    yield made
    made.close()


def test_what_nobody_thought_of_in_a_write_is_told_and_tried_again(rig, monkeypatch, caplog):
    add, trouble = rig.database.add, RuntimeError("no such thing")

    def fail(_):
        raise trouble

    monkeypatch.setattr(rig.database, "add", fail)
    rig.writer.add(RECORD, 7)
    rig.await_(lambda: rig.writer.reason)
    assert rig.writer.state() == ("RuntimeError: no such thing", 1, 0)
    assert "no such thing" in caplog.text
    monkeypatch.setattr(rig.database, "add", add)
    rig.await_(lambda: rig.written == [7])
    rig.await_(lambda: rig.writer.state() == ("", 0, 0))


def test_a_call_that_nobody_waits_for_ends_nothing(rig):
    begun, go = threading.Event(), threading.Event()

    def wait(_):
        begun.set()
        assert go.wait(PATIENCE_S)

    running = rig.writer.call(wait)
    assert begun.wait(PATIENCE_S)
    left, later = rig.writer.call(lambda _: 1), rig.writer.call(lambda _: 2)
    assert left.cancel()
    assert not running.cancel()
    go.set()
    assert later.result(PATIENCE_S) == 2


def test_a_failure_to_tell_of_free_slots_writes_nothing_twice(rig, caplog):
    rig.broken["written"] = RuntimeError("the loop is gone")
    rig.writer.add(RECORD, 7)
    rig.await_(lambda: "the loop is gone" in caplog.text)
    rig.broken.clear()
    rig.writer.add(RECORD, 8)
    rig.await_(lambda: rig.written == [8])
    assert rig.writer.state() == ("", 0, 0)


def test_a_failure_to_read_keys_is_told_and_tried_again(rig, caplog):
    rig.broken["changed"] = ValueError("these are no terms")
    rig.other.put_key(make_key(KeyTerms(), 1.0).record)
    rig.await_(lambda: rig.writer.reason)
    assert rig.writer.state().reason == "keys cannot be read: ValueError: these are no terms"
    assert not rig.writer.unwritable
    rig.await_(lambda: True)
    assert caplog.text.count("keys cannot be read") == 1
    rig.writer.add(RECORD, 7)
    rig.await_(lambda: rig.written == [7])
    rig.broken.clear()
    rig.await_(lambda: not rig.writer.reason)
    assert rig.num_changes == 1
