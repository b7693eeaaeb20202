"""What of an error crosses the wire: its kind and a text for people. Owns the one mapping to the tree in `protocol.errors`.

Whoever decides looks at the kind; the text is shown and logged, never searched. A kind that this version does not
know, from a newer one, is UNKNOWN: whoever hears it counts it, and it is an InternalError.
"""

from __future__ import annotations

import enum

import msgspec

from protocol.errors import (
    BatonError,
    DeadlineExceeded,
    DigestMismatch,
    GrammarDeadEnd,
    InternalError,
    LayoutMismatch,
    LeaseExpired,
    OutOfReach,
    PeerLost,
    ProtocolError,
    RequestAborted,
    TransferError,
    WorkerLost,
)


class ErrorKind(enum.StrEnum):
    """Classes of the error tree that one process tells another of, by their names."""

    DEADLINE_EXCEEDED = "DeadlineExceeded"
    GRAMMAR_DEAD_END = "GrammarDeadEnd"
    REQUEST_ABORTED = "RequestAborted"
    TRANSFER = "TransferError"
    LAYOUT_MISMATCH = "LayoutMismatch"
    LEASE_EXPIRED = "LeaseExpired"
    PEER_LOST = "PeerLost"
    OUT_OF_REACH = "OutOfReach"
    DIGEST_MISMATCH = "DigestMismatch"
    PROTOCOL = "ProtocolError"
    WORKER_LOST = "WorkerLost"
    INTERNAL = "InternalError"
    UNKNOWN = "unknown"

    @classmethod
    def _missing_(cls, value: object) -> ErrorKind | None:
        """A word of another version; what is not even a word breaks the protocol."""
        return cls.UNKNOWN if isinstance(value, str) else None


class Failure(msgspec.Struct, frozen=True, array_like=True):
    """An error as another process hears of it."""

    kind: ErrorKind
    text: str

    def __str__(self) -> str:
        return f"{self.kind}: {self.text}"


_CLASSES: dict[ErrorKind, type[BatonError]] = {
    ErrorKind.DEADLINE_EXCEEDED: DeadlineExceeded,
    ErrorKind.GRAMMAR_DEAD_END: GrammarDeadEnd,
    ErrorKind.REQUEST_ABORTED: RequestAborted,
    ErrorKind.TRANSFER: TransferError,
    ErrorKind.LAYOUT_MISMATCH: LayoutMismatch,
    ErrorKind.LEASE_EXPIRED: LeaseExpired,
    ErrorKind.PEER_LOST: PeerLost,
    ErrorKind.OUT_OF_REACH: OutOfReach,
    ErrorKind.DIGEST_MISMATCH: DigestMismatch,
    ErrorKind.PROTOCOL: ProtocolError,
    ErrorKind.WORKER_LOST: WorkerLost,
    ErrorKind.INTERNAL: InternalError,
}
_KINDS = {error: kind for kind, error in _CLASSES.items()}


def failure_of(error: BatonError) -> Failure:
    """What is told of an error: the nearest kind, INTERNAL for what has none."""
    for ancestor in type(error).__mro__:
        if (kind := _KINDS.get(ancestor)) is not None:
            return Failure(kind, str(error))
    return Failure(ErrorKind.INTERNAL, str(error))


def error_of(failure: Failure) -> BatonError:
    """The error that a failure stands for here."""
    return _CLASSES.get(failure.kind, InternalError)(failure.text)


def transfer_error_of(failure: Failure) -> TransferError:
    """As above for what the other end of a transfer tells: the pull fails, whatever it is."""
    error = error_of(failure)
    return error if isinstance(error, TransferError) else TransferError(str(failure))
