"""One request's entry in the accounts, from its admission to the ledger. Owns which of its ends is booked, and as what.

    NEW ─reserve─► HELD ─finish─► CLOSED ─leaving─► LEAVING ─left─► DONE       usage as the client was told it
                    │               └───────┐          │└─stuck─► CLOSED, until the client takes the rest
                    └─close─► DONE          └─close, lost─► DONE               what the client got before it left or it failed

The usage is in the journal before the last bytes go, and marked as gone in the same breath as the kernel takes them.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum, StrEnum
from typing import TYPE_CHECKING, Protocol

from coordinator.accounts.records import Held, UsageRecord
from protocol.finish import FinishReason
from protocol.randomness import random_hex

if TYPE_CHECKING:
    from coordinator.accounts.journal import Journal
    from coordinator.accounts.limits import KeyMeter, Reservation
    from coordinator.accounts.prices import Prices
    from protocol.clock import Clock

MAX_TEXT_CHARACTERS = 128


class Departure(StrEnum):
    """How a client left before it had its answer, as entries and traces name it."""

    DISCONNECTED = "client_disconnected"
    STALLED = "client_stalled"


class Stage(Enum):
    """How far an entry is."""

    NEW = "new"
    HELD = "held"
    CLOSED = "closed"
    LEAVING = "leaving"
    DONE = "done"


@dataclass(frozen=True, slots=True)
class Request:
    """What the ledger calls a request."""

    model: str
    operation: str
    request_id: str
    label: str
    arrival_s: float
    adapter: str = ""


class Counts(Protocol):
    """The edge's usage of a request."""

    num_prompt_tokens: int
    num_output_tokens: int
    num_cached_tokens: int


class Ledger(Protocol):
    """Where entries go."""

    clock: Clock
    prices: Prices
    journal: Journal
    boot: str

    def wall_s(self) -> float:
        """Seconds since the epoch, steadily."""
        ...

    def check_ledger(self) -> None:
        """Raise LedgerUnavailable where usage cannot be written and must be."""
        ...

    def check_slot(self, slot: int | None) -> None:
        """The same for a journal that is full."""
        ...

    def done(self, record: UsageRecord, slot: int | None) -> None:
        """A request is over, and its usage is certain."""
        ...


