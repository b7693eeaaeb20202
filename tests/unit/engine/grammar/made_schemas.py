"""JSON schemas made by chance, of every keyword that there is. Owns no assertion.

usage: python -m tests.unit.engine.grammar.made_schemas COUNT [FIRST_SEED], which writes lines of `{"name", "schema"}`
"""

from __future__ import annotations

import json
import random
import sys
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Callable

Schema = Any
TEXTS = [
    "",
    "a",
    "é",
    "東京",
    "🙂",
    'a"b',
    "\\",
    "\n",
    "</x>",
    "null",
    "1",
    "longer text",
    "\u2028",
]
KEYS = ["a", "b", "c", "x1", "naïve", "🙂", "", "a b", "$ref", "a/b", "~", '"', "\\n", "type"]
NUMBERS = [0, 1, -1, 2, 7, 10, 100, 0.5, -2.5, 1.25, 1e3, 12345678901, 0.1, -0.0, 1.0]
PATTERNS = [
    "^a*$",
    "^[a-z]{2,4}$",
    "b",
    r"^\d+(\.\d)?$",
    "^(x|y1)+$",
    "[é東]$",
    "^$",
    r"\s",
    r"^\w+@",
]
FORMATS = ["date", "time", "date-time", "duration", "email", "hostname", "ipv4", "ipv6", "uuid"]
FORMATS += ["uri", "regex", "made-up"]
DRAFTS = ["https://json-schema.org/draft/2020-12/schema", "http://json-schema.org/draft-07/schema#"]
TYPES = ["null", "boolean", "integer", "number", "string", "array", "object"]


