"""Blocks that are lent by content key. Owns the record of one loan's run; pure."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Sequence as SequenceOf

    from protocol.messages.peers import BlockOffer


@dataclass(frozen=True, slots=True)
class CachedRun:
    """Full blocks of one prompt that a worker lends, from block `first_index` on: their content keys, where they lie there,
    and where they go here."""

    first_index: int
    keys: SequenceOf[bytes]
    offers: SequenceOf[BlockOffer]
    target_ids: SequenceOf[int]
