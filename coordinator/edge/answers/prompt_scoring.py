"""Scores of prompts while they come. Owns who is told of them, and that no choice speaks before its prompt's are all there.

The first choice of a prompt scores it; what the others say meanwhile waits, because an answer begins with its prompt.
"""

from __future__ import annotations

from collections import deque
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Sequence

    from coordinator.cluster.service_api import Generation
    from coordinator.edge.answers.answer import Delta, PromptScores
    from protocol.sampling import ScoredToken


class ScoreBook:
    """`missing` counts the scores of each prompt that are still to come."""

    def __init__(
        self, generations: Sequence[Generation], per_prompt: int, told: Sequence[PromptScores]
    ) -> None:
        scored = [one.sampling.prompt_logprobs is not None for one in generations[::per_prompt]]
        sizes = [len(one.prompt_token_ids) - 1 for one in generations[::per_prompt]]
        self.missing = [size if wanted else 0 for size, wanted in zip(sizes, scored, strict=True)]
        self._told = told
        self._per_prompt = per_prompt
        self._waiting: deque[Delta] = deque()
        self._ready: deque[Delta] = deque()

    @property
    def is_empty(self) -> bool:
        """Whether nothing waits to be said."""
        return not self._waiting and not self._ready

    def take(self, index: int, scores: Sequence[ScoredToken]) -> None:
        """What came for a choice's prompt; whoever waited for the last of it may speak."""
        prompt = index // self._per_prompt
        self._told[prompt].take(scores)
        self.missing[prompt] -= len(scores)
        if self.missing[prompt] <= 0:
            free = [it for it in self._waiting if it.index // self._per_prompt == prompt]
            self._ready.extend(free)
            self._waiting = deque(it for it in self._waiting if it not in free)

    def admit(self, delta: Delta) -> Delta | None:
        """The delta, if it may be said now."""
        if self.missing[delta.index // self._per_prompt] <= 0:
            return delta
        self._waiting.append(delta)
        return None

    def next(self) -> Delta | None:
        """One that has waited long enough."""
        return self._ready.popleft() if self._ready else None
