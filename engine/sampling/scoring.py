"""How likely a prompt was. Owns log-probabilities of tokens that were given, and which rows of logits are for them.

A row's score depends on the row alone, so neither batch nor chunks change a bit of it. A few rows at a time are turned
into log-probabilities: beside a step's logits they need little room.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from protocol.errors import InternalError
from protocol.sampling import ScoredToken

if TYPE_CHECKING:
    from collections.abc import Sequence as SequenceOf

    from engine.kv.sequence import Scheduled

SLICE_ROWS = 32


def score(logits: torch.Tensor, batch: SequenceOf[Scheduled]) -> torch.Tensor:
    """Give the sequences of a step the scores that it brings; returns the rows from which a token is chosen.

    `logits` [rows, vocab] float32 are in the order of engine.model.ragged_batch.RaggedBatch.sample_rows.
    """
    scored = [entry.scored for entry in batch]
    if not any(scored):
        return logits
    row, sampled = 0, []
    for entry, positions in zip(batch, scored, strict=True):
        sequence, num_top = entry.sequence, entry.sequence.sampling.prompt_logprobs
        following = sequence.token_ids[positions.start + 1 : positions.stop + 1]
        sequence.score(scores_of(logits[row : row + len(positions)], following, num_top or 0))
        row += len(positions)
        if entry.samples:
            sampled.append(row)
            row += 1
    return logits[sampled]


def scores_of(logits: torch.Tensor, token_ids: SequenceOf[int], num_top: int) -> list[ScoredToken]:
    """Of one token a row, with the `num_top` best beside it; InternalError if logits are not numbers."""
    found: list[ScoredToken] = []
    for first in range(0, len(token_ids), SLICE_ROWS):
        rows = slice(first, first + SLICE_ROWS)
        found += _slice(logits[rows], token_ids[rows], num_top)
    return found


def _slice(logits: torch.Tensor, token_ids: SequenceOf[int], num_top: int) -> list[ScoredToken]:
    logprobs = torch.log_softmax(logits, dim=-1)
    wanted = torch.tensor(token_ids, dtype=torch.int64, device=logits.device)[:, None]
    own = logprobs.gather(1, wanted)
    if not bool(torch.isfinite(own).all()):
        raise InternalError("the model computed logits that are not finite numbers")
    ranks = (logprobs >= own).sum(dim=-1).tolist()
    values, ids = logprobs.topk(min(num_top, logprobs.shape[-1]))
    best = zip(ids.tolist(), values.tolist(), strict=True)
    return [
        ScoredToken(logprob=logprob, rank=rank, top=list(zip(*top, strict=True)))
        for logprob, rank, top in zip(own[:, 0].tolist(), ranks, best, strict=True)
    ]