class Maker:
    """One schema, of a seed."""

    def __init__(self, seed: int) -> None:
        self.chance = random.Random(seed)
        self.num_defs = self.chance.choice([0, 0, 1, 3])
        self.draft = self.chance.choice([None, None, None, *DRAFTS])

    def whole(self) -> Schema:
        """With its definitions."""
        schema = self.part(3)
        if not isinstance(schema, dict):
            return schema
        defs = {f"d{place}": self.part(2) for place in range(self.num_defs)}
        if self.draft is not None:
            schema["$schema"] = self.draft
        return schema | ({"$defs": defs} if defs else {})

    def part(self, depth: int) -> Schema:
        """A schema at any place."""
        kinds: list[Callable[[int], Schema]] = [self.scalar, self.fixed, self.text, self.number]
        if depth > 0:
            kinds += [self.object, self.object, self.array, self.tuple, self.several, self.odd]
        if self.num_defs and self.chance.random() < 0.15:
            return self.reference()
        return self.chance.choice(kinds)(depth)

    def some(self, options: dict[str, Callable[[], Any]], share: float = 0.4) -> dict[str, Any]:
        """Each with this chance."""
        return {name: make() for name, make in options.items() if self.chance.random() < share}

    def reference(self) -> Schema:
        place = self.chance.randrange(self.num_defs + 1)
        more = self.some({"description": lambda: "said beside", "maxLength": lambda: 4}, 0.2)
        return {"$ref": f"#/$defs/d{place}" if place < self.num_defs else "#"} | more

    def scalar(self, _: int) -> Schema:
        kind = self.chance.choice(["null", "boolean", "integer", "number"])
        if self.chance.random() < 0.5:
            return {"type": kind}
        return {"type": self.chance.sample(TYPES, self.chance.randrange(1, 4))}

    def value(self, depth: int = 2) -> Any:
        """Of any type."""
        pick = self.chance.randrange(7 if depth else 4)
        match pick:
            case 0:
                return self.chance.choice([None, True, False])
            case 1:
                return self.chance.choice(NUMBERS)
            case 2 | 3:
                return self.chance.choice(TEXTS)
            case 4:
                return [self.value(depth - 1) for _ in range(self.chance.randrange(3))]
            case _:
                keys = self.chance.sample(KEYS, self.chance.randrange(3))
                return {key: self.value(depth - 1) for key in keys}

    def fixed(self, _: int) -> Schema:
        if self.chance.random() < 0.5:
            return {"const": self.value()}
        count = self.chance.choice([1, 2, 5, 300])
        if count == 300:
            return {"enum": [f"{self.chance.choice(TEXTS)}{number}" for number in range(count)]}
        typed = {"type": self.chance.choice(TYPES)} if self.chance.random() < 0.2 else {}
        return {"enum": [self.value() for _ in range(count)]} | typed

    def text(self, _: int) -> Schema:
        more = {
            "minLength": lambda: self.chance.randrange(4),
            "maxLength": lambda: self.chance.randrange(2, 9),
            "pattern": lambda: self.chance.choice(PATTERNS),
            "format": lambda: self.chance.choice(FORMATS),
        }
        return {"type": "string"} | self.some(more)

    def number(self, _: int) -> Schema:
        kind = self.chance.choice(["integer", "number"])
        steps = [1, 2, 3, 7, 0.5, 0.1, 0.01, 0.25, 1.5, 10]
        more = {
            "minimum": lambda: self.chance.choice([-10, 0, 0.5, 3, -1e3, 99]),
            "maximum": lambda: self.chance.choice([100, 101.5, 10**6, 12, 99]),
            "exclusiveMinimum": lambda: self.chance.choice([-5, 0, 1.25]),
            "exclusiveMaximum": lambda: self.chance.choice([50, 7.75, 1e4]),
            "multipleOf": lambda: self.chance.choice(steps),
        }
        return {"type": kind} | self.some(more, 0.3)

    def properties(self, depth: int) -> dict[str, Schema]:
        keys = self.chance.sample(KEYS, self.chance.randrange(4))
        return {key: self.part(depth - 1) for key in keys}

    def object(self, depth: int) -> Schema:
        own = self.properties(depth)
        known = [*own, *self.chance.sample(KEYS, 1)]
        more: dict[str, Callable[[], Any]] = {
            "required": lambda: self.chance.sample(known, self.chance.randrange(len(known) + 1)),
            "additionalProperties": lambda: self.chance.choice([False, True, self.part(depth - 1)]),
            "minProperties": lambda: self.chance.randrange(3),
            "maxProperties": lambda: self.chance.randrange(1, 5),
        }
        rare: dict[str, Callable[[], Any]] = {
            "patternProperties": lambda: {
                self.chance.choice(["^x", "a", "^[0-9]+$", "é$"]): self.part(depth - 1)
            },
            "propertyNames": lambda: {"pattern": self.chance.choice(["^[a-c]$", "x"])},
            "dependentSchemas": lambda: {"a": {"required": ["b"]}},
            "dependentRequired": lambda: {"a": ["b"]},
            "dependencies": lambda: {"a": ["b"]},
            "unevaluatedProperties": lambda: self.chance.choice([False, self.part(0)]),
        }
        names = {"properties": own} if own or self.chance.random() < 0.5 else {}
        return {"type": "object"} | names | self.some(more) | self.some(rare, 0.08)

    def array(self, depth: int) -> Schema:
        more: dict[str, Callable[[], Any]] = {
            "items": lambda: self.part(depth - 1),
            "minItems": lambda: self.chance.randrange(3),
            "maxItems": lambda: self.chance.randrange(1, 5),
        }
        rare: dict[str, Callable[[], Any]] = {
            "contains": lambda: self.part(0),
            "minContains": lambda: 1,
            "uniqueItems": lambda: self.chance.choice([True, False]),
            "unevaluatedItems": lambda: False,
        }
        return {"type": "array"} | self.some(more, 0.6) | self.some(rare, 0.06)

    def tuple(self, depth: int) -> Schema:
        first = [self.part(depth - 1) for _ in range(self.chance.randrange(1, 4))]
        is_old = self.draft == DRAFTS[1]
        name, rest = ("items", "additionalItems") if is_old else ("prefixItems", "items")
        more: dict[str, Callable[[], Any]] = {
            rest: lambda: self.chance.choice([False, True, self.part(0)]),
            "minItems": lambda: self.chance.randrange(4),
            "maxItems": lambda: self.chance.randrange(1, 5),
        }
        return {"type": "array", name: first} | self.some(more, 0.5)

    def several(self, depth: int) -> Schema:
        """Schemas that are put together; some overlap."""
        keyword = self.chance.choice(["anyOf", "anyOf", "oneOf", "allOf"])
        parts = [self.part(depth - 1) for _ in range(self.chance.randrange(1, 4))]
        beside = self.part(depth - 1) if self.chance.random() < 0.2 else {}
        return (beside if isinstance(beside, dict) else {}) | {keyword: parts}

    def odd(self, depth: int) -> Schema:
        """What is rarely written."""
        part = self.part(depth - 1)
        return self.chance.choice(
            [
                True,
                {},
                {"not": part},
                {"if": part, "then": self.part(0), "else": self.part(0)},
                {"type": "object", "properties": {"a": part}, "nullable": True},
                {"title": "T", "default": 1, "examples": [self.value()]} | self.text(0),
                {"$comment": "c", "readOnly": True, "deprecated": False} | self.number(0),
                {"contentEncoding": "base64", "type": "string", "maxLength": 4},
                {"$anchor": "here", "type": "integer"},
            ]
        )


def made(seed: int) -> Schema:
    """The schema of a seed."""
    return Maker(seed).whole()


def main() -> None:
    """One a line."""
    first = int(sys.argv[2]) if len(sys.argv) > 2 else 0
    for seed in range(first, first + int(sys.argv[1])):
        print(json.dumps({"name": f"made {seed}", "schema": made(seed)}))


if __name__ == "__main__":
    main()
