"""How each family of models spells calls, as layouts of a structural tag. Owns what an answer with tools may look like; pure.

    auto       text, and from where a call begins that call: its name one of the tools', its arguments by the tool's schema
    required   calls and nothing else

A call begins where the reader of its family would see one (`call_readers.py`): a delimiter alone stays text. Where the
delimiter is a control token of the model, only that token begins a call, and no text that spells it.
"""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from protocol.errors import InvalidRequest

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Sequence

    from coordinator.edge.answers.tools import Tool

    Layout = dict[str, Any]

SPACE = r"[ \n\t]{0,9}"
DOTTED = re.compile(r"[A-Za-z_][A-Za-z0-9_.]*")
IDENTIFIER = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")
HERMES, MISTRAL, LLAMA = ("<tool_call>", "</tool_call>"), "[TOOL_CALLS]", "<|python_tag|>"
ARGS, CALL_ID = "[ARGS]", "[CALL_ID]"
NO_ARGUMENTS: Layout = {"type": "object", "properties": {}, "additionalProperties": False}
ANY_ARGUMENTS: Layout = {"type": "object"}


# ---- pieces


def text(value: str) -> Layout:
    """Exactly this."""
    return {"type": "const_string", "value": value}


def regex(pattern: str) -> Layout:
    """What the whole pattern matches."""
    return {"type": "regex", "pattern": pattern}


def schema(value: object) -> Layout:
    """JSON that it allows."""
    return {"type": "json_schema", "json_schema": value}


def in_order(*elements: Layout) -> Layout:
    """One after the other."""
    return {"type": "sequence", "elements": list(elements)}


def one_of(elements: Sequence[Layout]) -> Layout:
    """One of them."""
    return elements[0] if len(elements) == 1 else {"type": "or", "elements": list(elements)}


def repeated(content: Layout, least: int = 0, most: int | None = None) -> Layout:
    """Several times."""
    return {"type": "repeat", "content": content, "min": least, "max": most}


def until(pattern: str = "", control: str = "") -> Layout:
    """Text up to where something begins, and that."""
    return {"type": "text_until", "pattern": pattern, "control": control}


def any_text(without: Collection[str] = ()) -> Layout:
    """Whatever comes."""
    return {"type": "any_text", "without": list(without)}


# ---- what is asked


@dataclass(frozen=True, slots=True)
class Calls:
    """What may be called, by a model for which `controls` are control tokens. `arguments` has the schema of each tool."""

    tools: Sequence[Tool]
    arguments: Sequence[Layout]
    is_parallel: bool
    controls: Collection[str] = ()

    def opening(self, name: str, pattern: str) -> Layout:
        """Text up to a call's beginning: the control token and then `pattern`, or both as text."""
        if name in self.controls:
            return in_order(until(control=name), regex(SPACE + pattern))
        return until(re.escape(name) + SPACE + pattern)

    def more(self, content: Layout) -> Layout:
        """Further calls, where there may be any."""
        return repeated(content) if self.is_parallel else text("")


class Family:
    """Of one model's calls."""

    def required(self, calls: Calls) -> Layout:
        """Calls and nothing else."""
        raise NotImplementedError

    def auto(self, calls: Calls) -> Layout:
        """Text that may go over into calls."""
        raise NotImplementedError


NAME_HEAD = rf'\{{{SPACE}"name"{SPACE}:{SPACE}"'
"""How an object that calls begins, up to the name."""


def _json_rest(tool: Tool, arguments: Layout, key: str, end: str) -> Layout:
    """What comes behind `NAME_HEAD`, up to and with the call's end."""
    name = re.escape(json.dumps(tool.name, ensure_ascii=False)[1:-1])
    head = rf'{name}"{SPACE},{SPACE}"{key}"{SPACE}:{SPACE}'
    return in_order(regex(head), schema(arguments), regex(rf"{SPACE}\}}{end}"))


def _json_rests(calls: Calls, key: str, end: str = "") -> Layout:
    pairs = _pairs(calls)
    return one_of([_json_rest(tool, arguments, key, end) for tool, arguments in pairs])


