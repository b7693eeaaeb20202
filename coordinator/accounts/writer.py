"""The one thread that writes the database. Owns its connection, the records on their way, and what happens when the disk
does not take them.

records ─► written together, each 20 ms ─► their slots are free          failed: kept, and tried again each second
calls   ─► in their turn, after the records before them                  others wrote: keys are read anew, each 0.5 s

Nothing ends the thread before `close`: whatever goes wrong is logged, told as the ledger's state, and tried again.
"""

from __future__ import annotations

import logging
import queue
import sqlite3
import threading
from collections import deque
from concurrent.futures import Future
from typing import TYPE_CHECKING, Any, NamedTuple, TypeVar

from protocol.errors import BatonError, LedgerUnavailable

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from coordinator.accounts.database import Database
    from coordinator.accounts.records import UsageRecord
    from protocol.clock import Clock

Result = TypeVar("Result")
log = logging.getLogger(__name__)
GATHER_S = 0.02
LOOK_S = 0.5
RETRY_S = 1.0
MAX_BATCH = 512
MAX_WAITING = 100_000


class Write(NamedTuple):
    """A record, and the slot that is free when it is written; -1 for none."""

    record: UsageRecord
    slot: int


class Call(NamedTuple):
    """Something to do with the database; its result, or what it raised."""

    work: Callable[[Database], Any]
    done: Future[Any]


class LedgerState(NamedTuple):
    """`reason` is empty as long as all is well: records are written, and keys can be read. `waiting` records are not written yet, `lost` ones never will be."""

    reason: str
    waiting: int
    lost: int


class Writer:
    """Records are taken from any thread. `written` is told of slots that are free, and `changed` that others wrote keys,
    both on the writer's thread."""

    def __init__(
        self,
        database: Database,
        written: Callable[[list[int]], None],
        changed: Callable[[Database], None],
        clock: Clock,
        late: Sequence[Write] = (),
    ) -> None:
        """`late` could not be written at the start."""
        self._database = database
        self._written = written
        self._changed = changed
        self._clock = clock
        self._inbox: queue.SimpleQueue[Write | Call | None] = queue.SimpleQueue()
        self._waiting: deque[Write] = deque(late)
        self._version = database.data_version if database.is_writable else 0
        self._retry_at_s = 0.0
        self.unwritable = "" if database.is_writable else "the disk cannot be written"
        self.unreadable = ""
        self.lost = 0
        self._thread = threading.Thread(target=self._run, name="ledger", daemon=True)

    def start(self) -> None:
        """Begin."""
        self._thread.start()

    def add(self, record: UsageRecord, slot: int) -> None:
        """Write it soon."""
        self._inbox.put(Write(record, slot))

    def call(self, work: Callable[[Database], Result]) -> Future[Result]:
        """Do something on the thread, with all that was added before written, or found unwritable."""
        done: Future[Result] = Future()
        self._inbox.put(Call(work, done))
        return done

    @property
    def reason(self) -> str:
        """Why records are not written, or else why keys are not read; "" if all is well."""
        return self.unwritable or self.unreadable

    def state(self) -> LedgerState:
        """How the ledger does."""
        return LedgerState(self.reason, len(self._waiting) + self._inbox.qsize(), self.lost)

    def close(self) -> None:
        """Write what there is, and end."""
        self._inbox.put(None)
        self._thread.join()

    def _run(self) -> None:
        is_open = True
        while is_open:
            calls, is_open = self._gather()
            if self._waiting and (self._clock.now_s() >= self._retry_at_s or not is_open):
                self._write()
            for call in calls:
                self._answer(call)
            if self._database.is_writable:
                self._look()
        self._database.close()

    def _gather(self) -> tuple[list[Call], bool]:
        """The calls that came; records join those that wait. A call waits for nobody, a record for others like it."""
        patience_s, until_s = LOOK_S, float("inf")
        if self._waiting:
            patience_s = min(LOOK_S, max(self._retry_at_s - self._clock.now_s(), 0.0))
        num_taken = 0
        while num_taken < MAX_BATCH:
            try:
                item = self._inbox.get(timeout=patience_s)
            except queue.Empty:
                break
            if item is None:
                return [], False
            if isinstance(item, Call):
                return [item], True
            num_taken += 1
            self._keep(item)
            until_s = min(until_s, self._clock.now_s() + GATHER_S)
            patience_s = max(until_s - self._clock.now_s(), 0.0)
        return [], True

    def _keep(self, item: Write) -> None:
        if len(self._waiting) >= MAX_WAITING:
            self.lost += 1
            return
        self._waiting.append(item)

    def _write(self) -> None:
        while self._waiting:
            batch = [self._waiting[index] for index in range(min(len(self._waiting), MAX_BATCH))]
            try:
                if not self._database.is_writable:
                    raise sqlite3.OperationalError(self.unwritable)
                self._database.add([one.record for one in batch])
            except sqlite3.Error as error:
                self._failed(str(error))
                return
            except Exception as error:  # the thread outlives what nobody thought of
                if _told(error) != self.unwritable:
                    log.exception("usage could not be written")
                self._failed(_told(error))
                return
            for _ in batch:
                self._waiting.popleft()
            self._free([one.slot for one in batch if one.slot >= 0])
        if self.unwritable:
            log.warning("the ledger is written again")
            self.unwritable = ""

    def _free(self, slots: list[int]) -> None:
        """They are on the disk whatever comes of telling so: a slot that is not freed is found by the next start, which
        knows what it has."""
        try:
            self._written(slots)
        except Exception:
            log.exception("%d slots of the journal could not be freed", len(slots))

    def _failed(self, reason: str) -> None:
        self._retry_at_s = self._clock.now_s() + RETRY_S
        if reason != self.unwritable:
            log.error("the ledger cannot be written: %s; free or mount its disk", reason)
        self.unwritable = reason

    def _answer(self, call: Call) -> None:
        if not call.done.set_running_or_notify_cancel():  # whoever asked has left
            return
        try:
            call.done.set_result(call.work(self._database))
        except BatonError as error:
            call.done.set_exception(error)
        except sqlite3.Error as error:
            log.warning("the keys' database failed: %s", error)
            call.done.set_exception(LedgerUnavailable(f"the keys' database failed: {error}"))
        except Exception as error:  # noqa: BLE001 - told to the caller, who raises it
            call.done.set_exception(error)

    def _look(self) -> None:
        try:
            version = self._database.data_version
            if version != self._version:
                self._changed(self._database)
                self._version = version
        except sqlite3.Error as error:
            self._unread(str(error), error)
        except Exception as error:  # noqa: BLE001 - as above
            self._unread(_told(error), error)
        else:
            if self.unreadable:
                log.warning("the keys' database is read again")
                self.unreadable = ""

    def _unread(self, reason: str, error: Exception) -> None:
        told = f"keys cannot be read: {reason}"
        if told != self.unreadable:
            log.error("%s; those that were read before stay", told, exc_info=error)
        self.unreadable = told


def _told(error: Exception) -> str:
    return f"{type(error).__name__}: {error}"
