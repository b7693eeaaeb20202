"""Prompts of a simulated worker. Owns which goes on and how much of it a turn computes, by the rules of the production
schedulers: what is due first goes first, a piece a turn of a long one (`engine.pace`).
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from engine.pace import LONG_STEPS, PIECE_SHARE

if TYPE_CHECKING:
    from protocol.sampling import ScoredToken
    from simulation.calibration import Hardware

Key = tuple[str, int]


@dataclass(slots=True)
class Prompt:
    """A prompt that waits or is being computed; `left_s` of computing remain. `spent_s` is how long the turns were in which
    something of it was read or computed."""

    key: Key
    num_tokens: int
    max_tokens: int
    arrived_s: float
    decode_worker: str
    chunk_tokens: int
    index: int
    due_s: float
    source: str = ""
    is_begun: bool = False
    left_s: float = 0.0
    left_tokens: int = 0
    chunk_s: float = 0.0
    cached: int = 0
    fetch_s: float = 0.0
    spent_s: float = 0.0
    scores: list[ScoredToken] = field(default_factory=list)
    prompt_index: int = 0

    def begin(self, hardware: Hardware, cached: int, fetch_s: float) -> None:
        """Its beginning is here, or is read in `fetch_s`; the rest is computed."""
        self.is_begun = True
        self.cached, self.fetch_s = cached, fetch_s
        self.left_tokens = self.num_tokens - cached
        seconds = hardware.prompt_s(cached, self.num_tokens)
        self.left_s = seconds + fetch_s
        full_s = hardware.max_num_batched_tokens * hardware.token_s
        if self.chunk_tokens < hardware.max_num_batched_tokens:
            full_s = self.chunk_tokens * hardware.token_s
        elif seconds > LONG_STEPS * full_s:
            full_s /= PIECE_SHARE
        self.chunk_s = max(min(full_s, self.left_s), 1e-9)

    def advance(self, turns: int, seconds: float) -> int:
        """Tokens that were computed in so many turns, which took so long."""
        self.spent_s += seconds
        share = min(turns * self.chunk_s / self.left_s, 1.0)
        computed = round(share * self.left_tokens)
        self.left_tokens -= computed
        self.left_s -= turns * self.chunk_s
        return computed

    @property
    def is_done(self) -> bool:
        """Nothing of it remains."""
        return self.left_s <= 1e-9

    @property
    def turns_left(self) -> int:
        """Until it is done, at least one."""
        return max(1, -int(-self.left_s // self.chunk_s))


class PromptQueue:
    """`current` goes on until it is done or another is due sooner; what was begun and set aside waits with the others."""

    def __init__(self) -> None:
        self.current: Prompt | None = None
        self.waiting: list[Prompt] = []

    def choose(self) -> Prompt | None:
        """Make the one that is due first the current one, and say which."""
        first = min(self.waiting, key=lambda prompt: prompt.due_s, default=None)
        if first is not None and (self.current is None or first.due_s < self.current.due_s):
            self.waiting.remove(first)
            if self.current is not None:
                self.waiting.insert(0, self.current)
            self.current = first
        return self.current

    def done(self) -> None:
        """The current one is computed."""
        self.current = None

    def drop(self, key: Key) -> None:
        """It is aborted; harmless when it is not here."""
        if self.current is not None and self.current.key == key:
            self.current = None
        self.waiting = [prompt for prompt in self.waiting if prompt.key != key]
