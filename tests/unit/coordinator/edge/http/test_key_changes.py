"""Changes of keys by several at once, and on disks that do not take them: a revocation is never undone."""

from __future__ import annotations

import asyncio
import sqlite3

import pytest

from coordinator.accounts.database import Database, open_database
from coordinator.accounts.terms import KeyConflict, KeyNotFound, KeyTerms, make_key, revoked
from deploy.commands.keys import FileStore
from protocol.clock import SystemClock
from protocol.errors import LedgerUnavailable
from tests.patience import PATIENCE_S
from tests.unit.coordinator.edge.http.test_keys import bearer, edge


@pytest.fixture
def database(tmp_path):
    opened = open_database(tmp_path / "keys.db")
    yield opened
    opened.close()


def test_nobody_changes_a_key_while_it_is_changed(tmp_path, database):
    record = make_key(KeyTerms(), 1.0).record
    database.put_key(record)

    def change(found):
        other = sqlite3.connect(tmp_path / "keys.db", timeout=0)
        with pytest.raises(sqlite3.OperationalError, match="locked"):
            other.execute("BEGIN IMMEDIATE")
        other.close()
        return revoked(found, 2.0)

    assert database.change_key(record.key_id, change).revoked_at == 2.0
    assert database.key(record.key_id).revoked_at == 2.0
    with pytest.raises(KeyNotFound):
        database.change_key("none", change)


def test_a_key_that_another_revoked_is_not_rotated_by_the_command_line(database):
    record = make_key(KeyTerms(), 1.0).record
    database.put_key(record)
    store = FileStore(database)
    assert store.revoke(record.key_id)["state"] == "revoked"
    with pytest.raises(KeyConflict):
        store.rotate(record.key_id, 60.0)
    for act in (store.revoke, store.show, lambda key_id: store.rotate(key_id, 0.0)):
        with pytest.raises(KeyNotFound):
            act("none")


async def test_a_key_that_another_revoked_is_not_opened_again_by_a_rotation(
    served_model, tmp_path, database
):
    async with edge(served_model, tmp_path) as (_, accounts, _):
        made = await accounts.create(KeyTerms())
        database.change_key(made.record.key_id, lambda one: revoked(one, 1.0))
        with pytest.raises(KeyConflict):
            await accounts.rotate(made.record.key_id, 3600.0)
    assert database.key(made.record.key_id).revoked_at == 1.0


async def test_a_rotation_and_a_revocation_at_once_end_revoked(served_model, tmp_path):
    async with edge(served_model, tmp_path) as (client, accounts, _):
        for order in ((0, 1), (1, 0)):
            made = await accounts.create(KeyTerms())
            key_id = made.record.key_id
            acts = [accounts.rotate(key_id, 3600.0), accounts.revoke(key_id)]
            await asyncio.gather(*(acts[place] for place in order), return_exceptions=True)
            assert (await client.get("/v1/models", headers=bearer(made.secret))).status_code == 401
            assert accounts.book.get(key_id).revoked_at is not None
            assert await accounts.ask(lambda found, key_id=key_id: found.key(key_id).revoked_at)


async def test_a_key_that_another_process_just_made_can_be_revoked(
    served_model, tmp_path, database
):
    async with edge(served_model, tmp_path, admin_keys=["boss"]) as (client, _, _):
        record = make_key(KeyTerms(), 1.0).record
        database.put_key(record)
        path = f"/keys/{record.key_id}"
        assert (await client.delete(path, headers=bearer("boss"))).status_code == 200
        assert (await client.delete("/keys/none", headers=bearer("boss"))).status_code == 404


async def test_a_revocation_counts_though_the_disk_refuses_it(served_model, tmp_path, database):
    async with edge(served_model, tmp_path, admin_keys=["boss"]) as (client, accounts, _):
        made = await accounts.create(KeyTerms())
        await accounts.ask(lambda found: found.connection.execute("PRAGMA query_only = 1"))
        path, boss = f"/keys/{made.record.key_id}", bearer("boss")
        assert (await client.delete(path, headers=boss)).status_code == 503
        with pytest.raises(LedgerUnavailable):
            await accounts.revoke(made.record.key_id)
        later = make_key(KeyTerms(), 1.0)
        database.put_key(later.record)
        async with asyncio.timeout(PATIENCE_S):
            while (await client.get("/v1/models", headers=bearer(later.secret))).status_code != 200:
                await accounts.ask(lambda _: None)
        assert (await client.get("/v1/models", headers=bearer(made.secret))).status_code == 401
        await accounts.ask(lambda found: found.connection.execute("PRAGMA query_only = 0"))
        assert (await client.delete(path, headers=boss)).status_code == 200
    assert database.key(made.record.key_id).revoked_at is not None


def seen(path, how):
    """The keys in a file that is opened in one way or another."""
    connection = sqlite3.connect(f"file:{path}?{how}", uri=True)
    try:
        return dict(connection.execute("SELECT key_id, revoked_at FROM keys"))
    finally:
        connection.close()


def test_a_change_of_a_key_is_in_the_file_itself_at_once(tmp_path, database):
    record = make_key(KeyTerms(), 1.0).record
    database.put_key(record)
    for revoked_at in (None, 2.0):
        assert seen(tmp_path / "keys.db", "mode=ro&immutable=1") == {record.key_id: revoked_at}
        database.change_key(record.key_id, lambda one: revoked(one, 2.0))


def test_a_reader_in_the_way_delays_no_change_and_the_next_one_is_in_the_file(tmp_path, database):
    record = make_key(KeyTerms(), 1.0).record
    database.put_key(record)
    reader = sqlite3.connect(tmp_path / "keys.db", isolation_level=None)
    reader.execute("BEGIN")
    reader.execute("SELECT * FROM keys").fetchall()
    begun_s = SystemClock().now_s()
    database.change_key(record.key_id, lambda one: revoked(one, 2.0))
    assert SystemClock().now_s() - begun_s < 4.5
    (timeout_ms,) = database.connection.execute("PRAGMA busy_timeout").fetchone()
    assert timeout_ms == 5000
    assert database.key(record.key_id).revoked_at == 2.0
    reader.close()
    database.change_key(record.key_id, lambda one: one)
    assert seen(tmp_path / "keys.db", "mode=ro&immutable=1") == {record.key_id: 2.0}


def test_who_only_reads_sees_what_is_in_the_log_unless_that_cannot_be_read(
    tmp_path, database, monkeypatch, caplog
):
    database.put_key(make_key(KeyTerms(), 1.0).record)
    monkeypatch.setattr(Database, "_settle", lambda _: None)
    database.put_key(make_key(KeyTerms(), 1.0).record)
    with_log = Database.open_read_only(tmp_path / "keys.db")
    assert len(with_log.all_keys()) == 2
    with_log.close()
    assert not caplog.records
    connect = sqlite3.connect

    def no_log(name, **options):
        if "immutable" not in name:
            raise sqlite3.OperationalError("unable to open database file")
        return connect(name, **options)

    monkeypatch.setattr("coordinator.accounts.database.sqlite3.connect", no_log)
    without = Database.open_read_only(tmp_path / "keys.db")
    assert len(without.all_keys()) == 1
    without.close()
    assert "without its log" in caplog.text
