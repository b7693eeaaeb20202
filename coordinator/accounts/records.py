"""What the ledger holds of a request. Owns the fields, their order in the database, and their bytes in the journal; pure."""

from __future__ import annotations

import msgspec

CRASHED = "crashed"
"""The end of an answer that the coordinator's own death cut: it was not delivered, and costs nothing."""


class Held(msgspec.Struct, frozen=True, array_like=True):
    """A request that was admitted and may use so much. `at_s` is a wall time, `mono_s` the same on the boot's clock."""

    entry_id: str
    key_id: str
    tenant: str
    at_s: float
    mono_s: float
    boot: str
    tokens: int


class UsageRecord(msgspec.Struct, frozen=True, array_like=True):
    """A request that is over: what its client got. `computed_tokens` is what was computed for it, delivered or not."""

    entry_id: str
    key_id: str
    tenant: str
    model: str
    adapter: str
    operation: str
    request_id: str
    label: str
    at_s: float
    mono_s: float
    boot: str
    ended_at: float
    input_tokens: int
    cached_tokens: int
    output_tokens: int
    computed_tokens: int
    cost_nano: int
    first_token_ms: float | None
    duration_ms: float
    end: str
    error: str | None


FIELDS = UsageRecord.__struct_fields__


def crashed(held: Held, wall_s: float) -> UsageRecord:
    """A request whose answer was not handed over when the process died."""
    return UsageRecord(
        entry_id=held.entry_id,
        key_id=held.key_id,
        tenant=held.tenant,
        model="",
        adapter="",
        operation="",
        request_id="",
        label="",
        at_s=held.at_s,
        mono_s=held.mono_s,
        boot=held.boot,
        ended_at=wall_s,
        input_tokens=0,
        cached_tokens=0,
        output_tokens=0,
        computed_tokens=held.tokens,
        cost_nano=0,
        first_token_ms=None,
        duration_ms=0.0,
        end=CRASHED,
        error=None,
    )
