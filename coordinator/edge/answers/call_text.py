"""One call of a tool in the text of an answer. Owns when a JSON object is a call, and its arguments while they come; pure.

A call is an object that names a known tool. `{"name": "f", "arguments": {…` is known for one at once, and its
arguments pass through as they are written; any other order of keys is waited for to its end.
"""

from __future__ import annotations

import re
from enum import Enum, auto
from typing import TYPE_CHECKING, Any

import msgspec
import orjson

from coordinator.edge.answers.answer import ToolCallDelta
from protocol.ids import new_request_id

if TYPE_CHECKING:
    from collections.abc import Collection

    from coordinator.edge.answers.answer import Part

HEAD = re.compile(r'\s*\{\s*"name"\s*:\s*"([^"\\]*)"\s*,\s*"(?:arguments|parameters)"\s*:\s*(?=\{)')
BEGINNING = re.compile(r'\s*(?:\{\s*(?:"([^"\\]*)("?))?)?')
KEYS = ("name", "arguments", "parameters", "type", "id", "function")


class Verdict(Enum):
    """What is known of a text that may be a call."""

    WAITING = auto()
    CALLING = auto()
    DONE = auto()
    REFUSED = auto()


class Nesting:
    """How deep a place in JSON is; what stands between quotes does not count."""

    def __init__(self, depth: int = 0) -> None:
        self.depth = depth
        self._in_string = self._is_escaped = False

    def feed(self, character: str) -> bool:
        """Whether this character closes an object or array."""
        if self._is_escaped:
            self._is_escaped = False
        elif self._in_string:
            self._is_escaped = character == "\\"
            self._in_string = character != '"'
        elif character == '"':
            self._in_string = True
        elif character in "{[":
            self.depth += 1
        elif character in "}]":
            self.depth -= 1
            return True
        return False


def call_id() -> str:
    """A name for a call, in OpenAI's form."""
    return f"call_{new_request_id()[:24]}"


def whole_call(position: int, name: str, arguments: str) -> list[Part]:
    """A call that is known all at once."""
    return [ToolCallDelta(position, call_id(), name), ToolCallDelta(position, arguments=arguments)]


class Arguments:
    """An object of JSON, verbatim, from its first bracket to its last."""

    def __init__(self, position: int) -> None:
        self._position = position
        self._nesting = Nesting()
        self.is_done = False

    def push(self, text: str) -> tuple[list[Part], str]:
        """What of `text` belongs to it, and what comes after."""
        for index, character in enumerate(text):
            if self._nesting.feed(character) and self._nesting.depth == 0:
                self.is_done = True
                return self._told(text[: index + 1]), text[index + 1 :]
        return self._told(text), ""

    def _told(self, text: str) -> list[Part]:
        return [ToolCallDelta(self._position, arguments=text)] if text else []


class JsonCall:
    """An object that may be a call. Until `verdict` is more than WAITING, `raw` has all of it."""

    def __init__(self, names: Collection[str], position: int) -> None:
        self._names = names
        self._position = position
        self._nesting = Nesting()
        self._arguments = Arguments(position)
        self._num_scanned = 0
        self.verdict = Verdict.WAITING
        self.raw = ""

    def push(self, text: str) -> tuple[list[Part], str]:
        """What is certain of the call, and what comes after it."""
        if self.verdict is Verdict.CALLING:
            return self._go_on(text)
        self.raw += text
        if head := HEAD.match(self.raw):
            if head[1] not in self._names:
                self.verdict = Verdict.REFUSED
                return [], ""
            self.verdict, self._nesting = Verdict.CALLING, Nesting(1)
            parts, rest = self._go_on(self.raw[head.end() :])
            return [ToolCallDelta(self._position, call_id(), head[1]), *parts], rest
        if self._is_hopeless():
            self.verdict = Verdict.REFUSED
            return [], ""
        return self._whole()

    def _go_on(self, text: str) -> tuple[list[Part], str]:
        parts: list[Part] = []
        if not self._arguments.is_done:
            parts, text = self._arguments.push(text)
        for index, character in enumerate(text):
            if self._nesting.feed(character) and self._nesting.depth == 0:
                self.verdict = Verdict.DONE
                return parts, text[index + 1 :]
        return parts, ""

    def _is_hopeless(self) -> bool:
        begun = BEGINNING.match(self.raw)
        assert begun is not None, "it matches anything"
        key, closing = begun[1], begun[2]
        if key is None or not closing:
            return begun.end() != len(self.raw)
        return key not in KEYS

    def _whole(self) -> tuple[list[Part], str]:
        for index in range(self._num_scanned, len(self.raw)):
            if self._nesting.feed(self.raw[index]) and self._nesting.depth == 0:
                told = call_in(self.raw[: index + 1], self._names)
                self.verdict = Verdict.REFUSED if told is None else Verdict.DONE
                if told is None:
                    return [], ""
                return whole_call(self._position, *told), self.raw[index + 1 :]
        self._num_scanned = len(self.raw)
        return [], ""


def call_in(text: str, names: Collection[str]) -> tuple[str, str] | None:
    """Name and arguments of the call that an object of JSON is, if it is one. Its numbers stay as they were written."""
    try:
        told = _entries(text.encode())
        if isinstance(_read(told, "function"), dict):
            told = _entries(told["function"])
        name = _read(told, "name")
        written = "arguments" if "arguments" in told else "parameters"
        arguments = _read(told, written)
    except (ValueError, msgspec.MsgspecError, RecursionError):
        return None
    if not isinstance(name, str) or name not in names:
        return None
    if isinstance(arguments, str):
        return name, arguments or "{}"
    if arguments is None or isinstance(arguments, dict):
        return name, compact(bytes(told[written]).decode()) if arguments else "{}"
    return None


def _entries(text: bytes | msgspec.Raw) -> dict[str, msgspec.Raw]:
    return msgspec.json.decode(text, type=dict[str, msgspec.Raw])


def _read(entries: dict[str, msgspec.Raw], name: str) -> Any:
    return orjson.loads(bytes(entries[name])) if name in entries else None


def compact(text: str) -> str:
    """Valid JSON without white space between its words; numbers and escapes stay as they were written."""
    return msgspec.json.format(text, indent=-1)
