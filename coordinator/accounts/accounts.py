"""Keys, limits and ledger of one server. Owns how they come back after a crash, and who is told what changed.

    admission ─► Booking.reserve: limits, a slot of the journal ─► … ─► Booking: usage, handed over ─► writer ─► database

Everything on the event loop is memory: the disk is the writer's. A start reads the keys, books what the last process
handed over and had not written, and fills windows and budgets from the ledger.
"""

from __future__ import annotations

import asyncio
import logging
import math
import sqlite3
from contextlib import suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING, TypeVar

from coordinator.accounts.booking import Booking
from coordinator.accounts.database import Database
from coordinator.accounts.journal import Journal
from coordinator.accounts.key_book import KeyBook
from coordinator.accounts.limits import KeyMeter
from coordinator.accounts.prices import Prices
from coordinator.accounts.records import UsageRecord, crashed
from coordinator.accounts.terms import KeyNotFound, NewKey, make_key, make_secret, revoked, rotated
from coordinator.accounts.usage import UsageReader
from coordinator.accounts.writer import Write, Writer
from coordinator.planning.windows import WINDOW_S
from protocol.clock import wall_time_s
from protocol.errors import ConfigError, LedgerUnavailable
from protocol.ids import boot_id

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from pathlib import Path

    from coordinator.accounts.terms import KeyRecord, KeyTerms
    from coordinator.accounts.writer import LedgerState
    from protocol.clock import Clock

Result = TypeVar("Result")
log = logging.getLogger(__name__)
BOOT_CHARACTERS = 8


@dataclass(frozen=True, slots=True)
class AccountSettings:
    """`must_write`: a request is refused rather than served where its usage cannot be written."""

    path: Path
    prices: tuple[str, ...] = ()
    must_write: bool = False


class SteadyWall:
    """Wall time that goes on from this process's start as the monotonic clock does: a clock that is set meanwhile
    moves no window, no budget and no entry."""

    def __init__(self, clock: Clock, wall: Callable[[], float] = wall_time_s) -> None:
        self._clock = clock
        self._ahead_s = wall() - clock.now_s()

    def now_s(self) -> float:
        """Seconds since the epoch, as this process counts them."""
        return self._clock.now_s() + self._ahead_s


