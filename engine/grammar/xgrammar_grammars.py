"""xgrammar behind the seam of grammars. Owns GBNF, and structural tags of the layouts that llguidance has no word for.

Its masks are made as they are needed (measured: 10 ms to compile what takes 3 s to prepare). Importing it imports torch.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import xgrammar
from xgrammar.exception import InvalidJSONError, InvalidStructuralTagError

from protocol.errors import InvalidRequest

if TYPE_CHECKING:
    from engine.grammar.guide import Bits
    from engine.grammar.vocabulary import GrammarVocabulary

_REFUSALS = (RuntimeError, ValueError, InvalidJSONError, InvalidStructuralTagError)
_GROWTH = 4
"""Masks are added while answers are made: room for them in what a grammar is said to take."""


class XgrammarGrammar:
    """A compiled grammar: satisfies engine.grammar.guide.CompiledGrammar."""

    def __init__(self, compiled: xgrammar.CompiledGrammar) -> None:
        self._compiled = compiled
        self.num_bytes = _GROWTH * compiled.memory_size_bytes

    def matcher(self) -> XgrammarMatcher:
        """See CompiledGrammar."""
        return XgrammarMatcher(xgrammar.GrammarMatcher(self._compiled))


class XgrammarMatcher:
    """Satisfies engine.grammar.guide.Matcher."""

    def __init__(self, matcher: xgrammar.GrammarMatcher) -> None:
        self._matcher = matcher

    def accept(self, token_id: int) -> bool:
        """See Matcher."""
        return self._matcher.accept_token(token_id)

    def fill(self, bits: Bits) -> None:
        """See Matcher."""
        self._matcher.fill_next_token_bitmask(bits.reshape(1, -1))

    def may_end(self) -> bool:
        """See Matcher."""
        return self._matcher.is_completed()


class XgrammarCompiler:
    """Of one vocabulary."""

    def __init__(self, vocabulary: GrammarVocabulary) -> None:
        known = xgrammar.TokenizerInfo(
            vocabulary.spelled,
            xgrammar.VocabType.RAW,
            vocab_size=vocabulary.num_rows,
            stop_token_ids=list(vocabulary.eos_token_ids),
        )
        self._compiler = xgrammar.GrammarCompiler(
            known, max_threads=1, cache_enabled=False, enable_dynamic_compilation=True
        )

    def ebnf(self, text: str) -> XgrammarGrammar:
        """GBNF, from its rule `root`. Raises InvalidRequest."""
        try:
            return XgrammarGrammar(self._compiler.compile_grammar(text))
        except _REFUSALS as error:
            raise InvalidRequest(_first_line(error)) from error

    def structural_tag(self, text: str) -> XgrammarGrammar:
        """xgrammar's own JSON of structural tags. Raises InvalidRequest."""
        try:
            return XgrammarGrammar(self._compiler.compile_structural_tag(text))
        except _REFUSALS as error:
            raise InvalidRequest(_first_line(error)) from error


def _first_line(error: Exception) -> str:
    return next(iter(str(error).strip().splitlines()), type(error).__name__)[:300]
