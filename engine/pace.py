"""How much of a long prompt one step may compute. Owns the worker's speed as its own steps showed it; pure.

A token costs the more, the more tokens are before it: seconds = per_token · n + per_pair · n · (tokens before, in the mean).
A prompt that costs more than two full steps of fresh tokens is long, and is computed in pieces that cost half a full step
each, wherever in it they lie: what comes meanwhile waits for one piece. The two weights are learned apart, from
steps in which each is nearly alone, since at one depth they cannot be told from each other.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Sequence as SequenceOf

    from engine.kv.sequence import Scheduled, Sequence

LONG_STEPS, PIECE_SHARE = 2, 2
"""More full steps than that are a long prompt; a piece of it costs a full step divided by the other."""
SAID_LITTLE = 8
"""Steps of fewer tokens than a full one divided by this cost what reading the weights costs."""
DEEP, SHALLOW = 4, 1
"""A step is deep, or shallow, by the mean number of tokens before its own, in full steps."""
PRIOR_DEPTH = 8
"""Until the first deep step, a token is taken to cost twice as much after so many full steps."""
LEARNED = 0.1
"""What one step moves a weight by."""


class Pace:
    """One of a worker, for both roles: they compute on the same processor."""

    def __init__(self, max_num_batched_tokens: int) -> None:
        self._full = max_num_batched_tokens
        self._per_token_s = 0.0
        self._per_pair_s: float | None = None

    def took(self, batch: SequenceOf[Scheduled], seconds: float) -> None:
        """A step took so long; those that only write answers say nothing here."""
        if seconds <= 0 or any(scheduled.num_tokens == 1 for scheduled in batch):
            return
        tokens = sum(scheduled.num_tokens for scheduled in batch)
        pairs = sum(_pairs(s.sequence.num_computed_tokens, s.num_tokens) for s in batch)
        if pairs <= SHALLOW * self._full * tokens:
            if SAID_LITTLE * tokens >= self._full:
                self._per_token_s = _moved(self._per_token_s or None, seconds / tokens)
        elif pairs >= DEEP * self._full * tokens and self._per_token_s:
            deep_s = max(seconds - self._per_token_s * tokens, 0.0)
            self._per_pair_s = _moved(self._per_pair_s, deep_s / pairs)

    @property
    def _growth(self) -> float:
        """By how much of a fresh token a token costs more for each one before it."""
        if self._per_pair_s is None or not self._per_token_s:
            return 1.0 / (PRIOR_DEPTH * self._full)
        return self._per_pair_s / self._per_token_s

    def is_long(self, sequence: Sequence) -> bool:
        """Whether the rest of the prompt costs more than some full steps of fresh tokens."""
        begin = sequence.num_computed_tokens
        left = sequence.num_tokens - begin
        return left + self._growth * _pairs(begin, left) > LONG_STEPS * self._full

    def chunk(self, sequence: Sequence, block_size: int, limit: int = 0) -> int:
        """Tokens that one step may compute of the prompt: they cost no more than `limit` fresh ones (0: a full step, or a
        piece of it for a long prompt). Whole blocks unless it is the rest, and one at least."""
        left = sequence.num_tokens - sequence.num_computed_tokens
        dearer, is_long = self._growth * sequence.num_computed_tokens, self.is_long(sequence)
        if dearer < 1.0 and not is_long:
            return left
        share = PIECE_SHARE if is_long else 1
        blocks = int((limit or self._full / share) / (1.0 + dearer)) // block_size
        return min(max(blocks, 1) * block_size, left)

    def piece(
        self, sequence: Sequence, block_size: int, room: int, *, is_beside: bool
    ) -> tuple[int, bool]:
        """Tokens of the prompt that a step computes which has room for so many, and whether they are a piece of it: that
        stands beside no other prompt, so none of it where others are."""
        chunk = self.chunk(sequence, block_size, sequence.chunk_tokens)
        is_piece = chunk < sequence.num_tokens - sequence.num_computed_tokens
        return 0 if is_piece and is_beside else min(chunk, room), is_piece


def _pairs(begin: int, num_tokens: int) -> float:
    """How often one of the tokens after `begin` looks at one before it."""
    return num_tokens * (begin + num_tokens / 2)


def _moved(known: float | None, seen: float) -> float:
    return seen if known is None else known + LEARNED * (seen - known)
