"""Keys and ledger in one SQLite file. Owns the schema and every statement; whose thread it is, its callers say.

A server writes through one connection in WAL mode; `baton keys` may write beside it. Without a file that can be written
the keys are still read.
"""

from __future__ import annotations

import logging
import sqlite3
from contextlib import contextmanager
from typing import TYPE_CHECKING
from urllib.parse import quote

import msgspec

from coordinator.accounts.records import FIELDS, UsageRecord
from coordinator.accounts.terms import KeyNotFound, KeyRecord, KeyTerms
from protocol.errors import ConfigError
from protocol.randomness import random_bytes

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence
    from pathlib import Path

log = logging.getLogger(__name__)
SCHEMA_VERSION = 1
BUSY_TIMEOUT_S = 5.0
SETTLE_TIMEOUT_S = 0.1
SCHEMA = f"""
CREATE TABLE IF NOT EXISTS meta (name TEXT PRIMARY KEY, value BLOB NOT NULL) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS keys (
  key_id TEXT PRIMARY KEY, digest BLOB NOT NULL, terms TEXT NOT NULL, created_at REAL NOT NULL, revoked_at REAL,
  former_digest BLOB, former_until REAL NOT NULL DEFAULT 0) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS usage (
  entry_id TEXT NOT NULL UNIQUE, key_id TEXT NOT NULL, tenant TEXT NOT NULL, model TEXT NOT NULL,
  adapter TEXT NOT NULL, operation TEXT NOT NULL, request_id TEXT NOT NULL, label TEXT NOT NULL,
  at_s REAL NOT NULL, mono_s REAL NOT NULL, boot TEXT NOT NULL, ended_at REAL NOT NULL,
  input_tokens INTEGER NOT NULL, cached_tokens INTEGER NOT NULL, output_tokens INTEGER NOT NULL,
  computed_tokens INTEGER NOT NULL, cost_nano INTEGER NOT NULL, first_token_ms REAL, duration_ms REAL NOT NULL,
  end TEXT NOT NULL, error TEXT);
CREATE INDEX IF NOT EXISTS usage_by_key ON usage (key_id, ended_at);
CREATE INDEX IF NOT EXISTS usage_by_time ON usage (at_s);
CREATE INDEX IF NOT EXISTS usage_by_boot ON usage (boot, mono_s);
PRAGMA user_version = {SCHEMA_VERSION};
"""
KEY_FIELDS = KeyRecord.__struct_fields__
INSERT = (
    f"INSERT OR IGNORE INTO usage ({', '.join(FIELDS)}) VALUES ({', '.join('?' * len(FIELDS))})"
)
PUT_KEY = f"INSERT OR REPLACE INTO keys ({', '.join(KEY_FIELDS)}) VALUES ({', '.join('?' * len(KEY_FIELDS))})"


