"""Layouts of structural tags as one grammar. Owns how each is spelled in Lark.

A control token in a text is that token and no text that spells it: the tokenizer would not make it of text either.
Free text ends where a lazy lexeme says so: as soon as it can, so what begins there cannot be passed over as text.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, assert_never

from engine.grammar import structures as layouts
from engine.grammar.llguidance_grammars import (
    grammar_files,
    json_rule,
    own_grammar,
    regex_rule,
    start,
    text_term,
)
from protocol.errors import InvalidRequest

if TYPE_CHECKING:
    from collections.abc import Collection, Iterable, Mapping, Sequence

    from engine.grammar.structures import (
        Layout,
        Leaf,
        Tag,
        TagsWithSeparator,
        TextUntil,
        TriggeredTags,
    )

NOTHING = '""'
TEXT = "TEXT: /(.|\\n)+/"


def structure_lark(
    layout: Layout, control_ids: Mapping[str, int], ends: Collection[int] = ()
) -> str:
    """The grammar. Raises InvalidRequest for what its parts cannot have. `ends` are control tokens that end an answer."""
    speller = _Speller(control_ids, ends)
    rule = speller.rule(layout)
    return grammar_files(start(rule) + "\n".join([*speller.rules, TEXT, ""]), speller.own)


class _Speller:
    """Collects rules; every layout becomes a term. Control tokens are known by their ids."""

    def __init__(self, control_ids: Mapping[str, int], ends: Collection[int]) -> None:
        self.rules: list[str] = []
        self.own: dict[str, str] = {}
        self._control_ids = control_ids
        self._free_ids = set(control_ids.values()) - set(ends)
        names = sorted((name for name in control_ids if name), key=len, reverse=True)
        self._names = re.compile("(" + "|".join(map(re.escape, names)) + ")") if names else None

    def _named(self, body: str, kind: str = "part", mark: str = "") -> str:
        name = f"{kind}_{len(self.rules)}"
        self.rules.append(f"{name}{mark}: {body}")
        return name

    def rule(self, layout: Layout) -> str:  # noqa: PLR0911 - one for each layout
        """The term that stands for a layout."""
        match layout:
            case layouts.Sequence():
                return self._in_order(self.rule(element) for element in layout.elements)
            case layouts.Or():
                return self._one_of([self.rule(element) for element in layout.elements])
            case layouts.Repeat():
                return self._repeated(self.rule(layout.content), layout.min, layout.max)
            case layouts.Tag():
                return self._tag(layout)
            case layouts.TriggeredTags():
                return self._triggered(layout)
            case layouts.TagsWithSeparator():
                return self._separated(layout)
            case _:
                return self._leaf(layout)

    def _leaf(self, layout: Leaf) -> str:  # noqa: PLR0911 - one for each layout
        match layout:
            case layouts.ConstString():
                return self._text(layout.value)
            case layouts.Regex():
                return self._named(regex_rule(layout.pattern))
            case layouts.JsonSchema():
                return self._named(json_rule(layout.json_schema))
            case layouts.Grammar():
                name = f"own_{len(self.own)}"
                self.own[name] = own_grammar(layout.grammar)
                return f"@{name}"
            case layouts.AnyText():
                return self._free(layout.without)
            case layouts.TextUntil():
                return self._until(layout)
            case layouts.Lazy():
                return self._named(regex_rule(layout.pattern), "opening", "[lazy]")
        assert_never(layout)

    def _in_order(self, terms: Iterable[str]) -> str:
        return self._named(" ".join(terms) or NOTHING)

    def _one_of(self, terms: Sequence[str]) -> str:
        if not terms:
            raise InvalidRequest("an `or` needs elements")
        return self._named(" | ".join(terms))

    def _repeated(self, term: str, least: int, most: int | None) -> str:
        if least < 0 or (most is not None and not least <= most <= layouts.MAX_REPEATS):
            raise InvalidRequest("a repeat needs 0 <= min <= max")
        if (least, most) == (0, 1):
            return self._named(f"({term})?")
        if (least, most) == (0, None):
            return self._named(f"({term})*")
        return self._named(f"({term}){{{least},{'' if most is None else most}}}")

    def _text(self, text: str) -> str:
        pieces = self._names.split(text) if self._names else [text]
        terms = [
            f"<[{self._control_ids[piece]}]>" if piece in self._control_ids else text_term(piece)
            for piece in pieces
            if piece
        ]
        return " ".join(terms) or NOTHING

    def _controls(self, without: Collection[str] = ()) -> str:
        """All control tokens that may stand in free text, as one term; "" for none."""
        ids = self._free_ids - {self._control_ids.get(name, -1) for name in without}
        return f"<[{_ranges(sorted(ids))}]>" if ids else ""

    def _free(self, without: Collection[str]) -> str:
        controls = self._controls(without)
        return self._named(f"(TEXT? {controls})* TEXT?" if controls else "TEXT?")

    def _until(self, layout: TextUntil) -> str:
        if bool(layout.pattern) == bool(layout.control):
            raise InvalidRequest("text_until needs either a pattern or a control token")
        if layout.control:
            if layout.control not in self._control_ids:
                raise InvalidRequest(f"{layout.control!r} is no control token of this model")
            return self._in_order((self._free([layout.control]), self._text(layout.control)))
        lexeme = self._named(f"TEXT? {regex_rule(layout.pattern)}", "opening", "[lazy]")
        controls = self._controls()
        return self._in_order((f"(TEXT? {controls})*", lexeme)) if controls else lexeme

    def _tag(self, tag: Tag) -> str:
        return self._in_order((self._text(tag.begin), self.rule(tag.content), self._text(tag.end)))

    def _separated(self, layout: TagsWithSeparator) -> str:
        if not layout.tags:
            raise InvalidRequest("a structural tag needs tags")
        tag = self._one_of([self._tag(tag) for tag in layout.tags])
        more = "" if layout.stop_after_first else f" ({self._text(layout.separator)} {tag})*"
        body = f"{tag}{more}"
        return self._named(body if layout.at_least_one else f"({body})?")

    def _triggered(self, layout: TriggeredTags) -> str:
        if not layout.tags or not all(layout.triggers):
            raise InvalidRequest("a structural tag needs tags, and triggers that are not empty")
        contents = [self.rule(tag.content) for tag in layout.tags]
        groups: dict[str, list[int]] = {}
        for place, tag in enumerate(layout.tags):
            groups.setdefault(_trigger(tag.begin, layout.triggers), []).append(place)
        controls = [trigger for trigger in groups if trigger in self._control_ids]
        called = self._one_of(
            [
                self._in_order(
                    (self._up_to(trigger, controls), self._rests(layout, places, contents, trigger))
                )
                for trigger, places in groups.items()
            ]
        )
        free = self._free(controls)
        if not layout.at_least_one:
            return self._named(
                f"{called} | {free}" if layout.stop_after_first else f"{called}* {free}"
            )
        direct = self._rests(layout, range(len(layout.tags)), contents, "")
        return direct if layout.stop_after_first else self._named(f"{direct} {called}* {free}")

    def _up_to(self, trigger: str, controls: Collection[str]) -> str:
        free = self._controls(controls)
        if trigger in self._control_ids:
            return self._in_order((self._free(controls), self._text(trigger)))
        lexeme = self._named(f"TEXT? {text_term(trigger)}", "opening", "[lazy]")
        return self._in_order((f"(TEXT? {free})*", lexeme)) if free else lexeme

    def _rests(
        self, layout: TriggeredTags, places: Iterable[int], contents: Sequence[str], trigger: str
    ) -> str:
        """The tags behind their trigger."""
        return self._one_of(
            [
                self._in_order(
                    (
                        self._text(layout.tags[place].begin[len(trigger) :]),
                        contents[place],
                        self._text(layout.tags[place].end),
                    )
                )
                for place in places
            ]
        )


def _ranges(ids: Sequence[int]) -> str:
    """`1-3,7` of sorted numbers."""
    runs: list[list[int]] = []
    for number in ids:
        if runs and number == runs[-1][-1] + 1:
            runs[-1][1:] = [number]
        else:
            runs.append([number])
    return ",".join("-".join(map(str, run)) for run in runs)


def _trigger(begin: str, triggers: list[str]) -> str:
    found = [trigger for trigger in triggers if begin.startswith(trigger)]
    if len(found) != 1:
        told = f"the tag {begin!r} must begin with exactly one of the triggers"
        raise InvalidRequest(told)
    return found[0]
