"""Which constraint a `response_format` means, in the words of each server that has the field."""

from __future__ import annotations

import json

import pytest

from coordinator.edge.apis.openai.constraints import constraint_of
from coordinator.edge.apis.openai.types import ChatRequest
from protocol.constraints import ConstraintKind
from protocol.errors import InvalidRequest

SCHEMA = {"type": "object", "properties": {"a": {"type": "integer"}}, "required": ["a"]}


def asked(said: object) -> ChatRequest:
    body = {"messages": [{"role": "user", "content": "x"}], "response_format": said}
    return ChatRequest.model_validate(body)


@pytest.mark.every_value
@pytest.mark.parametrize(
    "said",
    [
        {"type": "json_schema", "json_schema": {"name": "n", "strict": True, "schema": SCHEMA}},
        {"type": "json_schema", "schema": SCHEMA},
        {"type": "json_schema", "json_schema": None, "schema": SCHEMA},
        {"type": "json_object", "value": SCHEMA},
        {"type": "json_object", "schema": SCHEMA},
        {"type": "json_object", "value": None, "schema": SCHEMA},
    ],
    ids=["OpenAI", "llama.cpp", "llama.cpp, null", "TGI", "llama.cpp object", "TGI null"],
)
def test_a_schema_is_found_wherever_a_client_puts_it(said) -> None:
    constraint, field = constraint_of(asked(said))
    assert field == "response_format"
    assert constraint is not None
    assert constraint.kind is ConstraintKind.JSON_SCHEMA
    assert json.loads(constraint.text) == SCHEMA


def test_an_object_of_any_form_needs_no_schema() -> None:
    constraint, _ = constraint_of(asked({"type": "json_object"}))
    assert constraint is not None
    assert constraint.kind is ConstraintKind.JSON_OBJECT


@pytest.mark.every_value
@pytest.mark.parametrize(
    ("said", "field"),
    [
        ({"type": "json_schema"}, "response_format.json_schema"),
        (
            {"type": "json_schema", "json_schema": {"name": "n"}},
            "response_format.json_schema.schema",
        ),
        ({"type": "json_schema", "schema": 123}, "response_format.schema"),
        ({"type": "json_object", "schema": 123}, "response_format.schema"),
        ({"type": "json_object", "value": "x"}, "response_format.value"),
        ({"type": "sound"}, "response_format.type"),
    ],
)
def test_what_is_no_schema_is_refused_by_its_place(said, field) -> None:
    with pytest.raises(InvalidRequest) as refused:
        constraint_of(asked(said))
    assert refused.value.param == field
