"""Schemas made by chance, of every keyword: what is kept to validates elsewhere, and what is refused is named."""

from __future__ import annotations

import json

import jsonschema
import pytest

from engine.grammar.schemas import ANNOTATIONS
from protocol.constraints import json_schema
from protocol.errors import InvalidRequest
from tests.e2e.schema_campaign import validator_of
from tests.e2e.schema_prefix import reason_against
from tests.marks import deep
from tests.unit.engine.grammar.made_schemas import made
from tests.unit.engine.grammar.walks import accepts, compiler, guide_of, walk

COMPILER = compiler()
DEAD_END = "the answer's grammar: no token of the model continues it here"
"""What a trial refuses before anybody asks a worker."""


def keywords_of(schema: object) -> set[str]:
    """All names in it."""
    if isinstance(schema, list):
        return {name for part in schema for name in keywords_of(part)}
    if not isinstance(schema, dict):
        return set()
    return {*schema, *(name for part in schema.values() for name in keywords_of(part))}


def problem_of(schema: object) -> str:
    """What is wrong with how a schema is treated, "" if nothing is."""
    constraint, validator = json_schema(schema), validator_of(schema)
    try:
        COMPILER.compile(constraint)
    except InvalidRequest as error:
        is_named = any(name in str(error) for name in keywords_of(schema) - ANNOTATIONS)
        return "" if is_named else f"a refusal without a name: {error}"
    for seed in range(4):
        end, text, _ = walk(guide_of(COMPILER, constraint), seed, limit=120)
        told = text.decode(errors="ignore")  # the last character may be cut off
        if end == "stop":
            errors = validator.iter_errors(json.loads(told))
            problem = next((error.message for error in errors), "")
        elif end == "length":
            problem = reason_against(validator, told)
        else:
            problem = "" if end.startswith(DEAD_END) else end
        if problem:
            return f"{told[:300]}: {problem[:300]}"
    return ""


@pytest.mark.parametrize("first", [0, *(deep(first) for first in range(80, 640, 80))])
def test_made_schemas_are_kept_to_or_refused_by_name(first: int) -> None:
    problems = {}
    for seed in range(first, first + 80):
        schema = made(seed)
        try:
            jsonschema.Draft202012Validator.check_schema(schema)
        except jsonschema.SchemaError:
            continue  # of an older draft, or none at all
        if isinstance(schema, dict) and (problem := problem_of(schema)):
            problems[json.dumps(schema)] = problem
    assert not problems


@pytest.mark.parametrize(
    "schema",
    [
        {"$ref": "#"},
        {"type": "array", "items": {"$ref": "#/$defs/a~1b"}, "$defs": {"a/b": {"$ref": "#/$defs/a~1b"}}},
        {"anyOf": [{"$ref": "#"}, {"type": "null"}]},
        {"allOf": [{"oneOf": [{"$ref": "#/$defs/a"}]}], "$defs": {"a": {"anyOf": [{"$ref": "#"}]}}},
        {"$ref": "#", "maxLength": 3},
        {"$ref": "#/$defs/a", "$defs": {"a": {"$ref": "#/$defs/b"}, "b": {"$ref": "#/$defs/a"}}},
        {"$ref": "#/anyOf/0", "anyOf": [{"$ref": "#/anyOf/0"}]},
        {"$ref": "#/$defs/a%20b", "$defs": {"a b": {"$ref": "#/$defs/a%20b"}}},
        {"$anchor": "here", "$ref": "#here"},
        {"$ref": "#/$defs/a", "$defs": {"a": {"$anchor": "here", "anyOf": [{"$ref": "#here"}]}}},
        {"$ref": "", "type": "integer"},
        {"$id": "http://example.org/a", "$ref": "http://example.org/a#"},
        {"$id": "http://example.org/a#", "anyOf": [{"$ref": "http://example.org/a#/anyOf/0"}]},
        {"items": {"$ref": "#old"}, "definitions": {"a": {"id": "#old", "$ref": "#old"}}},
    ],
)  # fmt: skip
def test_a_reference_to_nothing_but_itself_is_refused_by_name(schema: object) -> None:
    with pytest.raises(InvalidRequest, match=r"\$ref '.*' comes back to itself"):
        COMPILER.compile(json_schema(schema))


