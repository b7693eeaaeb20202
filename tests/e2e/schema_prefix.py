"""Whether a text may become an instance of a JSON schema. Owns a reader of JSON that was cut off, and what it may still be;
knows nothing of grammars, so that it can judge them.

    text ─► Cut, Member, values ─► what is complete is validated, what is not may still become something

It says no only where no continuation is an instance: keywords that it does not know restrict nothing.
"""

from __future__ import annotations

import json
import re
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import regex

if TYPE_CHECKING:
    from collections.abc import Iterator

    from jsonschema.protocols import Validator

SPACE = re.compile(r"[ \t\n\r]*")
NUMBER = re.compile(r"-?(?:0|[1-9]\d*)(?:\.\d+)?(?:[eE][+-]?\d+)?")
BEGUN_NUMBER = re.compile(r"-?(?:(?:0|[1-9]\d*)(?:\.\d*)?(?:(?<=\d)[eE][+-]?\d*)?)?\Z")
PLAIN = re.compile(r'[^"\\\x00-\x1f]*')
ESCAPE = re.compile(r'\\(?:["\\/bfnrt]|u[0-9a-fA-F]{4})')
BEGUN_ESCAPE = re.compile(r"\\(?:u[0-9a-fA-F]{0,3})?\Z")
WORDS: dict[str, Any] = {"true": True, "false": False, "null": None}


class NoJson(Exception):
    """No continuation of the text is JSON."""


@dataclass(frozen=True, slots=True)
class Nothing:
    """A value that has not begun."""


@dataclass(frozen=True, slots=True)
class CutString:
    """What stands behind an opening quotation mark, as far as it is certain."""

    text: str


@dataclass(frozen=True, slots=True)
class CutNumber:
    """Digits that more digits may follow."""

    text: str


@dataclass(frozen=True, slots=True)
class CutWord:
    """The beginning of true, false or null."""

    text: str


@dataclass(frozen=True, slots=True)
class CutArray:
    """Items that are complete, and the one that is not."""

    items: list[Any] = field(default_factory=list)
    last: Any = None
    """A cut value, or None where the next item need not come."""


@dataclass(frozen=True, slots=True)
class CutObject:
    """Members that are complete, the beginning of a name, or the name whose value is cut."""

    members: dict[str, Any] = field(default_factory=dict)
    begun_name: str | None = None
    name: str | None = None
    last: Any = None


CUT = (Nothing, CutString, CutNumber, CutWord, CutArray, CutObject)


