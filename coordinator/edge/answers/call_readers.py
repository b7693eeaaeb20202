"""Where calls stand in the text of an answer, for each family of models. Owns their delimiters; pure.

What only looks like a call stays text, its delimiters too, unless it names a tool that the request has. White space
before a call is no text, nor is any between calls. A delimiter that is a control token of the model has a MARK before it,
which no text can have: text that spells it is only text.
"""

from __future__ import annotations

import ast
import re
import warnings
from typing import TYPE_CHECKING, Protocol

import orjson

from coordinator.edge.answers.answer import TextDelta, ToolCallDelta
from coordinator.edge.answers.call_text import (
    Arguments,
    JsonCall,
    Verdict,
    call_id,
    compact,
    whole_call,
)
from coordinator.edge.answers.choice_text import longest_partial

if TYPE_CHECKING:
    from collections.abc import Callable, Collection

    from coordinator.edge.answers.answer import Part

MARK = "\ud800"
MISTRAL_NAME = re.compile(
    rf"\s*([\w.-]+)(?:{MARK}?\[CALL_ID\][\w-]*)?(?:{MARK}?\[ARGS\])?\s*(?=\{{)"
)
MISTRAL_BEGINNING = re.compile(rf"\s*[\w.-]*(?:{MARK}?\[[A-Z_]*\]?[\w-]*)*\s*")
PYTHON_BEGINNING = re.compile(r"\s*(?:\[\s*(?:([A-Za-z_][\w.]*)\s*(\()?)?)?")


class CallReader(Protocol):
    """Text of one answer to parts of it."""

    def push(self, text: str) -> list[Part]:
        """What is certain now."""
        ...

    def finish(self) -> list[Part]:
        """What was held back, when no more text comes."""
        ...


class Reader:
    """Text until `opening`; what follows is each family's. `step` moves on within `buffer` and says whether it did."""

    opening = ""

    def __init__(self, names: Collection[str], controls: Collection[str] = ()) -> None:
        self._names = names
        self._controls = controls
        self.opening = self._delimiter(self.opening)
        self._buffer = self._space = self._opened = ""
        self._parts: list[Part] = []
        self._num_calls = 0
        self._follows_call = False
        self._step: Callable[[], bool] = self._text
        self._call: JsonCall | None = None

    def _delimiter(self, name: str) -> str:
        return MARK + name if name in self._controls else name

    def push(self, text: str) -> list[Part]:
        """What is certain now."""
        self._buffer += text
        while self._step():
            pass
        return self._take()

    def finish(self) -> list[Part]:
        """What was held back, when no more text comes."""
        waiting = self._call is not None and self._call.verdict is Verdict.WAITING
        if self._call is None or waiting:
            raw = self._call.raw if self._call is not None else ""
            self._say(self._opened + raw + self._buffer)
        if self._space and not self._follows_call:
            self._parts.append(TextDelta(self._space))
        return self._take()

    def _take(self) -> list[Part]:
        parts, self._parts = self._parts, []
        return parts

    def _say(self, text: str) -> None:
        """White space at its end waits for what follows."""
        text, self._space = self._space + text, ""
        body = text.rstrip()
        self._space = text[len(body) :]
        if body:
            self._parts.append(TextDelta(body))
            self._follows_call = False

    def _text(self) -> bool:
        start = self._buffer.find(self.opening)
        if start < 0:
            kept = len(self._buffer) - longest_partial(self._buffer, self.opening)
            self._say(self._buffer[:kept])
            self._buffer = self._buffer[kept:]
            return False
        self._say(self._buffer[:start])
        self._buffer = self._buffer[start + len(self.opening) :]
        self._open(self.opening)
        return True

    def _open(self, opening: str) -> None:
        """What follows `opening` is read as a call; `opening` is text again if it is none."""
        self._opened = opening
        self._call = JsonCall(self._names, self._num_calls)
        self._step = self._object

    def _object(self) -> bool:
        assert self._call is not None, "it was opened"
        parts, self._buffer = self._call.push(self._buffer)
        self._accept(parts)
        if self._call.verdict is Verdict.REFUSED:
            return self._refuse(self._call.raw)
        if self._call.verdict is Verdict.DONE:
            self._call, self._step = None, self._after_call
            return True
        return False

    def _accept(self, parts: list[Part]) -> None:
        if not parts:
            return
        if any(isinstance(part, ToolCallDelta) and part.name for part in parts):
            self._num_calls += 1
            self._space = self._opened = ""
            self._follows_call = True
        self._parts += parts

    def _refuse(self, raw: str) -> bool:
        """It was text; there may be a call further on in it."""
        opened, self._opened, self._call = self._opened, "", None
        self._say(opened)
        self._buffer, self._step = raw + self._buffer, self._text
        return True

    def _after_call(self) -> bool:
        self._step = self._text
        return True


class HermesReader(Reader):
    """`<tool_call>{"name": …, "arguments": {…}}</tool_call>`, anywhere and any number of times: Hermes, Qwen, SmolLM3."""

    opening, closing = "<tool_call>", "</tool_call>"

    def __init__(self, names: Collection[str], controls: Collection[str] = ()) -> None:
        super().__init__(names, controls)
        self.closing = self._delimiter(self.closing)

    def _after_call(self) -> bool:
        told = self._buffer.lstrip()
        if told.startswith(self.closing):
            self._buffer = told.removeprefix(self.closing)
        elif self.closing.startswith(told):
            return False
        self._step = self._text
        return True

    def finish(self) -> list[Part]:
        """An end tag that was begun is no text."""
        if self._step == self._after_call:
            self._buffer, self._step = "", self._text
        return super().finish()


