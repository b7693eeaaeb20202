"""What an answer must look like. Owns the wire form of a grammar, as text that every worker makes the same of.

    kind            text
    json_object     empty: any JSON object
    json_schema     a JSON Schema, as JSON
    regex           a regular expression that the whole answer matches
    choice          a JSON array of strings, one of which the answer is
    grammar         EBNF with `::=` (GBNF), or Lark; the start is `root` or `start`
    structural_tag  JSON of structural tags: free text, and grammars between tags

A constraint travels with its request. Whoever continues an answer, on whatever worker, makes a matcher of the
text and gives it the tokens that were emitted already. The key is made of the content: nobody has to believe it.
"""

from __future__ import annotations

import enum
import hashlib
from typing import TYPE_CHECKING, Any

import msgspec

if TYPE_CHECKING:
    from collections.abc import Sequence

MAX_CONSTRAINT_BYTES = 64 * 1024
"""Ceiling of a constraint's text: it is in both orders of every attempt."""


class ConstraintKind(enum.StrEnum):
    """How a constraint's text is to be read."""

    JSON_OBJECT = "json_object"
    JSON_SCHEMA = "json_schema"
    REGEX = "regex"
    CHOICE = "choice"
    GRAMMAR = "grammar"
    STRUCTURAL_TAG = "structural_tag"


class Constraint(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What the tokens of one answer must spell, up to its end."""

    kind: ConstraintKind
    text: str = ""

    @property
    def key(self) -> str:
        """Equal for equal constraints, in every process."""
        content = f"{self.kind}\0{self.text}".encode("utf-8", "surrogatepass")
        return hashlib.blake2b(content, digest_size=16).hexdigest()


def json_schema(schema: object) -> Constraint:
    """JSON that a schema allows; properties are written in the schema's order."""
    return Constraint(kind=ConstraintKind.JSON_SCHEMA, text=_json(schema))


class Tag(msgspec.Struct, frozen=True, kw_only=True):
    """`begin`, then JSON that `schema` allows, then `end`."""

    begin: str
    schema: dict[str, Any] | bool
    end: str


def triggered_tags(
    tags: Sequence[Tag],
    triggers: Sequence[str],
    *,
    at_least_one: bool = False,
    stop_after_first: bool = False,
) -> Constraint:
    """Free text until it spells a trigger; from there on it must become one of the tags that begin with it.

    After a tag's end the text is free again, unless `stop_after_first`. With `at_least_one` the answer
    begins with a tag. Each tag begins with exactly one of the triggers.
    """
    spelled = [
        {
            "type": "tag",
            "begin": tag.begin,
            "content": {"type": "json_schema", "json_schema": tag.schema},
            "end": tag.end,
        }
        for tag in tags
    ]
    layout = {
        "type": "triggered_tags",
        "triggers": list(triggers),
        "tags": spelled,
        "at_least_one": at_least_one,
        "stop_after_first": stop_after_first,
    }
    text = _json({"type": "structural_tag", "format": layout})
    return Constraint(kind=ConstraintKind.STRUCTURAL_TAG, text=text)


def _json(value: object) -> str:
    return msgspec.json.encode(value).decode()