class Reader:
    """Of one text, from its beginning. `value` is called once."""

    def __init__(self, text: str) -> None:
        self._text = text
        self._at = 0

    def document(self) -> Any:
        """A value, or a cut one. Raises NoJson."""
        value = self.value()
        self._skip()
        if self._at < len(self._text):
            raise NoJson(f"there is more behind the value, at {self._at}")
        return value

    def value(self) -> Any:
        """A value, or a cut one at the end of the text."""
        self._skip()
        if self._at == len(self._text):
            return Nothing()
        character = self._text[self._at]
        if character == '"':
            return self._string()
        if character in "{[":
            self._at += 1
            return self._object() if character == "{" else self._array()
        if character.isalpha():
            return self._word()
        return self._number()

    def _skip(self) -> None:
        found = SPACE.match(self._text, self._at)
        assert found is not None, "it matches anything"
        self._at = found.end()

    def _next(self, *allowed: str) -> str | None:
        """The next mark, None at the end of the text."""
        self._skip()
        if self._at == len(self._text):
            return None
        character = self._text[self._at]
        if character not in allowed:
            raise NoJson(f"{character!r} at {self._at}, not one of {allowed}")
        self._at += 1
        return character

    def _string(self) -> str | CutString:
        start = self._at
        self._at += 1
        while True:
            plain = PLAIN.match(self._text, self._at)
            assert plain is not None, "it matches anything"
            self._at = plain.end()
            if self._at == len(self._text):
                return CutString(self._said(start))
            if self._text[self._at] == '"':
                self._at += 1
                return str(json.loads(self._text[start : self._at]))
            if escape := ESCAPE.match(self._text, self._at):
                self._at = escape.end()
            elif BEGUN_ESCAPE.match(self._text, self._at):
                said = self._said(start)
                self._at = len(self._text)
                return CutString(said)
            else:
                raise NoJson(f"no string, at {self._at}")

    def _said(self, start: int) -> str:
        """Half a surrogate pair at the end may become another character."""
        text = str(json.loads(self._text[start : self._at] + '"'))
        return text[:-1] if text and 0xD800 <= ord(text[-1]) < 0xDC00 else text

    def _word(self) -> Any:
        for word, value in WORDS.items():
            if self._text.startswith(word, self._at):
                self._at += len(word)
                return value
        rest = self._text[self._at :]
        if any(word.startswith(rest) for word in WORDS):
            self._at = len(self._text)
            return CutWord(rest)
        raise NoJson(f"no word, at {self._at}")

    def _number(self) -> Any:
        if BEGUN_NUMBER.match(self._text, self._at):
            rest = self._text[self._at :]
            self._at = len(self._text)
            return CutNumber(rest)
        found = NUMBER.match(self._text, self._at)
        if found is None:
            raise NoJson(f"no value, at {self._at}")
        self._at = found.end()
        return json.loads(found[0])

    def _array(self) -> Any:
        items: list[Any] = []
        self._skip()
        if self._text.startswith("]", self._at):
            self._at += 1
            return items
        while True:
            value = self.value()
            if isinstance(value, CUT):
                return CutArray(items, None if isinstance(value, Nothing) and not items else value)
            items.append(value)
            mark = self._next(",", "]")
            if mark is None:
                return CutArray(items)
            if mark == "]":
                return items

    def _object(self) -> Any:
        members: dict[str, Any] = {}
        mark = self._next('"', "}")
        while mark == '"':
            self._at -= 1
            name = self._string()
            if isinstance(name, CutString):
                return CutObject(members, begun_name=name.text)
            if self._next(":") is None:
                return CutObject(members, name=name, last=Nothing())
            value = self.value()
            if isinstance(value, CUT):
                return CutObject(members, name=name, last=value)
            members[name] = value
            mark = self._next(",", "}")
            if mark == ",":
                mark = self._next('"')
                if mark is None:
                    return CutObject(members, begun_name="")
        return members if mark == "}" else CutObject(members)


def reason_against(validator: Validator, text: str) -> str:
    """Why no continuation of a text is valid, "" where one may be; `validator` is of the whole schema."""
    try:
        value = Reader(text).document()
    except NoJson as error:
        return str(error)
    if MayBe(validator).become(validator.schema, value):
        return ""
    return f"no continuation is valid: {value!r}"


