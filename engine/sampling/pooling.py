"""What a step asks of a model: logits, or the states that they are made of where prompts are embedded. Owns whose row is whose.

States come after the final norm; engine.kv.state_pool makes an embedding of them.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from collections.abc import Sequence as SequenceOf

    import torch

    from engine.kv.sequence import Scheduled
    from engine.model.ragged_batch import RaggedBatch


class Forward(Protocol):
    """A model over some KV."""

    def forward(self, batch: RaggedBatch) -> torch.Tensor:
        """Compute the KV of every new token; [len(sample_rows), vocab] float32 logits."""
        ...

    def states(self, batch: RaggedBatch) -> torch.Tensor:
        """The same, but [len(sample_rows), hidden] states after the final norm."""
        ...

    def head(self, states: torch.Tensor) -> torch.Tensor:
        """[rows, vocab] float32 logits of such states."""
        ...


def logits_of(model: Forward, ragged: RaggedBatch, batch: SequenceOf[Scheduled]) -> torch.Tensor:
    """Of the rows that are scored or sampled; prompts that are embedded take their states on the way."""
    if not any(entry.pooled for entry in batch):
        return model.forward(ragged)
    return model.head(pool(model.states(ragged), batch))


def pool(states: torch.Tensor, batch: SequenceOf[Scheduled]) -> torch.Tensor:
    """Give the sequences of a step the states that it brings; returns those that others need logits of.

    `states` [rows, hidden] are in the order of engine.model.ragged_batch.RaggedBatch.sample_rows.
    """
    row, kept = 0, list[int]()
    for entry in batch:
        pooled, end = entry.pooled, row + len(entry.told)
        if pooled:
            taken = states[row : row + len(pooled)].float().cpu().numpy()
            entry.sequence.take_states(taken, pooled.stop)
            row = end - entry.samples
        kept += range(row, end)
        row = end
    return states[kept]
