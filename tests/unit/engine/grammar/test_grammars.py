"""What constraints let through, and what they refuse by name."""

from __future__ import annotations

import re

import jsonschema
import pytest

from engine.grammar.guide import allowed
from protocol.constraints import Constraint, ConstraintKind, Tag, json_schema, triggered_tags
from protocol.errors import InvalidRequest
from tests.unit.engine.grammar.walks import (
    CONTROL,
    EOS,
    VOCABULARY,
    accepts,
    compiler,
    guide_of,
    may_end,
    parse,
    walk,
)

COMPILER = compiler()
PERSON = {
    "$schema": "https://json-schema.org/draft/2020-12/schema",
    "type": "object",
    "properties": {
        "name": {"type": "string", "maxLength": 5},
        "age": {"type": "integer", "minimum": 0, "maximum": 120},
        "kind": {"enum": ["a", "b", None, 3]},
        "next": {"$ref": "#/$defs/link"},
        "tags": {
            "type": "array",
            "items": {"type": "string", "pattern": "^[a-z]+$"},
            "maxItems": 2,
        },
    },
    "required": ["name", "age", "next"],
    "$defs": {"link": {"anyOf": [{"type": "null"}, {"type": "boolean"}]}},
}
SCHEMAS = [
    PERSON,
    PERSON | {"additionalProperties": False},
    {"type": "object", "additionalProperties": {"type": "integer"}, "maxProperties": 0},
    {"type": "object", "properties": {"a": {"type": "number"}}, "required": ["a", "b"]},
    {"oneOf": [{"type": "integer"}, {"type": "string", "maxLength": 3}]},
    {"allOf": [{"properties": {"a": {"type": "null"}}, "required": ["a"]}, {"type": "object"}]},
    {"type": "array", "prefixItems": [{"const": 1}, {"const": "x"}], "items": False, "minItems": 2},
    {"type": "string", "format": "date"},
    {"type": "string", "format": "made-up-here", "maxLength": 3},
    {"type": "integer", "multipleOf": 7},
    {"type": "array", "uniqueItems": False, "items": {"type": "null"}, "maxItems": 3},
]


def structured(kind: str, text: str) -> Constraint:
    return Constraint(kind=ConstraintKind(kind), text=text)


@pytest.mark.parametrize("schema", SCHEMAS)
def test_every_complete_answer_validates(schema: dict[str, object]) -> None:
    grammar = json_schema(schema)
    validator = jsonschema.validators.validator_for(schema)(schema)
    ends = set()
    for seed in range(12):
        end, text, _ = walk(guide_of(COMPILER, grammar), seed)
        ends.add(end)
        if end == "stop":
            validator.validate(parse(text))
    assert ends <= {"stop", "length"}
    assert "stop" in ends


@pytest.mark.parametrize(
    ("schema", "outside", "within"),
    [
        ({"minimum": 2**53 + 1}, str(2**53), str(2**53 + 2)),
        ({"exclusiveMinimum": 2**53 + 1}, str(2**53 + 1), str(2**53 + 4)),
        ({"maximum": 2**53 + 3}, str(2**53 + 4), str(2**53 + 2)),
        ({"maximum": 2**63 - 1}, str(2**63), str(2**53)),
        ({"minimum": -(2**63)}, str(-(2**63) - 1), "-5"),
        ({"minimum": -1e30}, str(-(10**30) - 1), "-5"),
    ],
)
def test_a_bound_between_two_doubles_is_kept_to(
    schema: dict[str, object], outside: str, within: str
) -> None:
    grammar = json_schema({"type": "integer"} | schema)
    guide = guide_of(COMPILER, grammar)
    assert not (accepts(guide, outside) and may_end(guide))
    guide = guide_of(COMPILER, grammar)
    assert accepts(guide, within)
    assert may_end(guide)


