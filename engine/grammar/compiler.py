"""From a constraint to a compiled grammar. Owns which library reads which kind; the same in every process.

    json_object json_schema regex choice, Lark, triggered tags     llguidance
    GBNF, other structural tags                                    xgrammar

llguidance honours a JSON schema or names the keyword that it cannot honour, and compiles within a millisecond or so;
docs/adr/0013 has what was measured of both.
"""

from __future__ import annotations

from functools import cached_property
from typing import TYPE_CHECKING, Any

import msgspec

from engine.grammar import llguidance_grammars as lark
from engine.grammar.guide import Guide
from engine.grammar.llguidance_grammars import LlguidanceCompiler
from engine.grammar.tag_grammars import tags_lark, triggered_tags_of
from protocol.constraints import Constraint, ConstraintKind
from protocol.errors import InvalidRequest

if TYPE_CHECKING:
    from engine.grammar.guide import CompiledGrammar
    from engine.grammar.vocabulary import GrammarVocabulary
    from engine.grammar.xgrammar_grammars import XgrammarCompiler
    from protocol.sampling import SamplingParams


class GrammarCompiler:
    """Of one vocabulary; used by one thread at a time."""

    def __init__(self, vocabulary: GrammarVocabulary) -> None:
        self.vocabulary = vocabulary
        self._llguidance = LlguidanceCompiler(vocabulary)

    @cached_property
    def _xgrammar(self) -> XgrammarCompiler:
        """Imported when a client first asks for what needs it: it takes seconds, and torch."""
        from engine.grammar.xgrammar_grammars import XgrammarCompiler  # noqa: PLC0415 - see above

        return XgrammarCompiler(self.vocabulary)

    def compile(self, constraint: Constraint) -> CompiledGrammar:
        """Raises InvalidRequest, which says what of the constraint cannot be honoured."""
        text = constraint.text
        if constraint.kind is ConstraintKind.GRAMMAR and "::=" in text:
            return self._xgrammar.ebnf(text)
        if constraint.kind is ConstraintKind.STRUCTURAL_TAG:
            tags = triggered_tags_of(text)
            if tags is None:
                return self._xgrammar.structural_tag(text)
            return self._llguidance.compile(tags_lark(tags, self.vocabulary.control_ids))
        return self._llguidance.compile(_lark(constraint.kind, text))

    def guide(self, grammar: CompiledGrammar, sampling: SamplingParams) -> Guide:
        """At the beginning of an answer."""
        ends = self.vocabulary.ends(sampling.stop_token_ids)
        return Guide(grammar.matcher(), self.vocabulary.num_rows, ends)


def _lark(kind: ConstraintKind, text: str) -> str:
    match kind:
        case ConstraintKind.JSON_OBJECT:
            return lark.start(lark.json_rule({"type": "object"}))
        case ConstraintKind.REGEX:
            return lark.start(lark.regex_rule(text))
        case ConstraintKind.CHOICE:
            return lark.start(lark.choice_rule(_choices(text)))
        case ConstraintKind.GRAMMAR:
            return lark.own_lark(text)
        case _:
            return lark.start(lark.json_rule(_json(text)))


def _json(text: str) -> Any:
    try:
        return msgspec.json.decode(text)
    except msgspec.DecodeError as error:
        raise InvalidRequest(f"it is not JSON: {error}") from error


def _choices(text: str) -> list[str]:
    try:
        choices = msgspec.json.decode(text, type=list[str])
    except msgspec.MsgspecError as error:
        raise InvalidRequest(f"choices must be a list of strings: {error}") from error
    if not choices:
        raise InvalidRequest("there must be at least one choice")
    return choices
