"""What two ends say before the first block moves. Owns the wire structs that all roads share."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import msgspec

from protocol import wire
from protocol.errors import LayoutMismatch, PeerLost, TransferError
from protocol.failures import ErrorKind, Failure, transfer_error_of

if TYPE_CHECKING:
    from collections.abc import Iterable

    from kvtransfer.transport import LocalPool

HANDSHAKE_VERSION = 2
MAX_RUNS = 512
"""Runs in one request; a reader splits what is longer."""
BlockNumber = Annotated[int, msgspec.Meta(ge=0, le=1 << 40)]
Name = Annotated[str, msgspec.Meta(max_length=256)]
RunList = Annotated[list[tuple[BlockNumber, BlockNumber]], msgspec.Meta(max_length=MAX_RUNS)]
"""(first block, count) each."""


class Greeting(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Reader to server: which start of which pool I mean, and what I think its blocks are."""

    incarnation: Name
    block_bytes: int
    fingerprint: Annotated[bytes, msgspec.Meta(max_length=64)] = b""
    version: int = HANDSHAKE_VERSION


class Answer(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Server to reader: what I am. `error` names the reason when I refuse."""

    incarnation: Name
    block_bytes: int
    num_blocks: int
    fingerprint: Annotated[bytes, msgspec.Meta(max_length=64)] = b""
    version: int = HANDSHAKE_VERSION
    error: Failure | None = None


class LeaseQuery(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Reader to server: does this lease still cover these runs?"""

    incarnation: Name
    lease_id: Name
    runs: RunList


class LeaseState(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Server to reader: nothing when it does, else why not."""

    error: Failure | None = None


greeting_decoder: wire.Decoder[Greeting] = wire.Decoder(Greeting)
answer_decoder: wire.Decoder[Answer] = wire.Decoder(Answer)


def greeting_for(pool: LocalPool, incarnation: str) -> Greeting:
    """What the reader that owns `pool` says to the server of `incarnation`."""
    return Greeting(
        incarnation=incarnation,
        block_bytes=pool.memory.block_bytes,
        fingerprint=pool.fingerprint,
    )


def answer_of(pool: LocalPool) -> Answer:
    """What the server of `pool` is."""
    return Answer(
        incarnation=pool.incarnation,
        block_bytes=pool.memory.block_bytes,
        num_blocks=pool.memory.num_blocks,
        fingerprint=pool.fingerprint,
    )


def check_answer(greeting: Greeting, answer: Answer) -> None:
    """Raise what is wrong with the other end."""
    if answer.version != greeting.version:
        raise LayoutMismatch.of("handshake version", greeting.version, answer.version)
    if answer.incarnation != greeting.incarnation:
        raise PeerLost("restarted: another start of the worker answers at this address")
    if answer.block_bytes != greeting.block_bytes:
        raise LayoutMismatch.of("block_bytes", greeting.block_bytes, answer.block_bytes)
    ours, theirs = greeting.fingerprint, answer.fingerprint
    if ours and theirs and ours != theirs:
        raise LayoutMismatch.of("fingerprint", ours.hex(), theirs.hex())
    if answer.error is not None:
        raise transfer_error_of(answer.error)


def are_same(greeting: Greeting, answer: Answer) -> bool:
    """Whether a reader that says `greeting` may have anything from the server that is `answer`."""
    try:
        check_answer(greeting, answer)
    except TransferError:
        return False
    return True


def refusal(
    pool: LocalPool, incarnation: str, lease_id: str, runs: Iterable[tuple[int, int]]
) -> Failure | None:
    """Why a reader may not have these runs of blocks; None when it may."""
    if incarnation != pool.incarnation:
        return Failure(ErrorKind.PEER_LOST, "restarted: another start of the worker is here")
    num_blocks = pool.memory.num_blocks
    block_ids: list[int] = []
    for first, count in runs:
        if count < 1 or first < 0 or first + count > num_blocks:
            return Failure(ErrorKind.TRANSFER, "a block id lies outside the source's pool")
        if len(block_ids) + count > num_blocks:
            return Failure(ErrorKind.TRANSFER, "more blocks asked for than there are")
        block_ids.extend(range(first, first + count))
    if not pool.leases.allows(lease_id, block_ids):
        return Failure(ErrorKind.LEASE_EXPIRED, "the lease is over or does not cover these blocks")
    return None