@pytest.mark.parametrize(
    ("schema", "named"),
    [
        ({"const": 2**53 + 1}, "const"),
        ({"const": 10**400}, "const"),
        ({"maximum": 10**400}, "maximum"),
        ({"enum": ["a", {"b": [2**53 + 1]}]}, "enum"),
        ({"const": 1.2345678901234568e29}, "const"),
        ({"type": "string", "format": ["date"]}, "format"),
        ({"properties": {"a": {"format": {}}}}, "format"),
    ],
)
def test_what_cannot_be_held_is_refused_by_its_keyword(
    schema: dict[str, object], named: str
) -> None:
    with pytest.raises(InvalidRequest, match=named):
        COMPILER.compile(json_schema(schema))


def test_an_object_without_a_schema_is_any_object() -> None:
    guide = guide_of(COMPILER, Constraint(kind=ConstraintKind.JSON_OBJECT))
    assert accepts(guide, '{"a": [1, {"b": null}]}')
    assert guide.is_finished


def test_whitespace_comes_to_an_end() -> None:
    guide = guide_of(COMPILER, json_schema({"type": "object", "properties": {"a": {"const": 1}}}))
    assert accepts(guide, "{" + 20 * " ")
    assert not allowed(guide.mask(), VOCABULARY.num_rows)[ord(" ")]


def test_properties_that_nobody_named_are_left_out_unless_they_are_wanted() -> None:
    named = {"type": "object", "properties": {"a": {"const": 1}}}
    assert not accepts(guide_of(COMPILER, json_schema(named)), '{"b"')
    assert accepts(guide_of(COMPILER, json_schema(named | {"additionalProperties": True})), '{"b"')
    assert accepts(guide_of(COMPILER, json_schema(named | {"required": ["b"]})), '{"a":1,"b"')
    assert accepts(guide_of(COMPILER, json_schema({"allOf": [named, {}]})), '{"b"')


@pytest.mark.parametrize(
    ("schema", "told"),
    [
        ({"type": "array", "uniqueItems": True}, "uniqueItems"),
        ({"not": {"type": "string"}}, "not"),
        ({"if": {"type": "string"}, "then": {"maxLength": 2}}, "if, then"),
        ({"dependentRequired": {"a": ["b"]}}, "dependentRequired"),
        ({"oneOf": [{"type": "integer"}, {"type": "number"}]}, "oneOf"),
        ({"$ref": "https://example.com/other.json"}, "other.json"),
        ({"type": "integer", "minimum": 5, "maximum": 3}, "minimum"),
        ({"type": "wibble"}, "wibble"),
        ({"pattern": "^(?=a)"}, "the pattern '^(?=a)' cannot be used: look-around"),
        (False, "false"),
        ({"type": "array", "uniqueItems": True, "x-guidance": {"lenient": True}}, "uniqueItems"),
    ],
)
def test_what_a_schema_cannot_have_is_named(schema: object, told: str) -> None:
    with pytest.raises(InvalidRequest, match=re.escape(told)) as refused:
        COMPILER.compile(json_schema(schema))
    assert not str(refused.value).startswith("at ")  # a place in a grammar that no client wrote


def test_a_schema_that_is_too_deep_is_refused() -> None:
    schema: dict[str, object] = {}
    for _ in range(70):
        schema = {"items": schema}
    with pytest.raises(InvalidRequest, match="64 levels"):
        COMPILER.compile(json_schema(schema))


@pytest.mark.parametrize(
    ("pattern", "good", "bad"),
    [(r"\d{3}-[a-z/]+", "123-a/b", "12-"), (r"^(yes|no)$", "no", "nope"), ("a\nb", "a\nb", "a b")],
)
def test_a_regular_expression_matches_the_whole_answer(pattern: str, good: str, bad: str) -> None:
    assert may_end(guide := guide_of(COMPILER, structured("regex", pattern))) is False
    assert accepts(guide, good)
    assert may_end(guide)
    assert not accepts(guide_of(COMPILER, structured("regex", pattern)), bad)


