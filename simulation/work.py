"""What a simulated worker writes and tells: sequences, and the scores of prompts. Owns no time."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from protocol.sampling import ScoredToken

if TYPE_CHECKING:
    from protocol.messages.orders import Decode, Prefill
    from protocol.spans import Spans
    from simulation.prompt_queue import Key

SCORE = ScoredToken(logprob=0.0, rank=1)


@dataclass(slots=True)
class Sequence:
    """A sequence being written. Steps are counted from the worker's first; `context` is at `joined`."""

    key: Key
    joined: int
    end: int
    told: int
    index: int
    context: int
    spans: Spans


def emitted(order: Prefill | Decode) -> int:
    """Tokens of the answer that a replay's prompt holds already."""
    return len(order.token_ids) - order.num_prompt_tokens


def scores_of(order: Prefill | Decode) -> list[ScoredToken]:
    """What whoever computes the prompt tells of its tokens, where that is asked for."""
    if order.sampling.prompt_logprobs is None:
        return []
    return [SCORE] * (order.num_prompt_tokens - max(order.num_scored_tokens, 1))
