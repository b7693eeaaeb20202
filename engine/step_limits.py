"""What a scheduler must never send to a runner: more than it has room for. Pure."""

from __future__ import annotations

from typing import TYPE_CHECKING

from protocol.errors import InternalError

if TYPE_CHECKING:
    from collections.abc import Sequence as SequenceOf

    from engine.kv.sequence import Scheduled, Sequence

SCORED_TOKENS = 256
MOST_SCORED_TOKENS = 4096
SCORED_BYTES = 64 * 1024 * 1024
"""Logits of the positions that one step scores, in float32."""


def scored_tokens(vocab_size: int | None) -> int:
    """How many tokens of prompts one step may score."""
    if vocab_size is None:
        return SCORED_TOKENS
    return min(max(SCORED_BYTES // (4 * vocab_size), 1), MOST_SCORED_TOKENS)


def room_to_score(
    sequence: Sequence, batch: SequenceOf[Scheduled], max_scored_tokens: int, budget: int
) -> int:
    """Tokens of a sequence that may still be added to `batch`, of the `budget` that is left there. What was scored before
    is only computed."""
    if not sequence.lacks_scores:
        return budget
    room = max_scored_tokens - sum(len(entry.scored) for entry in batch)
    first = max(sequence.num_scored_tokens - 1, sequence.num_computed_tokens)
    if sequence.num_prompt_tokens - 1 - first <= room:
        return budget
    return min(budget, first - sequence.num_computed_tokens + max(room, 0))


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