def test_a_reference_that_comes_back_by_way_of_a_value_is_kept_to() -> None:
    tree = {
        "type": "object",
        "properties": {"next": {"$ref": "#"}},
        "$defs": {"a": {"$ref": "#/$defs/a"}},
    }
    assert COMPILER.compile(json_schema(tree)).num_bytes
    twice = {
        "anyOf": [{"$ref": "#/$defs/a"}, {"$ref": "#/$defs/a"}],
        "$defs": {"a": {"type": "null"}},
    }
    assert COMPILER.compile(json_schema(twice)).num_bytes
    chain = {f"d{place}": {"$ref": f"#/$defs/d{place + 1}"} for place in range(2_000)}
    long = {"$ref": "#/$defs/d0", "$defs": chain | {"d2000": {"const": 1}}}
    assert COMPILER.compile(json_schema(long)).num_bytes
    assert COMPILER.compile(
        json_schema({"$ref": "#/properties/a", "properties": {"a": {}}})
    ).num_bytes
    listed = {"anyOf": [{"type": "null"}, {"type": "array", "items": {"$ref": "#/anyOf/1"}}]}
    assert COMPILER.compile(json_schema(listed)).num_bytes
    anchored = {"$anchor": "here", "properties": {"next": {"$ref": "#here"}}}
    assert COMPILER.compile(json_schema(anchored)).num_bytes


@pytest.mark.parametrize(
    ("keyword", "value"), [("divisibleBy", 5), ("disallow", ["string"]), ("extends", {"$ref": "#"})]
)
def test_a_keyword_of_the_third_draft_is_refused_by_name(keyword: str, value: object) -> None:
    inner = {"items": {"properties": {keyword: {"type": "integer", keyword: value}}}}
    with pytest.raises(InvalidRequest, match=f"unsupported keywords in the schema: {keyword}"):
        COMPILER.compile(json_schema(inner))
    named = {"properties": {keyword: {"type": "integer"}}, "default": {keyword: value}}
    assert COMPILER.compile(json_schema(named)).num_bytes


@pytest.mark.parametrize("kind", ["integer", "object"])
def test_a_property_may_say_itself_that_it_is_required(kind: str) -> None:
    own = {"a": {"type": kind, "required": True}, "b": {"type": "null", "required": False}}
    constraint = json_schema({"type": "object", "properties": own})
    value = {"integer": "1", "object": "{}"}[kind]
    assert not accepts(guide_of(COMPILER, constraint), "{}")
    assert not accepts(guide_of(COMPILER, constraint), '{"b":null}')
    assert accepts(guide_of(COMPILER, constraint), f'{{"a":{value}}}')


def test_required_that_names_nothing_is_refused_where_it_says_nothing() -> None:
    lost = {"properties": {"a": {"$ref": "#/$defs/a"}}, "$defs": {"a": {"required": True}}}
    with pytest.raises(InvalidRequest, match="required: true anywhere but directly in properties"):
        COMPILER.compile(json_schema(lost))


@pytest.mark.parametrize(
    ("schema", "told"),
    [
        ({"type": "string", "pattern": "^a$", "minLength": 2}, "pattern, format, minLength"),
        ({"allOf": [{"type": "null"}, {"type": "string"}]}, "allOf"),
        ({"type": "array", "prefixItems": [{}], "items": False, "minItems": 2}, "minItems"),
    ],
)
def test_what_cannot_be_put_together_is_named(schema: object, told: str) -> None:
    with pytest.raises(InvalidRequest) as refused:
        COMPILER.compile(json_schema(schema))
    assert told in str(refused.value)