class Database:
    """One connection. Every method raises sqlite3.Error where the file lets it down."""

    def __init__(self, connection: sqlite3.Connection, *, is_writable: bool) -> None:
        self.connection = connection
        self.is_writable = is_writable

    @classmethod
    def open(cls, path: Path) -> Database:
        """To read and write; made if need be, and nobody else's to read. One that is complete is not written to: its disk may
        be full for now. Raises OSError or sqlite3.Error."""
        path.touch(mode=0o600)
        connection = _connect(f"{path}")
        try:
            connection.execute("PRAGMA journal_mode = WAL")
            connection.execute("PRAGMA synchronous = NORMAL")
            if _check_version(connection, path) != SCHEMA_VERSION or not _has_salt(connection):
                connection.executescript(SCHEMA)
                drawn = random_bytes(32)
                connection.execute("INSERT OR IGNORE INTO meta VALUES ('salt', ?)", (drawn,))
        except BaseException:
            connection.close()
            raise
        return cls(connection, is_writable=True)

    @classmethod
    def open_beside(cls, path: Path) -> Database:
        """To read beside one that writes."""
        return cls(_read_only(path, "mode=ro"), is_writable=False)

    @classmethod
    def open_read_only(cls, path: Path) -> Database:
        """For who writes nothing, with the write-ahead log beside it; where that cannot be read, as on a disk that takes no
        writes, without: the last changes are not seen then."""
        try:
            return cls.open_beside(path)
        except sqlite3.Error as error:
            opened = cls(_read_only(path, "mode=ro&immutable=1"), is_writable=False)
            if path.with_name(f"{path.name}-wal").exists():
                told = "%s is read without its log (%s): what was written last is not seen"
                log.warning(told, path, error)
            return opened

    @property
    def data_version(self) -> int:
        """Another number when another connection has written."""
        return int(self.connection.execute("PRAGMA data_version").fetchone()[0])

    def salt_key(self) -> bytes:
        """Drawn when the file was made."""
        found: bytes = self.connection.execute(
            "SELECT value FROM meta WHERE name = 'salt'"
        ).fetchone()[0]
        return found

    def all_keys(self) -> list[KeyRecord]:
        """All of them, the oldest first."""
        rows = self.connection.execute(
            f"SELECT {', '.join(KEY_FIELDS)} FROM keys ORDER BY created_at"
        )
        return [_key(row) for row in rows]

    def key(self, key_id: str) -> KeyRecord | None:
        """One of them."""
        told = f"SELECT {', '.join(KEY_FIELDS)} FROM keys WHERE key_id = ?"
        row = self.connection.execute(told, (key_id,)).fetchone()
        return None if row is None else _key(row)

    def put_key(self, record: KeyRecord) -> None:
        """Write a key as it is, whatever is there."""
        with self.transaction():
            self._write_key(record)
        self._settle()

    def change_key(self, key_id: str, change: Callable[[KeyRecord], KeyRecord]) -> KeyRecord:
        """Make a key another one, with nobody else's change in between; raises KeyNotFound, and what `change` raises."""
        with self.transaction():
            record = self.key(key_id)
            if record is None:
                raise KeyNotFound(f"there is no key {key_id!r}", "key_id")
            changed = change(record)
            self._write_key(changed)
        self._settle()
        return changed

    def _settle(self) -> None:
        """Bring what was written from the log into the file, where every start sees it. It is written either way: readers
        in the way are not waited for, and the next change does it as well."""
        try:
            self.connection.execute(f"PRAGMA busy_timeout = {SETTLE_TIMEOUT_S * 1000:.0f}")
            self.connection.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchall()
        except sqlite3.Error as error:
            log.warning("a change of keys is in the database's log only: %s", error)
        finally:
            self.connection.execute(f"PRAGMA busy_timeout = {BUSY_TIMEOUT_S * 1000:.0f}")

    def _write_key(self, record: KeyRecord) -> None:
        terms = msgspec.json.encode(record.terms).decode()
        values = [terms if name == "terms" else getattr(record, name) for name in KEY_FIELDS]
        self.connection.execute(PUT_KEY, values)

    def add(self, records: Sequence[UsageRecord]) -> None:
        """Write what is not there yet."""
        with self.transaction():
            self.connection.executemany(INSERT, [msgspec.structs.astuple(one) for one in records])

    def has(self, entry_id: str) -> bool:
        """Whether that entry of the ledger is written."""
        told = "SELECT count(*) FROM usage WHERE entry_id = ?"
        return bool(self.connection.execute(told, (entry_id,)).fetchone()[0])

    def spent_since(self, key_id: str, since: float) -> tuple[int, int]:
        """Cost, and tokens booked, of one key."""
        told = (
            "SELECT coalesce(sum(cost_nano), 0), coalesce(sum(input_tokens + output_tokens), 0) "
            "FROM usage WHERE key_id = ? AND ended_at >= ?"
        )
        cost, tokens = self.connection.execute(told, (key_id, since)).fetchone()
        return cost, tokens

    def recent(
        self, boot: str, mono_since: float, wall_since: float
    ) -> list[tuple[str, float, float, int]]:
        """Key, monotonic instant or NaN, wall instant and computed tokens of what began since: by this boot's clock
        where that is known, else by the wall's. The oldest first."""
        told = (
            "SELECT key_id, mono_s, at_s, computed_tokens FROM usage WHERE boot = ? AND mono_s > ? UNION ALL "
            "SELECT key_id, NULL, at_s, computed_tokens FROM usage WHERE boot <> ? AND at_s > ?"
        )
        rows = self.connection.execute(told, (boot, mono_since, boot, wall_since)).fetchall()
        return [(k, float("nan") if m is None else m, a, n) for k, m, a, n in rows]

    @contextmanager
    def transaction(self) -> Iterator[None]:
        """All of it or nothing; the lock is taken at once, so that two writers wait for each other."""
        self.connection.execute("BEGIN IMMEDIATE")
        try:
            yield
        except BaseException:
            self.connection.rollback()
            raise
        try:
            self.connection.commit()
        except BaseException:
            self.connection.rollback()
            raise

    def close(self) -> None:
        """The last one also empties the write-ahead log."""
        self.connection.close()


def _connect(name: str, *, uri: bool = False) -> sqlite3.Connection:
    return sqlite3.connect(
        name, timeout=BUSY_TIMEOUT_S, isolation_level=None, check_same_thread=False, uri=uri
    )


def _read_only(path: Path, how: str) -> sqlite3.Connection:
    """Opened, and proven to be readable."""
    connection = _connect(f"file:{quote(str(path))}?{how}", uri=True)
    try:
        _check_version(connection, path)
    except BaseException:
        connection.close()
        raise
    return connection


def _check_version(connection: sqlite3.Connection, path: Path) -> int:
    version = int(connection.execute("PRAGMA user_version").fetchone()[0])
    if version > SCHEMA_VERSION:
        raise ConfigError(f"--keys-db: {path} was written by a newer Baton (schema {version})")
    return version


def _has_salt(connection: sqlite3.Connection) -> bool:
    """The last that is written of a new file."""
    return bool(connection.execute("SELECT count(*) FROM meta WHERE name = 'salt'").fetchone()[0])


def _key(row: Sequence[object]) -> KeyRecord:
    fields = dict(zip(KEY_FIELDS, row, strict=True))
    terms = msgspec.json.decode(str(fields["terms"]), type=KeyTerms)
    return msgspec.convert(fields | {"terms": terms}, KeyRecord)


def open_to_read(path: Path) -> Database:
    """For who only looks, also where nothing can be written: ConfigError, with what is in the way."""
    try:
        return Database.open_read_only(path)
    except sqlite3.Error as error:
        raise ConfigError(f"--keys-db: cannot read {path}: {error}") from error


def open_database(path: Path) -> Database:
    """For who must write, now: ConfigError, with what is in the way."""
    try:
        return Database.open(path)
    except (OSError, sqlite3.Error) as error:
        raise ConfigError(f"--keys-db: cannot use {path}: {error}") from error