class HermesFamily(Family):
    """`<tool_call>{"name": …, "arguments": {…}}</tool_call>`, anywhere and any number of times."""

    opening, closing = HERMES

    def _call(self, calls: Calls) -> Layout:
        """Behind the head."""
        return in_order(_json_rests(calls, "arguments", SPACE), text(self.closing))

    def required(self, calls: Calls) -> Layout:
        """See Family."""
        head = in_order(text(self.opening), regex(SPACE + NAME_HEAD))
        call = in_order(head, self._call(calls))
        return in_order(call, calls.more(in_order(text("\n"), call)))

    def auto(self, calls: Calls) -> Layout:
        """See Family."""
        call = in_order(calls.opening(self.opening, NAME_HEAD), self._call(calls))
        if not calls.is_parallel:
            return one_of([call, any_text([self.opening])])
        return in_order(repeated(call), any_text([self.opening]))


class MistralFamily(Family):
    """`[TOOL_CALLS][{"name": …, "arguments": {…}}, …]`, or `[TOOL_CALLS]name[ARGS]{…}` of models with that token."""

    def _objects(self, calls: Calls) -> Layout:
        """Behind the first head."""
        rest = _json_rests(calls, "arguments")
        more = calls.more(in_order(regex(rf"{SPACE},{SPACE}{NAME_HEAD}"), rest))
        return in_order(rest, more, regex(rf"{SPACE}\]"))

    def _named(self, calls: Calls) -> Layout:
        pairs = _pairs(calls)
        call_id = in_order(text(CALL_ID), regex("[A-Za-z0-9]{9}"))
        middle = [repeated(call_id, 0, 1)] if CALL_ID in calls.controls else []
        return one_of(
            [in_order(text(tool.name), *middle, text(ARGS), schema(it)) for tool, it in pairs]
        )

    def required(self, calls: Calls) -> Layout:
        """See Family."""
        if ARGS in calls.controls:
            call = in_order(text(MISTRAL), self._named(calls))
            return in_order(call, calls.more(call))
        head = in_order(text(MISTRAL), regex(rf"{SPACE}\[{SPACE}{NAME_HEAD}"))
        return in_order(head, self._objects(calls))

    def auto(self, calls: Calls) -> Layout:
        """See Family."""
        if ARGS in calls.controls:
            named, again = self._named(calls), text(MISTRAL)
            call = in_order(until(control=MISTRAL), named, calls.more(in_order(again, named)))
        else:
            head = calls.opening(MISTRAL, rf"\[{SPACE}{NAME_HEAD}")
            call = in_order(head, self._objects(calls))
        return one_of([call, any_text([MISTRAL])])


class LlamaFamily(Family):
    """`{"name": …, "parameters": {…}}` as a whole answer, several with `;` between, or after `<|python_tag|>`."""

    def _again(self, calls: Calls) -> Layout:
        rest = _json_rests(calls, "parameters")
        return calls.more(in_order(regex(rf"{SPACE};{SPACE}{NAME_HEAD}"), rest))

    def required(self, calls: Calls) -> Layout:
        """See Family."""
        rest = _json_rests(calls, "parameters")
        return in_order(regex(NAME_HEAD), rest, self._again(calls))

    def auto(self, calls: Calls) -> Layout:
        """A call begins where a tool is named whole: any object may have a name."""
        pairs = _pairs(calls)
        calling = [self._from_the_start(tool, arguments, calls) for tool, arguments in pairs]
        if LLAMA in calls.controls:
            calling.append(in_order(until(control=LLAMA), self.required(calls)))
        return one_of([*calling, any_text([LLAMA])])

    def _from_the_start(self, tool: Tool, arguments: Layout, calls: Calls) -> Layout:
        name = re.escape(json.dumps(tool.name, ensure_ascii=False)[1:-1])
        head = rf'{SPACE}{NAME_HEAD}{name}"{SPACE},{SPACE}"parameters"{SPACE}:'
        begins = {"type": "lazy", "pattern": head}
        end = regex(rf"{SPACE}\}}")
        return in_order(begins, regex(SPACE), schema(arguments), end, self._again(calls))