class Accounts:
    """Made by `open`; lives on one event loop, and ends with `close`."""

    def __init__(
        self, settings: AccountSettings, clock: Clock, database: Database, journal: Journal
    ) -> None:
        self.clock = clock
        self._wall = SteadyWall(clock)
        self.prices = Prices(settings.prices)
        self.journal = journal
        self.boot = boot_id()[:BOOT_CHARACTERS]
        self.book = KeyBook(database.salt_key(), database.all_keys())
        self._must_write = settings.must_write
        self._meters: dict[str, KeyMeter] = {}
        self._loop: asyncio.AbstractEventLoop | None = None
        self._is_closed = False
        late = self._recover(database) if database.is_writable else []
        self._restore(database, [it.record for it in late if not database.has(it.record.entry_id)])
        self.writer = Writer(database, self._on_written, self._on_changed, clock, late)
        opened = Database.open_beside if database.is_writable else Database.open_read_only
        self._usage = UsageReader(lambda: opened(settings.path))

    @classmethod
    def open(cls, settings: AccountSettings, clock: Clock) -> Accounts:
        """From the file, which is made if need be. ConfigError where it cannot be used as it must."""
        path = settings.path
        try:
            journal = Journal.open(path.with_name(path.name + ".inflight"))
        except OSError as error:
            return cls._open_read_only(settings, clock, error)
        try:
            return cls(settings, clock, Database.open(path), journal)
        except (OSError, sqlite3.Error) as error:
            journal.close()
            return cls._open_read_only(settings, clock, error)

    @classmethod
    def _open_read_only(
        cls, settings: AccountSettings, clock: Clock, reason: Exception
    ) -> Accounts:
        told = f"--keys-db: {settings.path} cannot be written: {reason}"
        if settings.must_write:
            raise ConfigError(
                f"{told}; --ledger-failure serve goes on without a ledger"
            ) from reason
        try:
            database = Database.open_read_only(settings.path)
            accounts = cls(settings, clock, database, Journal.in_memory())
        except sqlite3.Error as error:
            raise ConfigError(f"{told}; nor can it be read: {error}") from error
        log.error("%s; serving goes on, and no usage is written", told)
        return accounts

    def wall_s(self) -> float:
        """Seconds since the epoch, which setting the machine's clock does not change."""
        return self._wall.now_s()

    # ---- the start

    def _recover(self, database: Database) -> list[Write]:
        """Book what the last process left; what the disk does not take now is left to the writer. Raises sqlite3.Error where
        that may not be."""
        now_s = self.wall_s()
        found = list(self.journal.found())
        records = [one.record or crashed(one.held, now_s) for one in found]
        late: list[Write] = []
        try:
            database.add(records)
            self.journal.clear()
        except sqlite3.Error as error:
            if self._must_write:
                raise
            log.warning("what the last process left cannot be written yet: %s", error)
            self.journal.keep(one.slot for one in found)
            late = [Write(record, one.slot) for record, one in zip(records, found, strict=True)]
        if records:
            cut = sum(one.record is None for one in found)
            log.warning(
                "the last process left %d requests: %d had their answer and are booked, %d were cut",
                len(records),
                len(records) - cut,
                cut,
            )
        return late

    def _restore(self, database: Database, late: Sequence[UsageRecord]) -> None:
        """Windows and budgets go on, by the ledger and what is still to be written there."""
        now_s, wall_s = self.clock.now_s(), self.wall_s()
        for record in self.book:
            meter = self.meter(record)
            budgets = [one for one in (meter.money, meter.budget_tokens) if one is not None]
            if budgets:
                since = budgets[0].begin_of(wall_s)
                meter.restore_spent(*database.spent_since(record.key_id, since))
                for one in late:
                    if one.key_id == record.key_id and one.ended_at >= since:
                        tokens = one.input_tokens + one.output_tokens
                        meter.restore_spent(one.cost_nano, tokens)
        recent = database.recent(self.boot, now_s - WINDOW_S, wall_s - WINDOW_S)
        aged = [
            (wall_s - at_s if math.isnan(mono_s) else now_s - mono_s, key_id, tokens)
            for key_id, mono_s, at_s, tokens in recent
        ]
        aged += [
            (
                now_s - one.mono_s if one.boot == self.boot else wall_s - one.at_s,
                one.key_id,
                one.computed_tokens,
            )
            for one in late
        ]
        for age_s, key_id, tokens in sorted(aged, reverse=True):
            if key_id in self._meters:
                self._meters[key_id].restore(age_s, tokens, now_s)

    # ---- requests

    def meter(self, record: KeyRecord) -> KeyMeter:
        """How much that key has used."""
        found = self._meters.get(record.key_id)
        if found is None:
            found = self._meters[record.key_id] = KeyMeter(record)
        return found

    def booking(self, key_id: str, tenant: str, record: KeyRecord | None) -> Booking:
        """For one request; `record` is None for a key of the command line, which has no limits."""
        return Booking(self, key_id, tenant, None if record is None else self.meter(record))

    def check_room(self, record: KeyRecord | None, model: str) -> None:
        """Raise what any request of that key would be refused with, LimitReached or LedgerUnavailable, while nothing has
        been computed for it: as if it had one token."""
        self.check_ledger()
        if record is not None:
            cost_nano = self.prices.of(model).cost_nano(1, 0, 0)
            self.meter(record).check(1, cost_nano, self.clock.now_s(), self.wall_s())

    def check_ledger(self) -> None:
        """Raise LedgerUnavailable where usage cannot be written and must be."""
        if self._must_write and (reason := self.writer.unwritable):
            told = f"usage cannot be written down, so nothing is served: {reason}"
            raise LedgerUnavailable(told)

    def check_slot(self, slot: int | None) -> None:
        """The same for a journal that is full."""
        if slot is None and self._must_write:
            raise LedgerUnavailable("too much usage waits to be written down; nothing is served")

    def done(self, record: UsageRecord, slot: int | None) -> None:
        """A request is over, and its usage is certain."""
        self.writer.add(record, -1 if slot is None else slot)

    # ---- keys

    async def create(self, terms: KeyTerms) -> NewKey:
        """A new key, whose secret is told this once; raises InvalidRequest."""
        made = make_key(terms, self.wall_s())
        await self.ask(lambda database: database.put_key(made.record))
        self.book.put(made.record)
        log.info("key %s was created for tenant %s", made.record.key_id, made.record.terms.tenant)
        return made

    async def rotate(self, key_id: str, grace_s: float) -> NewKey:
        """Another secret for a key; raises KeyNotFound, or KeyConflict for one that was revoked."""
        secret, now_s = make_secret(key_id), self.key_now_s()
        record = await self._change(key_id, lambda one: rotated(one, secret, now_s, grace_s))
        log.info("key %s was rotated", key_id)
        return NewKey(record, secret)

    async def revoke(self, key_id: str) -> KeyRecord:
        """It opens nothing any more: at once, and as long as this process lives also where the disk does not take it, which
        is told by LedgerUnavailable."""
        now_s = self.wall_s()
        with suppress(KeyNotFound):  # another process may just have made it
            self.book.put(revoked(self.book.get(key_id), now_s))
        record = await self._change(key_id, lambda one: revoked(one, now_s))
        log.info("key %s was revoked", key_id)
        return record

    async def _change(self, key_id: str, change: Callable[[KeyRecord], KeyRecord]) -> KeyRecord:
        record = await self.ask(lambda database: database.change_key(key_id, change))
        self.book.put(record)
        return record

    async def ask(self, work: Callable[[Database], Result]) -> Result:
        """Do something with the database, on its thread."""
        return await asyncio.wrap_future(self.writer.call(work))

    async def read(self, asker: str, work: Callable[[Database], Result]) -> Result:
        """Ask the ledger, with what was on its way to the disk, beside all else; one question of an asker at a time."""
        await self.ask(lambda _: None)
        return await self._usage.ask(asker, work)

    def key_now_s(self) -> float:
        """For what ends at an instant: the later of both clocks, so that setting one back opens nothing again."""
        return max(self.wall_s(), wall_time_s())

    def state(self) -> LedgerState:
        """How the ledger does."""
        return self.writer.state()

    # ---- the writer's side

    def start(self, loop: asyncio.AbstractEventLoop) -> None:
        """Write from now on."""
        self._loop = loop
        self.writer.start()

    def _on_written(self, slots: list[int]) -> None:
        assert self._loop is not None, "the writer begins in start"
        if not self._loop.is_closed():
            self._loop.call_soon_threadsafe(self._free, slots)

    def _free(self, slots: list[int]) -> None:
        if not self._is_closed:
            for slot in slots:
                self.journal.free(slot)

    def _on_changed(self, database: Database) -> None:
        records = database.all_keys()
        assert self._loop is not None, "the writer begins in start"
        if not self._loop.is_closed():
            self._loop.call_soon_threadsafe(self.book.replace, records)

    async def close(self) -> None:
        """Write what there is; slots of what was not written stay for the next start."""
        await asyncio.to_thread(self._usage.close)
        await asyncio.to_thread(self.writer.close)
        self._is_closed = True
        self.journal.close()
