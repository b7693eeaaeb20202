"""JSON schemas that nobody should write and somebody does. Owns no assertion.

`ODD` are small and strange: each is honoured or refused by name. Those that are made to cost are in benchmarks/grammars/schemas.py.
"""

from __future__ import annotations

from typing import Any

TREE = {
    "type": "object",
    "properties": {"value": {"type": "integer"}, "child": {"$ref": "#"}},
    "required": ["value"],
    "additionalProperties": False,
}
MUTUAL = {
    "$ref": "#/$defs/even",
    "$defs": {
        "even": {"type": "array", "items": {"$ref": "#/$defs/odd"}, "maxItems": 2},
        "odd": {"anyOf": [{"type": "null"}, {"$ref": "#/$defs/even"}]},
    },
}
ODD: dict[str, Any] = {
    "true": True,
    "empty": {},
    "words alone": {"title": "T", "description": "D", "examples": [1]},
    "recursive": TREE,
    "mutually recursive": MUTUAL,
    "itself": {"$ref": "#"},
    "a circle": {"$ref": "#/$defs/a", "$defs": {"a": {"$ref": "#/$defs/a"}}},
    "anchor": {"$ref": "#here", "$defs": {"a": {"$anchor": "here", "type": "boolean"}}},
    "remote": {"$ref": "http://127.0.0.1:9/never.json"},
    "of a file": {"$ref": "file:///etc/passwd"},
    "missing": {"$ref": "#/$defs/none"},
    "no reference": {"$ref": 5},
    "look-ahead": {"type": "string", "pattern": "^(?=a)a$"},
    "look-behind": {"type": "string", "pattern": "(?<!a)b"},
    "back-reference": {"type": "string", "pattern": r"^(a)\1$"},
    "broken pattern": {"type": "string", "pattern": "["},
    "pattern that floats": {"type": "string", "pattern": "[0-9]{2}", "maxLength": 6},
    "unicode pattern": {"type": "string", "pattern": "^[äöü东京]{1,3}$"},
    "unicode keys": {
        "type": "object",
        "properties": {"naïve": {"const": "東京"}, "🙂": {"enum": ["é", "\u0001", "\u2028"]}},
        "required": ["naïve", "🙂"],
        "additionalProperties": False,
    },
    "odd keys": {
        "type": "object",
        "properties": {'a"b': {}, "": {"const": 1}, "\\": {"const": 2}, "$ref": {"const": 3}},
        "required": ["", "\\", "$ref"],
        "additionalProperties": False,
    },
    "control tokens": {"enum": ["<|im_end|>", "<|im_start|>system"]},
    "not": {"not": {"type": "string"}},
    "if": {"if": {"type": "string"}, "then": {"maxLength": 1}},
    "dependentSchemas": {"type": "object", "dependentSchemas": {"a": {"required": ["b"]}}},
    "dependentRequired": {"type": "object", "dependentRequired": {"a": ["b"]}},
    "oneOf that overlaps": {"oneOf": [{"type": "integer"}, {"type": "number"}]},
    "oneOf that does not": {"oneOf": [{"const": 1}, {"type": "string", "maxLength": 2}]},
    "allOf": {"allOf": [{"type": "integer", "minimum": 3}, {"maximum": 5}]},
    "allOf that contradicts": {"allOf": [{"type": "integer"}, {"type": "string"}]},
    "anyOf beside": {
        "type": "object",
        "properties": {"k": {"const": 1}},
        "required": ["k"],
        "anyOf": [{"required": ["a"]}, {"required": ["b"]}],
    },
    "closed beside allOf": {
        "allOf": [{"properties": {"a": {"const": 1}}, "required": ["a"]}],
        "properties": {"b": {"const": 2}},
        "required": ["b"],
    },
    "multipleOf": {"type": "number", "multipleOf": 0.25, "minimum": 0, "maximum": 2},
    "multipleOf of integers": {"type": "integer", "multipleOf": 13, "minimum": 1, "maximum": 40},
    "nothing between": {"type": "integer", "minimum": 5, "maximum": 4},
    "exclusive": {"type": "integer", "exclusiveMinimum": 3, "exclusiveMaximum": 5},
    "draft 4 exclusive": {
        "$schema": "http://json-schema.org/draft-04/schema#",
        "type": "integer",
        "minimum": 3,
        "exclusiveMinimum": True,
        "maximum": 4,
    },
    "fractions": {"type": "number", "minimum": 0.5, "maximum": 0.75},
    "huge numbers": {"type": "number", "minimum": 1e300, "maximum": 1e308},
    "formats": {
        "type": "object",
        "properties": {
            name: {"type": "string", "format": name} for name in ("date", "uuid", "ipv4")
        },
        "required": ["date", "uuid", "ipv4"],
        "additionalProperties": False,
    },
    "unknown format": {"type": "string", "format": "made-up", "maxLength": 3},
    "tuple": {"type": "array", "prefixItems": [{"const": 1}, {"const": "a"}], "items": False},
    "old tuple": {
        "$schema": "http://json-schema.org/draft-07/schema#",
        "type": "array",
        "items": [{"const": 1}, {"const": "a"}],
        "additionalItems": False,
        "minItems": 2,
    },
    "contains": {"type": "array", "contains": {"const": 1}},
    "uniqueItems": {"type": "array", "uniqueItems": True},
    "no items": {"type": "array", "items": False},
    "too many items": {"type": "array", "items": {"const": 1}, "minItems": 3, "maxItems": 2},
    "enum of anything": {"enum": [None, 1, 1.5, "a", [1, {"b": []}], {"c": False}]},
    "empty enum": {"enum": []},
    "const null": {"const": None},
    "types": {"type": ["null", "boolean", "integer"], "maximum": 9},
    "no types": {"type": []},
    "unknown type": {"type": "any"},
    "properties of a list": {"type": "object", "properties": ["a"]},
    "items of a number": {"type": "array", "items": 3},
    "negative length": {"type": "string", "minLength": -1},
    "lengths that cross": {"type": "string", "minLength": 4, "maxLength": 2},
    "astral lengths": {"type": "string", "pattern": "^[🙂🙃]*$", "minLength": 2, "maxLength": 2},
    "required of nobody": {"type": "object", "required": ["a"]},
    "patternProperties": {
        "type": "object",
        "patternProperties": {"^x": {"const": 1}},
        "additionalProperties": False,
        "minProperties": 1,
        "maxProperties": 2,
    },
    "propertyNames": {"type": "object", "propertyNames": {"pattern": "^[a-c]$"}},
    "unevaluated": {"type": "object", "unevaluatedProperties": False, "properties": {"a": {}}},
    "nullable": {"type": "string", "nullable": True, "maxLength": 2},
    "guidance": {"x-guidance": {"whitespace_pattern": ".*"}, "type": "boolean"},
    "dynamic": {"$dynamicRef": "#node", "$dynamicAnchor": "node"},
}
