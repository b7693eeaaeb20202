"""Schemas that cost: those that are made to, and one that real clients might ask for. Owns no measure; pure."""

from __future__ import annotations

from typing import Any

Schema = dict[str, Any]


def _chain(depth: int, link: Schema) -> Schema:
    """`depth` objects in each other."""
    schema: Schema = {"type": "null"}
    for _ in range(depth):
        schema = {"type": "object", "properties": {"a": schema, **link}, "required": ["a"]}
    return schema


def _doubling(depth: int, keyword: str) -> Schema:
    """Each definition twice the next: exponential for who writes it out."""
    defs: Schema = {
        f"d{level}": {keyword: [{"$ref": f"#/$defs/d{level + 1}"}] * 2} for level in range(depth)
    }
    return {"$ref": "#/$defs/d0", "$defs": {**defs, f"d{depth}": {"type": "string"}}}


HOSTILE: dict[str, Schema] = {
    "deep": _chain(60, {}),
    "deeper": _chain(90, {}),
    "wide and deep": _chain(40, {f"k{number}": {"type": "integer"} for number in range(20)}),
    "2,500 texts": {"enum": [f"value number {number}" for number in range(2_500)]},
    "many properties": {
        "type": "object",
        "properties": {f"p{number}": {"type": "integer"} for number in range(1_200)},
    },
    "many optional, all odd": {
        "type": "object",
        "properties": {f"p{number}": {"pattern": f"^a{{{number}}}b*$"} for number in range(400)},
    },
    "doubling anyOf": _doubling(24, "anyOf"),
    "doubling allOf": _doubling(24, "allOf"),
    "catastrophic": {"type": "string", "pattern": "^(a+)+b$"},
    "counted": {"type": "string", "pattern": "^(.*a){30}$"},
    "counted in counted": {"type": "string", "pattern": "^((a{1,100}){1,100}){1,100}$"},
    "many ways": {
        "type": "string",
        "pattern": "^(" + "|".join("ab" * n for n in range(1, 400)) + ")*$",
    },
    "long by law": {"type": "string", "minLength": 1_000_000},
    "long by right": {"type": "string", "maxLength": 10**9},
    "many items": {"type": "array", "items": {"const": 0}, "minItems": 1_000_000},
    "many of many": {
        "type": "array",
        "minItems": 1_000,
        "maxItems": 1_000,
        "items": {"type": "array", "minItems": 1_000, "maxItems": 1_000, "items": {"const": 1}},
    },
    "wants a million names": {"type": "object", "minProperties": 1_000_000},
    "divisible": {"type": "integer", "multipleOf": 999_999_937},
    "exactly divisible": {"type": "number", "multipleOf": 0.000_000_7},
    "crossing patterns": {
        "type": "object",
        "patternProperties": {f"^.*{chr(97 + place)}.*$": {"type": "null"} for place in range(20)},
    },
    "all of patterns": {
        "allOf": [
            {"type": "string", "pattern": f"^.*{word}.*$"} for word in ("abc", "bca", "cab") * 6
        ]
    },
}
"""By what they do."""
ORDERS: Schema = {
    "type": "array",
    "minItems": 200,
    "items": {
        "type": "object",
        "properties": {
            "name": {"type": "string", "minLength": 2, "maxLength": 24},
            "kind": {"enum": ["book", "game", "film", "tool"]},
            "count": {"type": "integer", "minimum": 1, "maximum": 500},
            "tags": {"type": "array", "items": {"type": "string", "maxLength": 8}, "maxItems": 3},
            "note": {"anyOf": [{"type": "null"}, {"type": "string", "pattern": "^[A-Z][a-z ]+$"}]},
        },
        "required": ["name", "kind", "count", "tags", "note"],
        "additionalProperties": False,
    },
}
"""An answer to it does not end before a measure does."""
