"""From a constraint to a compiled grammar. Owns how each kind is read; the same in every process.

llguidance honours a JSON schema or names the keyword that it cannot honour, compiles within milliseconds, and gives
up by itself on what would take long. docs/adr/0014 has what was measured of it and of xgrammar.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import msgspec

from engine.grammar import llguidance_grammars as lark
from engine.grammar.guide import Guide
from engine.grammar.llguidance_grammars import LlguidanceCompiler
from engine.grammar.structure_lark import structure_lark
from engine.grammar.structures import layout_of
from protocol.constraints import Constraint, ConstraintKind
from protocol.errors import InvalidRequest

if TYPE_CHECKING:
    from engine.grammar.guide import CompiledGrammar
    from engine.grammar.vocabulary import GrammarVocabulary
    from protocol.sampling import SamplingParams

PATIENCE = 4
"""An answer may come to places that no trial saw: what costs up to so many times what a trial may is still kept to."""


class GrammarCompiler:
    """Of one vocabulary; used by one thread at a time. `patience` is how much work its masks may be, against a trial's."""

    def __init__(self, vocabulary: GrammarVocabulary, *, patience: int = PATIENCE) -> None:
        self.vocabulary = vocabulary
        self._llguidance = LlguidanceCompiler(vocabulary, patience)

    def compile(self, constraint: Constraint) -> CompiledGrammar:
        """Raises InvalidRequest, which says what of the constraint cannot be honoured."""
        text = constraint.text
        if constraint.kind is ConstraintKind.STRUCTURAL_TAG:
            control_ids, ends = self.vocabulary.control_ids, self.vocabulary.eos_token_ids
            return self._llguidance.compile(structure_lark(layout_of(text), control_ids, ends))
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
            return lark.own_grammar(text)
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
