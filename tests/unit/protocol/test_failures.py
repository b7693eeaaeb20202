"""An error's kind survives the wire; a kind of another version does no harm."""

from __future__ import annotations

import msgspec
import pytest

from protocol import wire
from protocol.errors import (
    BatonError,
    ConfigError,
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
from protocol.failures import ErrorKind, Failure, error_of, failure_of, transfer_error_of
from protocol.messages.peers import Gone, PeerMessage
from protocol.messages.reports import TransferFailed, WorkerMessage

TOLD = [
    *(DeadlineExceeded("d"), RequestAborted("r"), TransferError("t"), LayoutMismatch("l", "dtype")),
    *(LeaseExpired("e"), PeerLost("p"), OutOfReach("o"), DigestMismatch("m")),
    *(ProtocolError("q"), GrammarDeadEnd("g"), InternalError("i")),
    WorkerLost("w"),
]
DECODER: wire.Decoder[Failure] = wire.Decoder(Failure)


@pytest.mark.parametrize("error", TOLD, ids=lambda error: type(error).__name__)
def test_an_error_is_the_same_class_and_text_on_the_other_side(error: BatonError) -> None:
    there = error_of(DECODER.decode(wire.encode(failure_of(error))))
    assert type(there) is type(error)
    assert str(there) == str(error)


def test_every_kind_but_unknown_has_its_own_class() -> None:
    classes = [
        type(error_of(Failure(kind, ""))) for kind in ErrorKind if kind is not ErrorKind.UNKNOWN
    ]
    assert len(set(classes)) == len(classes) == len(TOLD)


def test_an_error_that_is_not_told_is_an_internal_one() -> None:
    assert failure_of(ConfigError("x")) == Failure(ErrorKind.INTERNAL, "x")


def test_a_kind_of_another_version_is_unknown_and_internal() -> None:
    heard = DECODER.decode(msgspec.msgpack.encode(["DiskFull", "no room"]))
    assert heard == Failure(ErrorKind.UNKNOWN, "no room")
    assert type(error_of(heard)) is InternalError


@pytest.mark.parametrize("kind", [1, None, ["PeerLost"]])
def test_what_is_not_even_a_word_breaks_the_protocol(kind: object) -> None:
    with pytest.raises(ProtocolError):
        DECODER.decode(msgspec.msgpack.encode([kind, "text"]))


def test_the_text_decides_nothing() -> None:
    assert type(error_of(Failure(ErrorKind.INTERNAL, "deadline"))) is InternalError
    assert type(transfer_error_of(Failure(ErrorKind.PEER_LOST, "lease: over"))) is PeerLost


def test_a_pull_fails_by_a_transfer_error_whatever_the_source_tells() -> None:
    error = transfer_error_of(Failure(ErrorKind.PROTOCOL, "what?"))
    assert type(error) is TransferError
    assert str(error) == "ProtocolError: what?"


def test_messages_carry_kind_and_text() -> None:
    failure = Failure(ErrorKind.LEASE_EXPIRED, "over")
    failed = TransferFailed(
        incarnation="i", request_id="r", attempt=1, source="prefill-0", failure=failure
    )
    assert wire.Decoder[WorkerMessage](WorkerMessage).decode(wire.encode(failed)) == failed
    gone = Gone(incarnation="i", request_id="r", attempt=1, failure=failure)
    assert wire.Decoder[PeerMessage](PeerMessage).decode(wire.encode(gone)) == gone
