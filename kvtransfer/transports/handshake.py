"""What two ends say before the first block moves. Owns the wire structs that all roads share."""

from __future__ import annotations

import msgspec

from engine.api import wire
from engine.api.errors import LayoutMismatch, LeaseExpired, PeerLost, TransferError


class Greeting(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Reader to server: which start of which pool I mean, and how large I think its blocks are."""

    incarnation: str
    block_bytes: int


class Answer(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Server to reader: what I am. `error` names the reason when I refuse."""

    incarnation: str
    block_bytes: int
    num_blocks: int
    error: str = ""


greeting_decoder: wire.Decoder[Greeting] = wire.Decoder(Greeting)
answer_decoder: wire.Decoder[Answer] = wire.Decoder(Answer)


def check_answer(greeting: Greeting, answer: Answer) -> None:
    """Raise what is wrong with the other end."""
    if answer.incarnation != greeting.incarnation:
        raise PeerLost("another start of the worker answers at this address")
    if answer.block_bytes != greeting.block_bytes:
        raise LayoutMismatch("block_bytes", greeting.block_bytes, answer.block_bytes)
    if answer.error:
        raise error_named(answer.error)


def error_named(text: str) -> TransferError:
    """The error that a server's text stands for."""
    kind, _, detail = text.partition(": ")
    if kind == "lease":
        return LeaseExpired(detail)
    if kind == "incarnation":
        return PeerLost(detail)
    return TransferError(text)