class LlamaReader(Reader):
    """`{"name": …, "parameters": {…}}` as a whole answer, several with `;` between, or after `<|python_tag|>`: Llama 3."""

    opening = "<|python_tag|>"

    def __init__(self, names: Collection[str], controls: Collection[str] = ()) -> None:
        super().__init__(names, controls)
        self._step = self._first

    def _first(self) -> bool:
        told = self._buffer.lstrip()
        if not told:
            return False
        self._step = self._text
        if told.startswith("{"):
            self._open("")
        return True

    def _after_call(self) -> bool:
        told = self._buffer.lstrip(" \n\t;,")
        if not told:
            return False
        self._step, self._buffer = self._text, self._buffer if told[0] != "{" else told
        if told[0] == "{":
            self._open("")
        return True

    def finish(self) -> list[Part]:
        """Separators behind the last call are no text."""
        if self._step == self._after_call:
            self._buffer, self._step = "", self._text
        return super().finish()


class MistralReader(Reader):
    """`[TOOL_CALLS][{"name": …, "arguments": {…}}, …]`, or `[TOOL_CALLS]name[ARGS]{…}` as its newer models write."""

    opening = "[TOOL_CALLS]"

    def __init__(self, names: Collection[str], controls: Collection[str] = ()) -> None:
        super().__init__(names, controls)
        self._arguments: Arguments | None = None

    def _open(self, opening: str) -> None:
        self._opened, self._step = opening, self._kind

    def _kind(self) -> bool:
        told = self._buffer.lstrip()
        if not told:
            return False
        if told[0] == "[":
            space = self._buffer[: len(self._buffer) - len(told)]
            super()._open(f"{self._opened}{space}[")
            self._buffer = told[1:]
            return True
        if head := MISTRAL_NAME.match(self._buffer):
            return self._named(head)
        begun = MISTRAL_BEGINNING.match(self._buffer)
        if begun is not None and begun.end() == len(self._buffer):
            return False
        raw, self._buffer = self._buffer, ""
        return self._refuse(raw)

    def _named(self, head: re.Match[str]) -> bool:
        if head[1] not in self._names:
            raw, self._buffer = self._buffer, ""
            return self._refuse(raw)
        self._arguments, self._step = Arguments(self._num_calls), self._object_of_arguments
        self._buffer = self._buffer[head.end() :]
        self._accept([ToolCallDelta(self._num_calls, call_id(), head[1])])
        return True

    def _object_of_arguments(self) -> bool:
        assert self._arguments is not None, "it was named"
        parts, self._buffer = self._arguments.push(self._buffer)
        self._parts += parts
        if self._arguments.is_done:
            self._step = self._text
            return True
        return False

    def _after_call(self) -> bool:
        told = self._buffer.lstrip()
        if not told:
            return False
        self._step = self._text
        if told[0] == ",":
            super()._open(",")
            self._buffer = told[1:]
        elif told[0] == "]":
            self._buffer = told[1:]
        return True

    def finish(self) -> list[Part]:
        """Arguments that were cut off have been told already."""
        if self._step in (self._object_of_arguments, self._after_call):
            self._buffer, self._step = "", self._text
        return super().finish()


class PythonicReader:
    """`[f(a=1), g(b="x")]` as a whole answer: Llama 3.2 and 4, and others that were taught so. Calls come when the list is closed."""

    def __init__(self, names: Collection[str], controls: Collection[str] = ()) -> None:  # noqa: ARG002 - it has no delimiter
        self._names = names
        self._buffer = ""
        self._is_text = False

    def push(self, text: str) -> list[Part]:
        """Text, unless the list may still become one of calls."""
        if self._is_text:
            return [TextDelta(text)] if text else []
        self._buffer += text
        begun = PYTHON_BEGINNING.match(self._buffer)
        assert begun is not None, "it matches anything"
        name, bracket = begun[1], begun[2]
        undecided = begun.end() == len(self._buffer) if bracket is None else name in self._names
        if undecided:
            return []
        self._is_text = True
        return [TextDelta(self._buffer)]

    def finish(self) -> list[Part]:
        """The calls, if there are any."""
        if self._is_text or not self._buffer:
            return []
        calls = python_calls(self._buffer, self._names)
        if calls is None:
            return [TextDelta(self._buffer)]
        return [
            part
            for position, (name, arguments) in enumerate(calls)
            for part in whole_call(position, name, arguments)
        ]


def python_calls(text: str, names: Collection[str]) -> list[tuple[str, str]] | None:
    """Names and arguments of a list of calls with keywords and plain values; None for anything else."""
    try:
        text = text.strip()
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of escapes that only JSON has
            tree = ast.parse(text, mode="eval").body
        if not isinstance(tree, ast.List) or not tree.elts:
            return None
        calls = [_python_call(text, node) for node in tree.elts]
    except (SyntaxError, ValueError, TypeError, RecursionError, MemoryError):
        return None
    return calls if all(name in names for name, _ in calls) else None


def _python_call(text: str, node: ast.expr) -> tuple[str, str]:
    if not isinstance(node, ast.Call) or node.args or any(not it.arg for it in node.keywords):
        raise ValueError("this is no call with keywords alone")
    arguments = {it.arg: _value(text, it.value) for it in node.keywords}
    return ast.unparse(node.func), orjson.dumps(arguments).decode()


def _value(text: str, node: ast.expr) -> object:
    """JSON where it is that, Python elsewhere: the two disagree about `true` and about escapes."""
    written = ast.get_source_segment(text, node) or ""
    try:
        orjson.loads(written)
    except orjson.JSONDecodeError:
        return ast.literal_eval(node)
    return orjson.Fragment(compact(written))
