"""Answers put together from pieces, as clients and the coordinator write them. Owns the layouts of a structural tag.

    const_string · regex · json_schema · grammar · any_text          what is written
    sequence · or · repeat · tag                                     how pieces follow each other
    triggered_tags · tags_with_separator                             calls in free text, calls one after another
    text_until · lazy                                                free text up to where something begins, or that alone

The names are those of xgrammar's structural tags, `repeat`, `lazy` and `text_until` apart. `structure_lark.py` spells them.
"""

from __future__ import annotations

from typing import Any

import msgspec

from protocol.errors import InvalidRequest

MAX_REPEATS = 1 << 12


class Piece(msgspec.Struct, forbid_unknown_fields=True, tag_field="type"):
    """Base of all layouts."""


class ConstString(Piece, tag="const_string"):
    """Exactly this; a control token's name in it is that token."""

    value: str


class Regex(Piece, tag="regex"):
    """What the whole pattern matches."""

    pattern: str


class JsonSchema(Piece, tag="json_schema"):
    """JSON that the schema allows."""

    json_schema: dict[str, Any] | bool


class Grammar(Piece, tag="grammar"):
    """What a grammar of its own allows, in Lark or GBNF."""

    grammar: str


class AnyText(Piece, tag="any_text"):
    """Any text, and control tokens but for those named in `without`."""

    without: list[str] = []


class TextUntil(Piece, tag="text_until"):
    """Any text, up to and with the first match of `pattern`, or the first control token `control`."""

    pattern: str = ""
    control: str = ""


class Lazy(Piece, tag="lazy"):
    """The shortest that the pattern matches: as soon as it is there, it can be nothing else."""

    pattern: str


class Sequence(Piece, tag="sequence"):
    """One after the other."""

    elements: list[Layout]


class Or(Piece, tag="or"):
    """One of them."""

    elements: list[Layout]


class Repeat(Piece, tag="repeat"):
    """`content` from `min` to `max` times, without a `max` any number of times."""

    content: Layout
    min: int = 0
    max: int | None = None


class Tag(Piece, tag="tag"):
    """`content` between two texts."""

    begin: str
    content: Layout
    end: str


class TriggeredTags(Piece, tag="triggered_tags"):
    """Free text, and from a trigger on one of the tags that begin with it; see protocol.constraints.triggered_tags."""

    triggers: list[str]
    tags: list[Tag]
    at_least_one: bool = False
    stop_after_first: bool = False


class TagsWithSeparator(Piece, tag="tags_with_separator"):
    """Tags and nothing else, with a text between them."""

    tags: list[Tag]
    separator: str
    at_least_one: bool = False
    stop_after_first: bool = False


Leaf = ConstString | Regex | JsonSchema | Grammar | AnyText | TextUntil | Lazy
Layout = Leaf | Sequence | Or | Repeat | Tag | TriggeredTags | TagsWithSeparator


class _LegacyTag(msgspec.Struct, forbid_unknown_fields=True):
    begin: str
    schema: dict[str, Any] | bool
    end: str


class _Legacy(msgspec.Struct, forbid_unknown_fields=True):
    """How vLLM's clients wrote it before."""

    structures: list[_LegacyTag]
    triggers: list[str]
    type: str = "structural_tag"


class _Document(msgspec.Struct):
    format: Layout
    type: str = "structural_tag"


KNOWN = tuple(str(kind.__struct_config__.tag) for kind in Layout.__args__)


def layout_of(text: str) -> Layout:
    """The layout of a structural tag. Raises InvalidRequest for another one."""
    try:
        return msgspec.json.decode(text, type=_Document).format
    except msgspec.MsgspecError as error:
        told = str(error)
    try:
        return _modern(msgspec.json.decode(text, type=_Legacy))
    except msgspec.MsgspecError as error:
        known = ", ".join(KNOWN)
        message = f"a structural tag has a format of one of the types {known}: {told}"
        raise InvalidRequest(message) from error


def _modern(legacy: _Legacy) -> TriggeredTags:
    tags = [Tag(tag.begin, JsonSchema(tag.schema), tag.end) for tag in legacy.structures]
    return TriggeredTags(triggers=legacy.triggers, tags=tags)
