"""What a scheduler's owner needs of an engine. The torch runner and the attesting mock both satisfy it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from collections.abc import Sequence as SequenceOf

    from engine.kv.sequence import Scheduled
    from protocol.sampling import SampledToken


class Runner(Protocol):
    """Computes KV into the sequences' own blocks and chooses tokens."""

    backend: str

    def execute(self, batch: SequenceOf[Scheduled]) -> list[SampledToken | None]:
        """Run one step. For each entry compute tokens [num_computed, num_computed + num_tokens) of
        its sequence into its block table (which is long enough); the result has the next token where
        `samples` is true, else None. Changes nothing of the sequences but their scores, of which it adds
        those of `scored`."""
        ...
