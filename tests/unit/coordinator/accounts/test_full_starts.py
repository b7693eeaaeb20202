"""A start on a disk that is full for now: what the last process left is booked when there is room, and counts until then."""

from __future__ import annotations

import asyncio
import sqlite3

import pytest

from coordinator.accounts.accounts import Accounts, AccountSettings
from coordinator.accounts.booking import Request
from coordinator.accounts.database import Database, open_database
from coordinator.accounts.terms import KeyTerms, make_key
from coordinator.edge.answers.answer import Usage
from protocol.clock import SystemClock
from protocol.errors import ConfigError, LimitReached
from tests.patience import PATIENCE_S

TERMS = KeyTerms(tenant="a", requests_per_minute=3, budget_tokens=100)


class Disk:
    """Room for the ledger, or none."""

    def __init__(self, monkeypatch):
        self.is_full = False
        add = Database.add

        def checked_add(database, records):
            if self.is_full:
                raise sqlite3.OperationalError("database or disk is full")
            add(database, records)

        monkeypatch.setattr(Database, "add", checked_add)


@pytest.fixture
def disk(monkeypatch):
    return Disk(monkeypatch)


@pytest.fixture
def record(tmp_path):
    database = open_database(tmp_path / "keys.db")
    made = make_key(TERMS, 1.0)
    database.put_key(made.record)
    database.close()
    return made.record


def opened(tmp_path, **options):
    return Accounts.open(AccountSettings(tmp_path / "keys.db", **options), SystemClock())


def begun(accounts, record, name):
    booking = accounts.booking(record.key_id, "a", record)
    booking.reserve(Request("tiny", "chat", name, name, 0.0), 7, 13)
    return booking


def delivered(accounts, record, name):
    booking = begun(accounts, record, name)
    booking.finish(Usage(7, 13, 0), "stop", 0)
    booking.leaving()


def died(accounts):
    """As by SIGKILL: nothing more is written."""
    accounts.journal.close()
    accounts.writer._database.close()


def rows(tmp_path):
    with sqlite3.connect(tmp_path / "keys.db") as connection:
        told = "SELECT request_id, end, output_tokens FROM usage ORDER BY end"
        return connection.execute(told).fetchall()


async def written(accounts):
    """Until all is."""
    async with asyncio.timeout(PATIENCE_S):
        while accounts.state().reason or accounts.state().waiting:
            await accounts.ask(lambda _: None)


async def test_what_was_left_is_booked_when_there_is_room(tmp_path, disk, record):
    first = opened(tmp_path)
    delivered(first, record, "whole")
    begun(first, record, "cut")
    died(first)
    disk.is_full = True
    second = opened(tmp_path)
    assert "full" not in second.state().reason
    delivered(second, record, "second")
    died(second)
    third = opened(tmp_path)
    third.start(asyncio.get_running_loop())
    await third.ask(lambda _: None)
    assert "full" in third.state().reason
    assert third.state().waiting == 3
    assert rows(tmp_path) == []
    with pytest.raises(LimitReached, match="3 requests a minute, and used 3"):
        begun(third, record, "fourth")
    disk.is_full = False
    await written(third)
    expected = [("", "crashed", 0), ("second", "stop", 13), ("whole", "stop", 13)]
    assert sorted(rows(tmp_path)) == expected
    await third.close()
    fourth = opened(tmp_path)
    assert list(fourth.journal.found()) == []
    died(fourth)
    assert sorted(rows(tmp_path)) == expected


async def test_a_budget_counts_what_is_still_to_be_written(tmp_path, disk, record):
    first = opened(tmp_path)
    for name in "abc":
        delivered(first, record, name)
    died(first)
    disk.is_full = True
    second = opened(tmp_path)
    budget = second.meter(record).budget_tokens
    assert budget is not None
    assert budget.spent == 60
    died(second)


async def test_who_must_write_does_not_start(tmp_path, disk, record):
    first = opened(tmp_path)
    delivered(first, record, "whole")
    died(first)
    disk.is_full = True
    with pytest.raises(ConfigError, match="full"):
        opened(tmp_path, must_write=True)
    disk.is_full = False
    second = opened(tmp_path, must_write=True)
    assert rows(tmp_path) == [("whole", "stop", 13)]
    died(second)


def test_a_complete_file_is_opened_without_a_write(tmp_path, record):
    first = open_database(tmp_path / "keys.db")
    first.connection.execute("PRAGMA wal_checkpoint(TRUNCATE)")
    again = Database.open(tmp_path / "keys.db")
    assert again.connection.total_changes == 0
    assert (tmp_path / "keys.db-wal").stat().st_size == 0
    again.close()
    first.close()