@pytest.mark.parametrize("pattern", [r"(a)\1", "(?=a)b", "(", "a{3,1}"])
def test_a_regular_expression_that_is_none_here_is_refused(pattern: str) -> None:
    with pytest.raises(InvalidRequest):
        COMPILER.compile(structured("regex", pattern))


def test_a_choice_is_one_of_its_texts() -> None:
    texts = '["yes", "\\"no\\\\\\n", "é/日", "ye"]'
    for text in ("yes", '"no\\\n', "é/日", "ye"):
        guide = guide_of(COMPILER, structured("choice", texts))
        assert accepts(guide, text)
        assert may_end(guide)
        assert guide.is_finished is (text != "ye")
    assert not accepts(guide_of(COMPILER, structured("choice", texts)), "n")


@pytest.mark.parametrize("text", ["[]", "[1]", "{", '"a"'])
def test_choices_are_a_list_of_texts(text: str) -> None:
    with pytest.raises(InvalidRequest):
        COMPILER.compile(structured("choice", text))


@pytest.mark.parametrize(
    "text", ['root ::= "a" [0-9]+ rest\nrest ::= "b" | "c"', 'start: "a" /[0-9]+/ ("b" | "c")']
)
def test_a_grammar_is_gbnf_or_lark(text: str) -> None:
    guide = guide_of(COMPILER, structured("grammar", text))
    assert accepts(guide, "a12")
    assert not may_end(guide)
    assert accepts(guide, "c")
    assert guide.is_finished
    assert not accepts(guide_of(COMPILER, structured("grammar", text)), "ac")


@pytest.mark.parametrize(
    "text",
    [
        'root ::= "a',
        "root ::= missing",
        'start: "a',
        "start: missing",
        "",
        '%llguidance {}\nstart: "a"',
    ],
)
def test_a_grammar_that_is_none_is_refused(text: str) -> None:
    with pytest.raises(InvalidRequest):
        COMPILER.compile(structured("grammar", text))


def tool(name: str) -> Tag:
    schema = {"type": "object", "properties": {"n": {"type": "integer"}}, "required": ["n"]}
    return Tag(begin=f"<tool_call>{name} ", schema=schema, end="</tool_call>")


def test_text_is_free_until_it_spells_a_trigger() -> None:
    guide = guide_of(COMPILER, triggered_tags([tool("f"), tool("g")], ["<tool_call>"]))
    assert accepts(guide, "a <tool_cal")
    assert may_end(guide)
    assert accepts(guide, "x <tool_call>")
    assert not may_end(guide)
    assert accepts(guide, 'g {"n":1}')
    assert not may_end(guide)
    assert accepts(guide, '</tool_call> and <tool_call>f {"n":22}</tool_call>')
    assert may_end(guide)
    assert not accepts(
        guide_of(COMPILER, triggered_tags([tool("f")], ["<tool_call>"])), "<tool_call>g"
    )


def test_a_first_tag_may_be_required_and_be_the_last() -> None:
    tags = [tool("f"), tool("g")]
    required = triggered_tags(tags, ["<tool_call>"], at_least_one=True)
    assert not accepts(guide_of(COMPILER, required), "text")
    assert accepts(guide := guide_of(COMPILER, required), '<tool_call>g {"n":1}</tool_call>')
    assert not guide.is_finished
    once = triggered_tags(tags, ["<tool_call>"], at_least_one=True, stop_after_first=True)
    assert accepts(guide := guide_of(COMPILER, once), '<tool_call>g {"n":1}</tool_call>')
    assert guide.is_finished


def test_a_control_token_in_a_tag_is_the_token_and_not_its_name() -> None:
    tag = Tag(begin="<|python_tag|>", schema={"const": 1}, end="")
    constraint = triggered_tags([tag], ["<|python_tag|>"])
    guide = guide_of(COMPILER, constraint)
    assert accepts(guide, "a")
    assert allowed(guide.mask(), VOCABULARY.num_rows)[CONTROL]
    guide.accept(CONTROL)
    assert not may_end(guide)
    assert accepts(guide, "1")
    assert may_end(guide)
    assert accepts(guide_of(COMPILER, constraint), "<|python_tag|>2")


