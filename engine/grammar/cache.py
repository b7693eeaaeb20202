"""Compiled grammars by their constraint. Owns which are kept: the latest used, in a bounded number of bytes."""

from __future__ import annotations

from collections import OrderedDict
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from engine.grammar.guide import CompiledGrammar

MAX_BYTES = 64 << 20


class GrammarCache:
    """Invariant: `num_bytes` is the sum of what is kept, and at most `max_bytes` unless one alone is more."""

    def __init__(self, max_bytes: int = MAX_BYTES) -> None:
        self.max_bytes = max_bytes
        self.num_bytes = 0
        self._kept: OrderedDict[str, CompiledGrammar] = OrderedDict()

    def __len__(self) -> int:
        return len(self._kept)

    def get(self, key: str) -> CompiledGrammar | None:
        """The grammar of a constraint's key, and it is the latest used."""
        if (grammar := self._kept.get(key)) is not None:
            self._kept.move_to_end(key)
        return grammar

    def put(self, key: str, grammar: CompiledGrammar) -> None:
        """Keep it, and let go of what was used longest ago."""
        if (old := self._kept.pop(key, None)) is not None:
            self.num_bytes -= old.num_bytes
        self._kept[key] = grammar
        self.num_bytes += grammar.num_bytes
        while self.num_bytes > self.max_bytes and len(self._kept) > 1:
            _, oldest = self._kept.popitem(last=False)
            self.num_bytes -= oldest.num_bytes
