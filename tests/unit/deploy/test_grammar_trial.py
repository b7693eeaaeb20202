"""What the process that tries grammars finds out before any worker does."""

from __future__ import annotations

import pytest

from deploy.processes.grammar_main import refusal
from protocol.constraints import Constraint, ConstraintKind, json_schema
from tests.unit.engine.grammar.walks import compiler

COMPILER = compiler()
MANY = {"type": "object", "properties": {f"p{number}": {} for number in range(2_600)}}


def test_an_answer_that_would_come_to_a_dead_end_is_refused_before_it_begins() -> None:
    told = refusal(COMPILER, json_schema(MANY))
    assert told is not None
    assert "too much work" in told


@pytest.mark.parametrize("schema", [{"type": "object"}, {"type": "string"}, {"const": 1}])
def test_what_answers_can_be_kept_to_is_not_refused(schema: dict[str, object]) -> None:
    assert refusal(COMPILER, json_schema(schema)) is None


def test_what_no_answer_can_keep_to_is_refused() -> None:
    assert refusal(COMPILER, json_schema({"$ref": "#"})) is not None


def test_an_ambiguous_grammar_whose_masks_cost_more_with_each_token_is_refused() -> None:
    ambiguous = Constraint(kind=ConstraintKind.GRAMMAR, text='start: s\ns: s s | "a" | "b"\n')
    told = refusal(COMPILER, ambiguous)
    assert told is not None
    assert "too much work" in told
