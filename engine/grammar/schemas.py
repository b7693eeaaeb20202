"""A client's JSON Schema as it is given to a library of grammars. Owns what is changed in it, and that nothing else is.

Every document that the changed schema allows the client's allows too:

* objects that name their properties have no others, unless the schema says what others it wants: a model that may go
  on for ever sometimes does. A schema that puts conditions together (`allOf`, a `$ref` beside other keywords) is left
  open, since a closed part would forbid what another part wants.
* a `format` that is not known here is an annotation, as the specification has it; so is what changes nothing.
* a bound that the library cannot hold is drawn in to the nearest that it can; see `numbers.py`.
* `required: true` in a property, as draft 3 has it and people write it still, is a name in its object's `required`.
* `x-guidance`, by which a schema could switch off its own checks, is taken out.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any
from urllib.parse import unquote

from engine.grammar.numbers import INWARDS, bound, check_exact
from protocol.errors import InvalidRequest

if TYPE_CHECKING:
    from collections.abc import Iterator

MAX_DEPTH = 64
FORMATS = frozenset(
    ("date-time", "time", "date", "duration", "email", "hostname", "ipv4", "ipv6", "uuid", "uri")
)
IN_PLACE = frozenset(
    ("allOf", "anyOf", "oneOf", "not", "if", "then", "else", "dependentSchemas", "$ref")
)
"""Keywords whose schemas speak of the same value as their neighbours."""
ANNOTATIONS = frozenset(
    [
        "$schema",
        "$id",
        "id",
        "$comment",
        "$defs",
        "definitions",
        "$anchor",
        "title",
        "description",
        "default",
        "examples",
        "deprecated",
        "readOnly",
        "writeOnly",
        "nullable",
        "discriminator",
    ]
)
OF_DRAFT_3 = frozenset(("divisibleBy", "disallow", "extends"))
"""Keywords that no later draft has."""
_MAPS = ("properties", "patternProperties", "$defs", "definitions", "dependentSchemas")
_DEFINITIONS = frozenset(("$defs", "definitions"))
_LISTS = ("allOf", "anyOf", "oneOf", "prefixItems", "items")
_SINGLE = frozenset(
    [
        "items",
        "additionalItems",
        "additionalProperties",
        "contains",
        "propertyNames",
        "not",
        "if",
        "then",
        "else",
        "unevaluatedProperties",
        "unevaluatedItems",
    ]
)
Schema = dict[str, Any]


def prepared(schema: object) -> Schema | bool:
    """The schema to compile. Raises InvalidRequest for what is none, or too deep."""
    if not isinstance(schema, dict | bool):
        raise InvalidRequest("a JSON schema must be an object or a boolean")
    _check_depth(schema)
    if isinstance(schema, bool):
        return schema
    _check_circles(schema)
    closes = all(_stands_alone(part) for part in _parts(schema))
    return _changed(schema, closes=closes)


def _check_depth(schema: object) -> None:
    level = [schema]
    for _ in range(MAX_DEPTH):
        inner = [node for node in level if isinstance(node, dict | list)]
        if not inner:
            return
        level = [v for node in inner for v in (node.values() if isinstance(node, dict) else node)]
    raise InvalidRequest(f"the schema is nested more than {MAX_DEPTH} levels deep")


def _check_circles(schema: Schema) -> None:
    """A schema that speaks of a value by way of itself, and of the same value, says nothing: no validator comes to an end."""
    is_done: dict[int, bool] = {}
    document = _Document(schema)
    parts, met = [schema], {id(schema)}
    for part in parts:
        others = [inner for keyword, _, inner in _subschemas(part) if keyword not in _DEFINITIONS]
        for other in (*others, *_of_the_same_value(document, part)):
            if id(other) not in met:
                met.add(id(other))
                parts.append(other)
        _follow(document, part, is_done)


def _follow(document: _Document, first: Schema, is_done: dict[int, bool]) -> None:
    """Every part that speaks of the value of the first one, in depth; one that is under way again is a circle."""
    way = [(first, _of_the_same_value(document, first))] if id(first) not in is_done else []
    while way:
        part, others = way[-1]
        is_done[id(part)] = False
        other = next(others, None)
        if other is None:
            is_done[id(part)] = True
            way.pop()
        elif id(other) not in is_done:
            way.append((other, _of_the_same_value(document, other)))
        elif not is_done[id(other)]:
            reference = next(p["$ref"] for p, _ in reversed(way) if "$ref" in p)
            told = f"the schema's $ref {reference!r} comes back to itself for the same value"
            raise InvalidRequest(told)


def _of_the_same_value(document: _Document, part: Schema) -> Iterator[Schema]:
    """What a part refers to, and what it puts together."""
    if isinstance(reference := part.get("$ref"), str):
        found = document.part(reference)
        if isinstance(found, dict):
            yield found
    yield from (inner for keyword, _, inner in _subschemas(part) if keyword in IN_PLACE)


class _Document:
    """A schema as what its own references are looked up in."""

    def __init__(self, schema: Schema) -> None:
        self._root = schema
        self._places = {"", _identifier(schema).removesuffix("#")}
        self._anchored: dict[str, Schema | None] = {}
        for part in _parts(schema):
            for anchor in _anchors(part):
                self._anchored[anchor] = None if anchor in self._anchored else part

    def part(self, reference: str) -> object:
        """A part of this document by its path or its anchor; None for any other, and where two have one anchor."""
        place, _, fragment = reference.partition("#")
        if place not in self._places:
            return None
        name = unquote(fragment)
        if name and not name.startswith("/"):
            return self._anchored.get(name)
        found: object = self._root
        for step in name.split("/")[1:]:
            found = _inside(found, step.replace("~1", "/").replace("~0", "~"))
        return found


def _inside(node: object, name: str) -> object:
    """What a node has by this name, or at this place of a list."""
    if isinstance(node, dict):
        return node.get(name)
    is_place = isinstance(node, list) and name.isdecimal() and int(name) < len(node)
    return node[int(name)] if is_place else None  # type: ignore[index]


def _identifier(schema: Schema) -> str:
    named = schema.get("$id", schema.get("id"))
    return named if isinstance(named, str) else ""


def _anchors(schema: Schema) -> list[str]:
    """Names of a part; older drafts wrote them as its `$id`, or `id`."""
    named = _identifier(schema)
    old = [named[1:]] if named.startswith("#") else []
    return [*old, anchor] if isinstance(anchor := schema.get("$anchor"), str) else old


def _parts(schema: Schema) -> Iterator[Schema]:
    """The schema and every schema in it."""
    yield schema
    for _, _, part in _subschemas(schema):
        yield from _parts(part)


def _subschemas(schema: Schema) -> Iterator[tuple[str, str | int | None, Schema]]:
    """(keyword, place in it, schema) of those directly in this one."""
    for keyword, value in schema.items():
        if keyword in _MAPS and isinstance(value, dict):
            yield from ((keyword, name, part) for name, part in value.items() if _is(part))
        elif keyword in _LISTS and isinstance(value, list):
            yield from ((keyword, place, part) for place, part in enumerate(value) if _is(part))
        elif keyword in _SINGLE and _is(value):
            yield keyword, None, value


def _is(value: object) -> bool:
    return isinstance(value, dict)


def _stands_alone(schema: Schema) -> bool:
    """Whether no two keywords here speak of one object's properties."""
    in_place = [keyword for keyword in schema if keyword in IN_PLACE]
    if not in_place:
        return True
    others = schema.keys() - ANNOTATIONS - {in_place[0], "type"}
    return not others and in_place[0] in ("anyOf", "oneOf", "$ref")