class MayBe:
    """What cut values may become under the parts of one schema."""

    def __init__(self, validator: Validator) -> None:
        self._validator = validator
        self._depth = 0

    def become(self, schema: Any, value: Any) -> bool:
        """Whether some continuation may be valid."""
        if not isinstance(value, CUT):
            return bool(self._validator.evolve(schema=schema).is_valid(value))
        if isinstance(schema, bool) or isinstance(value, Nothing):
            return schema is not False
        self._depth += 1
        try:
            return self._depth > 100 or all(self._rules(schema, value))
        finally:
            self._depth -= 1

    def _rules(self, schema: dict[str, Any], value: Any) -> Iterator[bool]:
        if "$ref" in schema:
            yield self.become(self._referenced(schema["$ref"]), value)
        yield all(self.become(part, value) for part in schema.get("allOf", ()))
        for keyword in ("anyOf", "oneOf"):
            if keyword in schema:
                yield any(self.become(part, value) for part in schema[keyword])
        if "enum" in schema:
            yield any(begins(value, whole) for whole in schema["enum"])
        if "const" in schema:
            yield begins(value, schema["const"])
        if "type" in schema:
            kinds = schema["type"] if isinstance(schema["type"], list) else [schema["type"]]
            yield any(_has_kind(value, kind) for kind in kinds)
        if isinstance(value, CutString):
            yield from _string_rules(schema, value.text)
        elif isinstance(value, CutArray):
            yield from self._array_rules(schema, value)
        elif isinstance(value, CutObject):
            yield from self._object_rules(schema, value)

    def _referenced(self, reference: str) -> Any:
        """A part of the same document; of others nothing is known."""
        found: Any = self._validator.schema
        if not reference.startswith("#"):
            return True
        for name in filter(None, reference[1:].split("/")):
            step = name.replace("~1", "/").replace("~0", "~")
            if isinstance(found, list) and step.isdigit() and int(step) < len(found):
                found = found[int(step)]
            elif isinstance(found, dict) and step in found:
                found = found[step]
            else:
                return True
        return found

    def _array_rules(self, schema: dict[str, Any], value: CutArray) -> Iterator[bool]:
        items = [*value.items, *([] if value.last is None else [value.last])]
        yield len(items) <= schema.get("maxItems", len(items))
        rest = schema.get("items", True)
        first = schema.get("prefixItems", rest if isinstance(rest, list) else [])
        if isinstance(rest, list):
            rest = schema.get("additionalItems", True)
        for index, item in enumerate(items):
            yield self.become(first[index] if index < len(first) else rest, item)

    def _object_rules(self, schema: dict[str, Any], value: CutObject) -> Iterator[bool]:
        members = value.members | ({} if value.name is None else {value.name: value.last})
        properties, patterns = schema.get("properties", {}), schema.get("patternProperties", {})
        rest = schema.get("additionalProperties", True)
        yield len(members) + (value.begun_name is not None) <= schema.get("maxProperties", 1 << 60)
        for name, member in members.items():
            known = [properties[name]] if name in properties else []
            known += [part for pattern, part in patterns.items() if regex.search(pattern, name)]
            yield all(self.become(part, member) for part in known or [rest])
        if value.begun_name is not None and rest is False and not patterns:
            yield any(name.startswith(value.begun_name) for name in properties)


def _string_rules(schema: dict[str, Any], text: str) -> Iterator[bool]:
    yield len(text) <= schema.get("maxLength", len(text))
    if "pattern" in schema:
        try:
            yield regex.search(schema["pattern"], text, partial=True) is not None
        except regex.error:  # ECMA's expressions are not all Python's
            yield True


def _has_kind(value: Any, kind: str) -> bool:
    match value:
        case CutString():
            return kind == "string"
        case CutNumber():
            return kind in ("integer", "number")
        case CutArray():
            return kind == "array"
        case CutObject():
            return kind == "object"
        case _:
            return kind == ("null" if "null".startswith(value.text) else "boolean")


def begins(value: Any, whole: Any) -> bool:
    """Whether a value may become another."""
    match value:
        case Nothing():
            may = True
        case CutString(text):
            may = isinstance(whole, str) and whole.startswith(text)
        case CutNumber():
            may = isinstance(whole, int | float) and not isinstance(whole, bool)
        case CutWord(text):
            may = json.dumps(whole).startswith(text)
        case CutArray():
            may = isinstance(whole, list) and _begins_array(value, whole)
        case CutObject():
            may = isinstance(whole, dict) and _begins_object(value, whole)
        case _:
            may = bool(value == whole)
    return may


def _begins_array(value: CutArray, whole: list[Any]) -> bool:
    count = len(value.items)
    if value.items != whole[:count]:
        return False
    return value.last is None or (count < len(whole) and begins(value.last, whole[count]))


def _begins_object(value: CutObject, whole: dict[str, Any]) -> bool:
    if any(name not in whole or whole[name] != value.members[name] for name in value.members):
        return False
    if value.name is not None:
        return value.name in whole and begins(value.last, whole[value.name])
    begun = value.begun_name
    return begun is None or any(name.startswith(begun) for name in whole)