class PythonicFamily(Family):
    """`[f(a=1), g(b="x")]` as a whole answer; values are spelled as in JSON."""

    def _calls(self, calls: Calls) -> list[Layout]:
        return [
            in_order(text(f"{tool.name}("), _keywords(arguments), text(")"))
            for tool, arguments in _pairs(calls)
            if DOTTED.fullmatch(tool.name)
        ]

    def required(self, calls: Calls) -> Layout:
        """See Family. Raises InvalidRequest for what Python cannot name."""
        for tool, arguments in _pairs(calls):
            _check_names(tool, arguments)
        call = one_of(self._calls(calls))
        return in_order(text("["), call, calls.more(in_order(text(", "), call)), text("]"))

    def auto(self, calls: Calls) -> Layout:
        """See Family. A tool that Python cannot name is never called."""
        known = self._calls(calls)
        if not known:
            return any_text()
        again = calls.more(in_order(text(", "), one_of(known)))
        calling = [
            in_order(
                {"type": "lazy", "pattern": rf"{SPACE}\[{SPACE}{re.escape(tool.name)}\("},
                _keywords(arguments),
                text(")"),
                again,
                text("]"),
            )
            for tool, arguments in _pairs(calls)
            if DOTTED.fullmatch(tool.name)
        ]
        return one_of([*calling, any_text()])


def _pairs(calls: Calls) -> list[tuple[Tool, Layout]]:
    return list(zip(calls.tools, calls.arguments, strict=True))


def _check_names(tool: Tool, arguments: Layout) -> None:
    odd = [it for it in arguments.get("properties") or () if not IDENTIFIER.fullmatch(it)]
    if odd or not DOTTED.fullmatch(tool.name):
        told = f"this model, whose calls are Python, cannot name {odd[0] if odd else tool.name!r}"
        raise InvalidRequest(f"{tool.path}: {told}", tool.path)


def _keywords(arguments: Layout) -> Layout:
    """What is wanted in order, then what may be there; any order would be as good Python."""
    properties = arguments.get("properties")
    if not isinstance(properties, dict) or not all(map(IDENTIFIER.fullmatch, properties)):
        return _any_keywords()
    required = arguments.get("required", [])
    names = [name for name in properties if name in required]
    others = [name for name in properties if name not in required]
    words = [_keyword(name, arguments) for name in names]
    needed = [piece for word in words for piece in (text(", "), word)][1:]
    if needed:
        rest = [repeated(in_order(text(", "), _keyword(it, arguments)), 0, 1) for it in others]
        return in_order(*needed, *rest)
    return _optional([_keyword(name, arguments) for name in others])


def _optional(words: Sequence[Layout]) -> Layout:
    """None of them, or a first and some of those behind it."""
    ways = [
        in_order(word, *(repeated(in_order(text(", "), it), 0, 1) for it in words[place + 1 :]))
        for place, word in enumerate(words)
    ]
    return one_of([text(""), *ways])


def _keyword(name: str, arguments: Layout) -> Layout:
    """`name=value`; what the whole schema defines its parts may refer to."""
    shared = {it: arguments[it] for it in ("$defs", "definitions") if it in arguments}
    value = arguments["properties"][name]
    return in_order(text(f"{name}="), schema({**shared, **value} if shared else value))


def _any_keywords() -> Layout:
    word = in_order(regex(rf"{IDENTIFIER.pattern}="), schema({}))
    return repeated(in_order(word, repeated(in_order(text(", "), word))), 0, 1)


FAMILIES: dict[str, Callable[[], Family]] = {
    "hermes": HermesFamily,
    "llama3_json": LlamaFamily,
    "mistral": MistralFamily,
    "pythonic": PythonicFamily,
}
DELIMITERS = (*HERMES, MISTRAL, ARGS, CALL_ID, LLAMA)
"""What may be a control token of a model."""
