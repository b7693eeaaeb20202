"""What one worker hears of another. Owns the two records and what tells starts of a worker apart; pure."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from protocol.messages.peers import PeerMessage

PeerKey = tuple[str, str]
"""(worker id, incarnation)."""


@dataclass(frozen=True, slots=True)
class FromReader:
    """A message from a worker that pulls from us; `identity` is where an answer goes."""

    identity: bytes
    message: PeerMessage


@dataclass(frozen=True, slots=True)
class FromSource:
    """A message from a worker that we pull from."""

    source: PeerKey
    message: PeerMessage
