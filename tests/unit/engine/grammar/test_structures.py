"""Layouts of structural tags: what each lets through, alone and put together."""

from __future__ import annotations

import json
from typing import Any

import pytest

from engine.grammar.guide import allowed
from protocol.constraints import Constraint, ConstraintKind, json_schema
from protocol.errors import InvalidRequest
from protocol.sampling import SamplingParams
from tests.unit.engine.grammar.walks import (
    CONTROL,
    EOS,
    VOCABULARY,
    accepts,
    compiler,
    guide_of,
    may_end,
    walk,
)

COMPILER = compiler()
CONST = {"type": "const_string", "value": "ab"}
DIGITS = {"type": "regex", "pattern": "[0-9]{1,3}"}
ONE = {"type": "json_schema", "json_schema": {"const": 1}}
WORD = {"type": "grammar", "grammar": "start: /[xy]+/"}
GBNF = {"type": "grammar", "grammar": 'root ::= "u" "v"?'}
TAGS = [{"type": "tag", "begin": f"<{name}>", "content": ONE, "end": "!"} for name in "fg"]


def tagged(layout: dict[str, Any]) -> Constraint:
    text = json.dumps({"type": "structural_tag", "format": layout})
    return Constraint(kind=ConstraintKind.STRUCTURAL_TAG, text=text)


def is_whole(layout: dict[str, Any], text: str) -> bool:
    guide = guide_of(COMPILER, tagged(layout))
    return accepts(guide, text) and may_end(guide)


@pytest.mark.parametrize(
    ("layout", "good", "bad"),
    [
        (CONST, ["ab"], ["", "a", "abc"]),
        (DIGITS, ["1", "123"], ["", "1234", "x"]),
        (ONE, ["1"], ["2", ""]),
        (WORD, ["x", "xyx"], ["", "z"]),
        (GBNF, ["u", "uv"], ["", "v"]),
        ({"type": "any_text"}, ["", "any <f> thing\n"], []),
        ({"type": "sequence", "elements": [CONST, DIGITS, WORD]}, ["ab1x"], ["ab", "abx", "1x"]),
        ({"type": "sequence", "elements": []}, [""], ["a"]),
        ({"type": "or", "elements": [CONST, DIGITS]}, ["ab", "12"], ["ab1"]),
        ({"type": "repeat", "content": CONST}, ["", "ab", "ababab"], ["aba"]),
        ({"type": "repeat", "content": CONST, "min": 1, "max": 2}, ["ab", "abab"], ["", "ababab"]),
        ({"type": "repeat", "content": CONST, "max": 1}, ["", "ab"], ["abab"]),
        (TAGS[0], ["<f>1!"], ["<f>1", "<g>1!", "<f>2!"]),
        (
            {"type": "tags_with_separator", "tags": TAGS, "separator": ";"},
            ["", "<f>1!", "<f>1!;<g>1!"],
            ["<f>1!<g>1!", "<f>1!;"],
        ),
        (
            {"type": "tags_with_separator", "tags": TAGS, "separator": "", "at_least_one": True},
            ["<f>1!<g>1!"],
            [""],
        ),
        (
            {
                "type": "tags_with_separator",
                "tags": TAGS,
                "separator": ";",
                "stop_after_first": True,
            },
            ["<g>1!", ""],
            ["<f>1!;<g>1!"],
        ),
        ({"type": "text_until", "pattern": "#+"}, ["#", "text #"], ["text", "a#b#"]),
        ({"type": "lazy", "pattern": "a+"}, ["a"], ["aa", ""]),
    ],
)
def test_a_layout_lets_through_what_it_says(
    layout: dict[str, Any], good: list[str], bad: list[str]
) -> None:
    assert all(is_whole(layout, text) for text in good)
    assert not any(is_whole(layout, text) for text in bad)


def test_what_begins_in_free_text_cannot_be_passed_over() -> None:
    call = {"type": "sequence", "elements": [{"type": "text_until", "pattern": "<f> ?"}, ONE]}
    layout = {
        "type": "sequence",
        "elements": [{"type": "repeat", "content": call}, {"type": "any_text"}],
    }
    assert is_whole(layout, "a <g> b")
    assert is_whole(layout, "a <f>1 b <f>1")
    assert not is_whole(layout, "a <f>2")
    assert not is_whole(layout, "a <f>")


def test_only_a_control_token_ends_text_that_waits_for_one() -> None:
    until = {"type": "text_until", "control": "<|python_tag|>"}
    free = {"type": "any_text", "without": ["<|python_tag|>"]}
    layout = {"type": "or", "elements": [{"type": "sequence", "elements": [until, ONE]}, free]}
    guide = guide_of(COMPILER, tagged(layout))
    assert accepts(guide, "so <|python_tag|> 2")
    assert may_end(guide)
    guide.accept(CONTROL)
    assert not may_end(guide)
    assert accepts(guide, "1")
    assert may_end(guide)


def test_free_text_has_control_tokens_but_none_that_ends_an_answer_or_begins_something() -> None:
    for without, there in (([], True), (["<|python_tag|>"], False)):
        guide = guide_of(COMPILER, tagged({"type": "any_text", "without": without}))
        bits = allowed(guide.mask(), VOCABULARY.num_rows)
        assert bits[CONTROL] == there
        guide.accept(CONTROL if there else 97)
        assert guide.failure is None
        assert allowed(guide.mask(), VOCABULARY.num_rows)[EOS]


def test_a_grammar_that_has_served_many_answers_serves_the_next() -> None:
    """Its copies share what they have learned, of which the library allows so much."""
    pattern = {"[A-Za-z0-9-_.:]{1,255}": {"type": "string", "format": "uri"}}
    grammar = COMPILER.compile(json_schema({"type": "object", "patternProperties": pattern}))
    for seed in range(300):
        guide = COMPILER.guide(grammar, SamplingParams(max_tokens=9))
        how, _, _ = walk(guide, seed, 40)
        assert how in ("stop", "length"), seed


@pytest.mark.parametrize(
    ("layout", "told"),
    [
        ({"type": "or", "elements": []}, "elements"),
        ({"type": "repeat", "content": CONST, "min": 2, "max": 1}, "repeat"),
        ({"type": "repeat", "content": CONST, "min": -1}, "repeat"),
        ({"type": "text_until"}, "text_until"),
        ({"type": "text_until", "control": "<|none|>"}, "no control token"),
        ({"type": "json_schema", "json_schema": {"uniqueItems": True}}, "uniqueItems"),
        ({"type": "regex", "pattern": "(?=a)"}, "look-around"),
        ({"type": "grammar", "grammar": "%llguidance {}"}, "llguidance"),
        ({"type": "tags_with_separator", "tags": [], "separator": ""}, "tags"),
        ({"type": "nonsense"}, "nonsense"),
        ({"type": "tag", "begin": "", "content": CONST, "end": "", "other": 1}, "other"),
    ],
)
def test_a_layout_that_is_none_is_refused_by_name(layout: dict[str, Any], told: str) -> None:
    with pytest.raises(InvalidRequest, match=told):
        COMPILER.compile(tagged(layout))