@pytest.mark.parametrize(
    "text", ["{", "{}", '{"type":"structural_tag","format":{"type":"qwen_xml_parameter"}}']
)
def test_other_structural_tags_are_refused(text: str) -> None:
    with pytest.raises(InvalidRequest, match="triggered_tags"):
        COMPILER.compile(structured("structural_tag", text))


def test_vllms_older_structural_tags_are_read_too() -> None:
    text = '{"structures":[{"begin":"<f>","schema":{"const":1},"end":"</f>"}],"triggers":["<f"]}'
    guide = guide_of(COMPILER, structured("structural_tag", text))
    assert accepts(guide, "a <f>1</f> b")
    assert may_end(guide)


def test_an_answer_ends_where_its_grammar_may_and_nowhere_else() -> None:
    guide = guide_of(COMPILER, structured("regex", "ab*"))
    assert not may_end(guide)
    guide.accept(EOS)
    assert guide.failure is not None
    guide = guide_of(COMPILER, structured("regex", "ab*"))
    assert accepts(guide, "ab")
    assert may_end(guide)
    is_finished_before = guide.is_finished
    guide.accept(EOS)
    assert (is_finished_before, guide.is_finished, guide.failure) == (False, True, None)


def test_a_silent_stop_token_ends_an_answer_as_the_models_own_does() -> None:
    guide = guide_of(COMPILER, structured("regex", "ab*"), stop_token_ids=(CONTROL, ord("b")))
    assert accepts(guide, "a")
    mask = allowed(guide.mask(), VOCABULARY.num_rows)
    assert mask[CONTROL]
    assert mask[EOS]
    assert mask[ord("b")]
    assert not mask[ord("a")]


def test_who_takes_over_comes_to_the_same_masks() -> None:
    """At each token of each kind of grammar: a fresh guide that is told what was emitted."""
    for constraint in (
        json_schema(PERSON),
        structured("grammar", 'root ::= "a" [0-9]* ("é" | "ab")'),
        triggered_tags([tool("f")], ["<tool_call>"]),
    ):
        grammar = COMPILER.compile(constraint)
        _, _, tokens = walk(guide_of(COMPILER, constraint), 3, limit=60)
        first = guide_of(COMPILER, constraint)
        for place, token in enumerate(tokens):
            second = guide_of(compiler(), constraint) if place % 7 == 0 else None
            if second is not None:
                second.accept_all(tokens[:place])
                assert (first.mask() == second.mask()).all()
                assert first.is_finished == second.is_finished
            first.accept(token)
        assert grammar.num_bytes > 0


def test_no_row_without_a_token_is_ever_allowed() -> None:
    guide = guide_of(COMPILER, structured("regex", r"(?s:.*)"))
    mask = allowed(guide.mask(), VOCABULARY.num_rows)
    assert not mask[VOCABULARY.num_rows - 1]
    assert not mask[CONTROL]
    assert mask[EOS]


@pytest.mark.parametrize(
    "schema",
    [
        {"anyOf": [{"$ref": "#/$defs/a"}, {"$ref": "#/$defs/a"}], "$defs": {"a": {"type": "null"}}},
        {"enum": [f"value {index}" for index in range(3000)]},
        {"type": "string", "pattern": "^((a{1,100}){1,100}){1,100}$"},
        {"type": "string", "minLength": 1_000_000},
        {"type": "array", "minItems": 100_000, "items": {"type": "integer"}},
    ],
)
def test_a_hostile_schema_costs_little_or_is_refused(schema: object) -> None:
    try:
        guide = guide_of(COMPILER, json_schema(schema))
    except InvalidRequest:
        return
    assert walk(guide, 1, limit=30)[0] in ("stop", "length")