class Booking:
    """Made for every request; `close` comes last, whatever came before."""

    def __init__(self, accounts: Ledger, key_id: str, tenant: str, meter: KeyMeter | None) -> None:
        self._accounts = accounts
        self._key_id = key_id
        self._tenant = tenant
        self._meter = meter
        self._stage = Stage.NEW
        self._slot: int | None = None
        self._reservation: Reservation | None = None
        self._record: UsageRecord | None = None
        self._cut: UsageRecord | None = None
        self._first_s: float | None = None

    @property
    def is_closed(self) -> bool:
        """Whether its last bytes may go."""
        return self._stage is Stage.CLOSED

    @property
    def holds_tokens(self) -> bool:
        """Whether it matters how many tokens an answer has at most."""
        return self._meter is not None and self._meter.counts_tokens

    def reserve(self, request: Request, num_prompt: int, max_output: int) -> None:
        """Admit it; raises LimitReached or LedgerUnavailable, and then nothing is held."""
        accounts = self._accounts
        accounts.check_ledger()
        self._request, self._num_prompt = request, num_prompt
        self._price = accounts.prices.of(request.model)
        tokens = num_prompt + max_output
        now_s, wall_s = accounts.clock.now_s(), accounts.wall_s()
        if self._meter is not None:
            cost_nano = self._price.cost_nano(num_prompt, 0, max_output)
            self._reservation = self._meter.reserve(tokens, cost_nano, now_s, wall_s)
        self._held = Held(
            random_hex(16),
            self._key_id,
            self._tenant,
            wall_s,
            now_s,
            accounts.boot,
            tokens,
        )
        self._slot = accounts.journal.take(self._held)
        try:
            accounts.check_slot(self._slot)
        except BaseException:
            self.refuse()
            raise
        self._stage = Stage.HELD

    def headers(self) -> dict[str, str]:
        """What the answer tells of the key's limits."""
        return {} if self._meter is None else self._meter.headers(self._accounts.clock.now_s())

    def refuse(self) -> None:
        """The cluster had no room after all: it never was."""
        if self._meter is not None and self._reservation is not None:
            self._meter.cancel(self._reservation, self._accounts.clock.now_s())
        if self._slot is not None:
            self._accounts.journal.free(self._slot)
        self._reservation, self._slot, self._stage = None, None, Stage.DONE

    def first_token(self, at_s: float | None) -> None:
        """When the first token came; None where none did."""
        self._first_s = at_s

    def finish(self, usage: Counts, end: str, told_tokens: int) -> None:
        """All but the last bytes has been sent: so many tokens are with the client for certain."""
        if self._stage is not Stage.HELD:
            return
        output = usage.num_output_tokens
        self._record = self._made(usage, output, end, None)
        self._cut = self._made(usage, told_tokens, FinishReason.ABORT, Departure.DISCONNECTED)
        if self._slot is not None:
            self._accounts.journal.close_entry(self._slot, self._record)
        self._stage = Stage.CLOSED

    # ---- the last bytes; see `coordinator.edge.http.last_bytes`

    def leaving(self) -> None:
        """They go to the kernel now."""
        if self._stage is Stage.CLOSED:
            self._stage = Stage.LEAVING
            if self._slot is not None:
                self._accounts.journal.hand_over(self._slot)

    def stuck(self) -> None:
        """Not all of them did."""
        if self._stage is Stage.LEAVING and self._slot is not None:
            self._accounts.journal.take_back(self._slot)

    def left(self) -> None:
        """All of them did."""
        if self._stage is Stage.LEAVING:
            if self._slot is not None:
                self._accounts.journal.hand_over(self._slot)
            self._end(self._record)

    def lost(self) -> None:
        """The rest never will."""
        if self._stage is Stage.LEAVING:
            self._end_cut()

    def close(self, usage: Counts, told_tokens: int, end: str, error: str | None) -> None:
        """Nothing more is done for the request."""
        if self._stage is Stage.HELD:
            record = self._made(usage, told_tokens, end, error)
            if self._slot is not None:
                self._accounts.journal.close_entry(self._slot, record)
                self._accounts.journal.hand_over(self._slot)
            self._end(record)
        elif self._stage is Stage.CLOSED:  # the client left before the last bytes went
            self._end_cut()

    def _end_cut(self) -> None:
        if self._slot is not None and self._cut is not None:
            self._accounts.journal.close_entry(self._slot, self._cut)
            self._accounts.journal.hand_over(self._slot)
        self._end(self._cut)

    def _end(self, record: UsageRecord | None) -> None:
        assert record is not None, "it was finished or closed"
        self._stage = Stage.DONE
        if self._meter is not None and self._reservation is not None:
            booked = record.input_tokens + record.output_tokens
            self._meter.settle(
                self._reservation,
                record.computed_tokens,
                booked,
                record.cost_nano,
                self._accounts.clock.now_s(),
                record.ended_at,
            )
        self._accounts.done(record, self._slot)

    def _made(self, usage: Counts, output: int, end: str, error: str | None) -> UsageRecord:
        """As what the client got: a prompt counts once it was answered at all."""
        accounts, request, held = self._accounts, self._request, self._held
        has_got = error is None or output > 0
        prompt = usage.num_prompt_tokens if has_got else 0
        cached = usage.num_cached_tokens if has_got else 0
        now_s, wall_s = accounts.clock.now_s(), accounts.wall_s()
        first_s = self._first_s
        return UsageRecord(
            entry_id=held.entry_id,
            key_id=held.key_id,
            tenant=held.tenant,
            model=request.model[:MAX_TEXT_CHARACTERS],
            adapter=request.adapter[:MAX_TEXT_CHARACTERS],
            operation=request.operation,
            request_id=request.request_id,
            label=request.label,
            at_s=held.at_s,
            mono_s=held.mono_s,
            boot=held.boot,
            ended_at=wall_s if self._meter is None else self._meter.booked_at(wall_s),
            input_tokens=prompt,
            cached_tokens=cached,
            output_tokens=output,
            computed_tokens=self._num_prompt + usage.num_output_tokens,
            cost_nano=self._price.cost_nano(prompt, cached, output),
            first_token_ms=None if first_s is None else (first_s - request.arrival_s) * 1e3,
            duration_ms=(now_s - request.arrival_s) * 1e3,
            end=end,
            error=error,
        )
