"""What a model may call, in nobody's dialect. Owns what a tool is and which calls an answer must, may or must not make."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from enum import StrEnum
from typing import TYPE_CHECKING, Any

import msgspec
import orjson

from coordinator.edge.http import limits
from coordinator.edge.http.field_errors import (
    EMPTY_TEXT,
    LONG_ARRAY,
    LONG_TEXT,
    MISSING,
    UNSUPPORTED_CODE,
    WRONG_TYPE,
)
from protocol.errors import InvalidRequest

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence


class ToolChoice(StrEnum):
    """Whether an answer calls."""

    AUTO = "auto"
    NONE = "none"
    REQUIRED = "required"


@dataclass(frozen=True, slots=True)
class Tool:
    """A function: its `parameters` are a JSON schema, which `path` is what the client calls. `shown` is how templates are
    told of it, OpenAI's way."""

    name: str
    parameters: Mapping[str, Any] = field(default_factory=dict)
    description: str = ""
    is_strict: bool = False
    source: Mapping[str, Any] | None = None
    path: str = "tools"

    @property
    def shown(self) -> Mapping[str, Any]:
        """As its client wrote it, where that client writes as templates read."""
        if self.source is not None:
            return self.source
        function: dict[str, Any] = {"name": self.name, "description": self.description}
        return {"type": "function", "function": function | {"parameters": dict(self.parameters)}}


@dataclass(frozen=True, slots=True)
class ToolUse:
    """The tools of one request. With a name in `only` it is that one that must be called."""

    tools: tuple[Tool, ...] = ()
    choice: ToolChoice = ToolChoice.AUTO
    only: str | None = None
    is_parallel: bool = True

    @property
    def may_call(self) -> bool:
        """Whether the answer is looked through for calls."""
        return bool(self.tools) and self.choice is not ToolChoice.NONE

    @property
    def must_call(self) -> bool:
        """Whether an answer without a call is wrong."""
        return bool(self.tools) and self.choice is ToolChoice.REQUIRED

    @property
    def callable_tools(self) -> tuple[Tool, ...]:
        """Those that the answer may call."""
        return tuple(tool for tool in self.tools if self.only in (None, tool.name))

    def shown(self) -> list[Mapping[str, Any]] | None:
        """What a template is told; nothing of tools that must not be called."""
        return [tool.shown for tool in self.tools] if self.may_call else None


NO_TOOLS = ToolUse()
SHOWN_CHARACTERS = 64


def check_tools(use: ToolUse, choice_field: str = "tool_choice") -> ToolUse:
    """The same; raises InvalidRequest for names that are there twice or not at all, and for too many bytes."""
    names = [tool.name for tool in use.tools]
    if twice := next((name for name in names if names.count(name) > 1), None):
        raise InvalidRequest(f"tools has {twice!r} twice", "tools")
    if use.only is not None and use.only not in names:
        raise InvalidRequest(
            f"{choice_field} names {use.only!r}, which is not in tools", choice_field
        )
    if use.choice is ToolChoice.REQUIRED and not names:
        raise InvalidRequest(f"{choice_field} needs tools", choice_field)
    check_size([tool.shown for tool in use.tools])
    return use


def only_these(
    use: ToolUse, names: Sequence[tuple[object, str]], mode: object, path: str
) -> ToolUse:
    """The same with a choice of its tools, by name and what the client calls that. Raises InvalidRequest for one that is none
    of them, and for a mode that is neither "auto" nor "required": it must not vanish unsaid."""
    known = {tool.name for tool in use.tools}
    for name, where in names:
        if not isinstance(name, str) or name not in known:
            told = f"{where} must be the name of one of tools, not {str(name)[:SHOWN_CHARACTERS]!r}"
            raise InvalidRequest(told, where)
    if mode not in (None, "auto", "required"):
        told = f"{path}.mode must be 'auto' or 'required', not {str(mode)[:SHOWN_CHARACTERS]!r}"
        raise InvalidRequest(told, f"{path}.mode")
    chosen = {name for name, _ in names}
    tools = tuple(tool for tool in use.tools if tool.name in chosen)
    wanted = ToolChoice.REQUIRED if mode == "required" else ToolChoice.AUTO
    return replace(use, tools=tools, choice=wanted)


def check_kind(kind: object, known: Sequence[str | None], path: str) -> None:
    """Raise InvalidRequest for a tool that only its vendor can run, or tell the model of: it must not vanish unsaid."""
    if kind not in known:
        told = f"{path}: tools of type {str(kind)[:SHOWN_CHARACTERS]!r} are not supported by this server"
        raise InvalidRequest(told, path, UNSUPPORTED_CODE)


def function_tool(tool: Mapping[str, Any], path: str) -> Tool:
    """`{"type": "function", "function": {"name": …}}`. Raises InvalidRequest for what names no function: a model would be
    told of it, or of nothing, and could not call it."""
    path = f"{path}.function"
    function = tool.get("function")
    if function is None:
        raise InvalidRequest(f"{path} is required", path, MISSING)
    if not isinstance(function, dict):
        raise InvalidRequest(f"{path} must be an object", path, WRONG_TYPE)
    for name, kind, told in (
        ("description", str, "a string"),
        ("parameters", dict, "an object"),
        ("strict", bool, "a boolean"),
    ):
        if not isinstance(function.get(name), kind | None):
            raise InvalidRequest(f"{path}.{name} must be {told}", f"{path}.{name}", WRONG_TYPE)
    return Tool(
        _checked_name(function.get("name"), f"{path}.name"),
        function.get("parameters") or {},
        is_strict=bool(function.get("strict")),
        source=tool,
        path=f"{path}.parameters",
    )


def _checked_name(name: object, path: str) -> str:
    most = limits.MAX_TOOL_NAME_CHARACTERS
    if name is None:
        raise InvalidRequest(f"{path} is required", path, MISSING)
    if not isinstance(name, str):
        raise InvalidRequest(f"{path} must be a string", path, WRONG_TYPE)
    if not name:
        raise InvalidRequest(f"{path} cannot be empty", path, EMPTY_TEXT)
    if len(name) > most:
        raise InvalidRequest(f"{path} must have at most {most} characters", path, LONG_TEXT)
    return name


def check_size(tools: Sequence[Mapping[str, Any]]) -> None:
    """Raise InvalidRequest for tools that are larger than any prompt should hold."""
    if tools and len(orjson.dumps(tools)) > limits.MAX_TOOLS_BYTES:
        told = f"tools must take at most {limits.MAX_TOOLS_BYTES} bytes"
        raise InvalidRequest(told, "tools", LONG_ARRAY)


def arguments_object(text: str) -> dict[str, Any]:
    """The arguments of a call as an object. What a model wrote is not always one: then the text is its one entry."""
    try:
        arguments = orjson.loads(text or "{}")
    except orjson.JSONDecodeError:
        return {"arguments": text}
    return arguments if isinstance(arguments, dict) else {"arguments": text}


def arguments_json(text: str) -> str:
    """The same as one line of JSON, its numbers as the model wrote them, however long they are."""
    try:
        told, line = orjson.loads(text or "{}"), msgspec.json.format(text or "{}", indent=-1)
    except (orjson.JSONDecodeError, RecursionError):
        told = line = None
    if isinstance(told, dict) and line is not None:
        return line
    return orjson.dumps({"arguments": text}).decode()
