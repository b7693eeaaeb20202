"""What the ledger is asked. Owns the queries behind `/usage`, who may ask at once, and how amounts are spelled; reads only."""

from __future__ import annotations

import asyncio
import sqlite3
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeVar

from coordinator.accounts.terms import NANO
from protocol.errors import InvalidRequest, LedgerUnavailable, Overloaded

if TYPE_CHECKING:
    from collections.abc import Callable

    from coordinator.accounts.database import Database

Result = TypeVar("Result")
BUSY_RETRY_S = 1.0
GROUPS = {
    "key": "key_id",
    "tenant": "tenant",
    "model": "model",
    "adapter": "adapter",
    "operation": "operation",
    "end": "end",
    "day": "strftime('%Y-%m-%d', ended_at, 'unixepoch')",
    "hour": "strftime('%Y-%m-%dT%H:00Z', ended_at, 'unixepoch')",
}
REQUEST = "request"
BY_MODEL = ("key", "tenant", "model")
SUMS = ("requests", "input_tokens", "cached_tokens", "output_tokens", "cost_nano")
REQUEST_FIELDS = (
    *("request_id", "label", "key_id", "tenant", "model", "adapter", "operation"),
    *("at_s", "ended_at", "first_token_ms", "duration_ms", "end", "error"),
    *("input_tokens", "cached_tokens", "output_tokens", "cost_nano"),
)
MAX_ROWS = 10_000


@dataclass(frozen=True, slots=True)
class UsageQuery:
    """Which entries, by when they ended, and what of them: `group_by` has names of `GROUPS`, or `request` alone."""

    group_by: tuple[str, ...] = BY_MODEL
    since: float | None = None
    until: float | None = None
    key_id: str | None = None
    tenant: str | None = None
    model: str | None = None
    after: int = 0
    limit: int = 1000

    def check(self) -> None:
        """Raise InvalidRequest for groups that there are not, or twice."""
        unknown = [name for name in self.group_by if name not in GROUPS and name != REQUEST]
        if unknown or not self.group_by or len({*self.group_by}) < len(self.group_by):
            known = ", ".join((*GROUPS, REQUEST))
            raise InvalidRequest(f"group_by has some of {known}, each once", "group_by")
        if REQUEST in self.group_by and len(self.group_by) > 1:
            raise InvalidRequest("group_by=request stands alone", "group_by")
        if not 1 <= self.limit <= MAX_ROWS:
            raise InvalidRequest(f"limit is 1…{MAX_ROWS}", "limit")


@dataclass(frozen=True, slots=True)
class UsagePage:
    """Rows, and where the next page begins if there is one."""

    fields: tuple[str, ...]
    rows: list[dict[str, Any]]
    next_after: int | None = None


class UsageReader:
    """A connection and a thread of their own: a long question delays neither records nor keys. Whoever asks has one
    question at a time."""

    def __init__(self, opened: Callable[[], Database]) -> None:
        self._opened = opened
        self._database: Database | None = None
        self._thread = ThreadPoolExecutor(1, "usage")
        self._asking: set[str] = set()

    async def ask(self, asker: str, work: Callable[[Database], Result]) -> Result:
        """What `work` makes of the ledger, on the thread; raises Overloaded, and LedgerUnavailable."""
        if asker in self._asking:
            told = "this API key asks for usage already: wait for the answer"
            raise Overloaded(told, BUSY_RETRY_S)
        self._asking.add(asker)
        job = self._thread.submit(self._answer, work)
        job.add_done_callback(lambda _: self._asking.discard(asker))
        return await asyncio.wrap_future(job)

    def close(self) -> None:
        """End what is asked."""
        if self._database is not None:
            self._database.connection.interrupt()
        self._thread.shutdown(cancel_futures=True)
        if self._database is not None:
            self._database.close()

    def _answer(self, work: Callable[[Database], Result]) -> Result:
        try:
            if self._database is None:
                self._database = self._opened()
            return work(self._database)
        except sqlite3.Error as error:
            raise LedgerUnavailable(f"the ledger cannot be read: {error}") from error


def read_usage(database: Database, query: UsageQuery) -> UsagePage:
    """The rows of a query."""
    query.check()
    return _requests(database, query) if REQUEST in query.group_by else _groups(database, query)


def _groups(database: Database, query: UsageQuery) -> UsagePage:
    names = [GROUPS[name] for name in query.group_by]
    sums = ["count(*)", *(f"sum({name})" for name in SUMS[1:])]
    where, values = _where(query)
    told = (
        f"SELECT {', '.join((*names, *sums))} FROM usage WHERE {where} "
        f"GROUP BY {', '.join(names)} ORDER BY {', '.join(names)} LIMIT ? OFFSET ?"
    )
    found = database.connection.execute(told, (*values, query.limit + 1, query.after)).fetchall()
    fields = (*query.group_by, *SUMS)
    rows = [_row(fields, row) for row in found[: query.limit]]
    more = query.after + query.limit if len(found) > query.limit else None
    return UsagePage(_spelled(fields), rows, more)


def _requests(database: Database, query: UsageQuery) -> UsagePage:
    where, values = _where(query)
    told = (
        f"SELECT rowid, {', '.join(REQUEST_FIELDS)} FROM usage WHERE {where} AND rowid > ? "
        "ORDER BY rowid LIMIT ?"
    )
    found = database.connection.execute(told, (*values, query.after, query.limit + 1)).fetchall()
    rows = [_row(REQUEST_FIELDS, row[1:]) for row in found[: query.limit]]
    more = found[query.limit - 1][0] if len(found) > query.limit else None
    return UsagePage(_spelled(REQUEST_FIELDS), rows, more)


def _where(query: UsageQuery) -> tuple[str, list[Any]]:
    asked = {
        "ended_at >= ?": query.since,
        "ended_at < ?": query.until,
        "key_id = ?": query.key_id,
        "tenant = ?": query.tenant,
        "model = ?": query.model,
    }
    given = {told: value for told, value in asked.items() if value is not None}
    return " AND ".join(["1", *given]), list(given.values())


def _spelled(fields: tuple[str, ...]) -> tuple[str, ...]:
    return tuple("cost" if name == "cost_nano" else name for name in fields)


def _row(fields: tuple[str, ...], values: tuple[Any, ...]) -> dict[str, Any]:
    row = dict(zip(fields, values, strict=True))
    row["cost"] = spell_nano(row.pop("cost_nano"))
    return row


def spell_nano(nano: int) -> str:
    """An exact decimal: money is no float."""
    sign, whole = "-" if nano < 0 else "", abs(nano)
    return f"{sign}{whole // NANO}.{whole % NANO:09d}"
