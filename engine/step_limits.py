"""What a scheduler must never send to a runner. Pure."""

from __future__ import annotations

from typing import TYPE_CHECKING

from protocol.errors import InternalError

if TYPE_CHECKING:
    from collections.abc import Sequence as SequenceOf

    from engine.kv.sequence import Scheduled


def check_contexts(batch: SequenceOf[Scheduled], block_size: int, max_context_tokens: int) -> None:
    """Kernels trust positions and tables, so an entry beyond its blocks or tokens stops here, as InternalError."""
    for entry in batch:
        sequence = entry.sequence
        end = sequence.num_computed_tokens + entry.num_tokens
        room = min(max_context_tokens, len(sequence.block_table) * block_size)
        if entry.num_tokens < 1 or end > min(room, sequence.num_tokens):
            raise InternalError(
                f"{sequence.request_id}: step to {end} tokens of {sequence.num_tokens}, room for {room}"
            )
