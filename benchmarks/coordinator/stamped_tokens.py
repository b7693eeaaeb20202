"""Token ids that are clock readings. Owns the rule by which a mock worker writes the time and a client reads it.

Both sides know the tokenizer: ids whose text is plain letters are numbered, and number n stands for
n ticks of 100 µs, modulo their count (over three seconds). CLOCK_MONOTONIC is one for all processes of a host.
"""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pathlib import Path

TICK_S = 1e-4
NUM_STAMPS = 32_768


class Stamps:
    """`ids[n]` is stamp n; `numbers[id]` is its way back."""

    def __init__(self, model_directory: Path) -> None:
        tokenizer = json.loads((model_directory / "tokenizer.json").read_text(encoding="utf-8"))
        vocabulary: dict[str, int] = tokenizer["model"]["vocab"]
        letters = (
            token_id
            for token, token_id in vocabulary.items()
            if token.removeprefix("Ġ").isascii() and token.removeprefix("Ġ").isalpha()
        )
        self.ids = sorted(letters)[:NUM_STAMPS]
        self.numbers = {token_id: number for number, token_id in enumerate(self.ids)}

    @property
    def span_s(self) -> float:
        """After this long the stamps begin again."""
        return len(self.ids) * TICK_S

    def stamp(self, now_s: float) -> int:
        """The token id that stands for now."""
        return self.ids[int(now_s / TICK_S) % len(self.ids)]

    def age_s(self, token_id: int, now_s: float) -> float:
        """How long ago that token was stamped, to a tick; KeyError for an id that is no stamp."""
        return (now_s / TICK_S - self.numbers[token_id]) % len(self.ids) * TICK_S
