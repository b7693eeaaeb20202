"""Free text with grammars between tags, as one grammar. Owns how triggered tags are spelled in Lark.

    start: call* TEXT                         call: TEXT up to a trigger, the rest of a tag's begin, JSON, its end

A control token in a tag is that token and no text that spells it: the tokenizer would not make it of text either.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any

import msgspec

from engine.grammar.llguidance_grammars import json_rule, start, text_term
from protocol.errors import InvalidRequest

if TYPE_CHECKING:
    from collections.abc import Mapping


class _Content(msgspec.Struct, forbid_unknown_fields=True):
    """What is between two tags."""

    json_schema: dict[str, Any] | bool
    type: str = "json_schema"


class _Tag(msgspec.Struct, forbid_unknown_fields=True):
    """One kind of call."""

    begin: str
    content: _Content
    end: str
    type: str = "tag"


class TriggeredTags(
    msgspec.Struct, forbid_unknown_fields=True, tag_field="type", tag="triggered_tags"
):
    """The layout as clients write it; see protocol.constraints.triggered_tags."""

    triggers: list[str]
    tags: list[_Tag]
    at_least_one: bool = False
    stop_after_first: bool = False


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
    format: TriggeredTags
    type: str = "structural_tag"


def triggered_tags_of(text: str) -> TriggeredTags:
    """The tags of a structural tag. Raises InvalidRequest for another layout."""
    try:
        return msgspec.json.decode(text, type=_Document).format
    except msgspec.MsgspecError:
        pass
    try:
        return _modern(msgspec.json.decode(text, type=_Legacy))
    except msgspec.MsgspecError as error:
        told = (
            "a structural tag must be of the layout triggered_tags, with a JSON schema in each tag"
        )
        raise InvalidRequest(told) from error


def _modern(legacy: _Legacy) -> TriggeredTags:
    tags = [_Tag(tag.begin, _Content(tag.schema), tag.end) for tag in legacy.structures]
    return TriggeredTags(triggers=legacy.triggers, tags=tags)


def tags_lark(layout: TriggeredTags, control_ids: Mapping[str, int]) -> str:
    """The grammar. Raises InvalidRequest for tags without a trigger, and what their schemas cannot have."""
    if not layout.tags or not all(layout.triggers):
        raise InvalidRequest("a structural tag needs tags, and triggers that are not empty")
    spell = _Speller(control_ids)
    rules = [
        f"content_{place}: {json_rule(tag.content.json_schema)}"
        for place, tag in enumerate(layout.tags)
    ]
    rules += [
        f"tag_{place}: {spell.term(tag.begin)} content_{place} {spell.term(tag.end)}"
        for place, tag in enumerate(layout.tags)
    ]
    groups: dict[str, list[int]] = {}
    for place, tag in enumerate(layout.tags):
        groups.setdefault(_trigger(tag.begin, layout.triggers), []).append(place)
    for number, (trigger, places) in enumerate(groups.items()):
        rests = [
            f"{spell.term(layout.tags[place].begin[len(trigger) :])} content_{place} {spell.term(layout.tags[place].end)}"
            for place in places
        ]
        rules += [f"call_{number}: {_opening(number, trigger, spell)} ({' | '.join(rests)})"]
        if trigger not in control_ids:
            rules += [f"opening_{number}[lazy]: TEXT {spell.term(trigger)}"]
    called = " | ".join(f"call_{number}" for number in range(len(groups)))
    direct = " | ".join(f"tag_{place}" for place in range(len(layout.tags)))
    return start(_beginning(layout, called, direct)) + "\n".join([*rules, "TEXT: /(.|\\n)*/", ""])


def _beginning(layout: TriggeredTags, called: str, direct: str) -> str:
    if layout.stop_after_first:
        return direct if layout.at_least_one else f"{called} | TEXT"
    return f"({direct}) ({called})* TEXT" if layout.at_least_one else f"({called})* TEXT"


def _opening(number: int, trigger: str, spell: _Speller) -> str:
    return f"TEXT {spell.term(trigger)}" if trigger in spell.control_ids else f"opening_{number}"


def _trigger(begin: str, triggers: list[str]) -> str:
    found = [trigger for trigger in triggers if begin.startswith(trigger)]
    if len(found) != 1:
        told = f"the tag {begin!r} must begin with exactly one of the triggers"
        raise InvalidRequest(told)
    return found[0]


class _Speller:
    """Text as terms of Lark, control tokens by their ids."""

    def __init__(self, control_ids: Mapping[str, int]) -> None:
        self.control_ids = control_ids
        names = sorted((name for name in control_ids if name), key=len, reverse=True)
        self._names = re.compile("(" + "|".join(map(re.escape, names)) + ")") if names else None

    def term(self, text: str) -> str:
        """ "" for no text."""
        pieces = self._names.split(text) if self._names else [text]
        return " ".join(
            f"<[{self.control_ids[piece]}]>" if piece in self.control_ids else text_term(piece)
            for piece in pieces
            if piece
        )
