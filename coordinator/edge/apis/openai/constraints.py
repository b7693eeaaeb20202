"""What an answer must look like, in the words of OpenAI's and vLLM's clients. Owns which field means which constraint.

response_format       {"type": "json_object"}, TGI's {"type": "json_object", "value": schema}, json_schema, structural_tag;
                      llama.cpp's {"type": "json_object" or "json_schema", "schema": schema}
structured_outputs    {json, regex, choice, grammar, structural_tag, json_object}: one of them
guided_json …         the same one by one, as vLLM had them before
json_schema, grammar  llama.cpp's; SGLang's are regex and ebnf, and json_schema as a text
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import orjson

from coordinator.edge.answers.grammar_check import schema_constraint
from protocol.constraints import Constraint, ConstraintKind
from protocol.errors import InvalidRequest

if TYPE_CHECKING:
    from coordinator.edge.apis.openai.types import GenerationRequest

KINDS = {
    "json": ConstraintKind.JSON_SCHEMA,
    "regex": ConstraintKind.REGEX,
    "choice": ConstraintKind.CHOICE,
    "grammar": ConstraintKind.GRAMMAR,
    "structural_tag": ConstraintKind.STRUCTURAL_TAG,
}
FIELDS = ("response_format", "structured_outputs")
ALONE = {
    "guided_json": "json",
    "guided_regex": "regex",
    "guided_choice": "choice",
    "guided_grammar": "grammar",
    "json_schema": "json",
    "grammar": "grammar",
    "regex": "regex",
    "ebnf": "grammar",
}
"""Fields that have one kind of constraint each. Those without `guided_` ask for nothing where they are empty."""


def constraint_of(asked: GenerationRequest) -> tuple[Constraint | None, str]:
    """(what the answer must be, the field that says so). Raises InvalidRequest for two, and what is none."""
    said = {name: getattr(asked, name) for name in (*FIELDS, *ALONE)}
    found = {name: value for name, value in said.items() if _asks(name, value)}
    if len(found) > 1:
        first, second = list(found)[:2]
        raise InvalidRequest(f"{first} and {second} exclude each other", second)
    if not found:
        return None, ""
    name, value = next(iter(found.items()))
    if name == "response_format":
        return _response_format(value), name
    if name == "structured_outputs":
        return _structured_outputs(value), name
    return _of(ALONE[name], value, name), name


def _asks(name: str, value: object) -> bool:
    """Whether a field wants anything: text as it comes, and no options, do not."""
    if name == "response_format":
        return value is not None and not (isinstance(value, dict) and value.get("type") == "text")
    if name == "structured_outputs" and isinstance(value, dict):
        return any(value.get(key) is not None for key in (*KINDS, "json_object"))
    if name in ALONE and not name.startswith("guided_"):
        return value not in (None, "", {}, False)
    return value is not None


def _response_format(said: Any) -> Constraint:
    kind = said.get("type")
    if kind == "json_object":
        key = next((key for key in ("value", "schema") if said.get(key) is not None), None)
        if key is None:
            return Constraint(kind=ConstraintKind.JSON_OBJECT)
        return _of("json", said[key], f"response_format.{key}")
    if kind == "json_schema":
        if said.get("json_schema") is None and said.get("schema") is not None:
            return _of("json", said["schema"], "response_format.schema")
        path = "response_format.json_schema.schema"
        inner = said.get("json_schema")
        if not isinstance(inner, dict):
            raise InvalidRequest(
                "response_format.json_schema is missing", "response_format.json_schema"
            )
        if inner.get("schema") is None:
            raise InvalidRequest(f"{path} is missing", path)
        return _of("json", inner["schema"], path)
    if kind == "structural_tag":
        return _of("structural_tag", said, "response_format")
    told = f"response_format.type {kind!r} is unknown; supported: text, json_object, json_schema, structural_tag"
    raise InvalidRequest(told, "response_format.type")


def _structured_outputs(said: Any) -> Constraint:
    if not isinstance(said, dict):
        raise InvalidRequest("structured_outputs must be an object", "structured_outputs")
    named = {key: value for key, value in said.items() if key in KINDS and value is not None}
    wants_object = bool(said.get("json_object"))
    if len(named) + wants_object != 1:
        told = f"structured_outputs must have exactly one of {', '.join(KINDS)}, json_object"
        raise InvalidRequest(told, "structured_outputs")
    if wants_object:
        return Constraint(kind=ConstraintKind.JSON_OBJECT)
    key, value = next(iter(named.items()))
    return _of(key, value, f"structured_outputs.{key}")


def _of(key: str, value: object, path: str) -> Constraint:
    if key == "json":
        return schema_constraint(value, path)
    if key == "choice":
        if not isinstance(value, list) or not all(isinstance(item, str) for item in value):
            raise InvalidRequest(f"{path} must be a list of strings", path)
        return Constraint(kind=ConstraintKind.CHOICE, text=orjson.dumps(value).decode())
    if key == "structural_tag" and isinstance(value, dict):
        return Constraint(kind=ConstraintKind.STRUCTURAL_TAG, text=orjson.dumps(value).decode())
    if not isinstance(value, str):
        raise InvalidRequest(f"{path} must be a string", path)
    return Constraint(kind=KINDS[key], text=value)