def _changed(schema: Schema, *, closes: bool) -> Schema:
    _check_known(schema)
    schema = _requiring(schema)
    kept = ((name, value) for name, value in schema.items() if not _is_idle(name, value))
    changed: Schema = {name: _held(schema, name, value) for name, value in kept}
    for keyword, place, part in _subschemas(schema):
        new = _changed(part, closes=closes)
        if place is None:
            changed[keyword] = new
        else:
            if changed[keyword] is schema[keyword]:
                changed[keyword] = schema[keyword].copy()
            changed[keyword][place] = new
    if closes and _names_all(schema):
        changed["additionalProperties"] = False
    return changed


def _check_known(schema: Schema) -> None:
    """Raise InvalidRequest for what the library would pass over, though it is meant to say something."""
    if found := sorted(schema.keys() & OF_DRAFT_3):
        raise InvalidRequest("unsupported keywords in the schema: " + ", ".join(found))
    if schema.get("required") is True:
        told = "unsupported in the schema: required: true anywhere but directly in properties"
        raise InvalidRequest(told)


def _requiring(schema: Schema) -> Schema:
    """With the properties that say of themselves whether they are required among those that the object requires."""
    named, required = schema.get("properties"), schema.get("required", [])
    parts = named.items() if isinstance(named, dict) else ()
    said = {
        name: part["required"]
        for name, part in parts
        if _is(part) and isinstance(part.get("required"), bool)
    }
    if not said or not isinstance(named, dict) or not isinstance(required, list):
        return schema
    silent = {name: _without(named[name], "required") for name in said}
    more = [name for name in said if said[name] and name not in required]
    return schema | {"properties": named | silent, "required": [*required, *more]}


def _without(schema: Schema, keyword: str) -> Schema:
    return {name: value for name, value in schema.items() if name != keyword}


def _names_all(schema: Schema) -> bool:
    """Whether no property is wanted that `properties` does not name."""
    named, required = schema.get("properties"), schema.get("required", [])
    is_open = bool(schema.keys() & _OPENING) or not isinstance(required, list)
    return isinstance(named, dict) and not is_open and all(name in named for name in required)


_OPENING = {"additionalProperties", "patternProperties", "unevaluatedProperties"}


def _held(schema: Schema, name: str, value: object) -> object:
    """The value of a keyword, its numbers as the library can hold them."""
    if name in ("const", "enum"):
        check_exact(name, value)
    return bound(name, value, schema.get("type")) if name in INWARDS else value


def _is_idle(name: str, value: object) -> bool:
    """Whether a keyword changes nothing, or must not."""
    if name == "format":
        if not isinstance(value, str):
            raise InvalidRequest("format must be a string in the schema")
        return value not in FORMATS
    return name == "x-guidance" or (name == "uniqueItems" and value is False)
