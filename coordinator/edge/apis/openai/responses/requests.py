"""Bodies of /v1/responses to neutral requests. Owns what an item means; the inverse is `dialect.py`."""

from __future__ import annotations

import re
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from coordinator.edge.answers.answer import SamplingWishes
from coordinator.edge.answers.grammar_check import format_constraint
from coordinator.edge.answers.tools import (
    Tool,
    ToolChoice,
    ToolUse,
    check_kind,
    check_tools,
    only_these,
)
from coordinator.edge.apis.openai.responses.types import ResponsesRequest
from coordinator.edge.http.bodies import check_fields, check_shape, parse_object
from coordinator.edge.http.field_errors import UNSUPPORTED_CODE
from coordinator.edge.text.conversation import Conversation, ToolCall, Turn
from coordinator.edge.text.efforts import effort_hints
from protocol.errors import InvalidRequest

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from coordinator.edge.apis.openai.responses.types import FlatTool, Item, Part

FUNCTION = "function"
_TYPE_NAME = re.compile("[A-Za-z0-9_.-]{1,64}")
FORMAT = "text.format"
LOGPROBS = "message.output_text.logprobs"
UNSUPPORTED = ("conversation", "prompt", "image", "moderation", "context_management")
"""Known fields that ask for what is not served, unless they are null, false or an empty list."""
READABLE = ("input_text", "output_text", "text", "reasoning_text", "summary_text")


def parse_response(body: bytes) -> tuple[ResponsesRequest, list[Turn], ToolUse]:
    """POST /v1/responses, everything checked that needs no model: the turns of its own input."""
    fields = parse_object(body)
    for name in UNSUPPORTED:
        if fields.get(name) not in (None, False, []):
            raise InvalidRequest(f"{name} is not supported by this server", name, UNSUPPORTED_CODE)
    asked = check_fields(fields, ResponsesRequest)
    if asked.text is not None and asked.text.verbosity not in (None, "medium"):
        told = "text.verbosity is supported as medium only"
        raise InvalidRequest(told, "text.verbosity", UNSUPPORTED_CODE)
    if asked.background and not asked.stream:
        told = "background is supported for streams: ask with stream: true"
        raise InvalidRequest(told, "background", UNSUPPORTED_CODE)
    if asked.background and asked.store is False:
        raise InvalidRequest("background needs store: true", "store")
    turns = turns_of(asked)
    if not turns and asked.previous_response_id is None:
        raise InvalidRequest("input is empty", "input")
    return asked, turns, tools_of(asked)


def wishes_of(asked: ResponsesRequest) -> SamplingWishes:
    """What a request says of sampling."""
    form = asked.text.format if asked.text is not None else None
    wants_logprobs = LOGPROBS in (asked.include or ()) or asked.top_logprobs
    return SamplingWishes(
        max_tokens=asked.max_output_tokens,
        max_tokens_field="max_output_tokens",
        temperature=asked.temperature,
        top_p=asked.top_p,
        seed=asked.seed,
        logprobs=(asked.top_logprobs or 0) if wants_logprobs else None,
        constraint=format_constraint(form, FORMAT),
        constraint_field=FORMAT,
    )


def tools_of(asked: ResponsesRequest) -> ToolUse:
    """The functions that may be called, and which of them is wanted. Tools of other types are offered to no model, and
    nothing may choose them."""
    tools = []
    for index, tool in enumerate(asked.tools or ()):
        if tool.type != FUNCTION:
            continue
        if tool.name is None:
            raise InvalidRequest(f"tools[{index}].name is missing", f"tools[{index}].name")
        description = tool.description or ""
        path = f"tools[{index}].parameters"
        strict, parameters = bool(tool.strict), tool.parameters or {}
        tools.append(Tool(tool.name, parameters, description, strict, path=path))
    use = ToolUse(tuple(tools), is_parallel=asked.parallel_tool_calls is not False)
    choice = asked.tool_choice
    if isinstance(choice, str):
        return check_tools(replace(use, choice=ToolChoice(choice)))
    if choice is None:
        return check_tools(use)
    return check_tools(_chosen(use, choice))


def offered(asked: ResponsesRequest) -> list[FlatTool]:
    """The tools that the model is told of, as they were sent."""
    return [tool for tool in asked.tools or () if tool.type == FUNCTION]


def ignored_types(asked: ResponsesRequest) -> list[str]:
    """Types of the other tools, each once; "other" stands for what is no name."""
    types = (tool.type for tool in asked.tools or () if tool.type != FUNCTION)
    return list(dict.fromkeys(t if _TYPE_NAME.fullmatch(t) else "other" for t in types))


def _chosen(use: ToolUse, choice: dict[str, Any]) -> ToolUse:
    if choice.get("type") == FUNCTION and isinstance(choice.get("name"), str):
        return replace(use, choice=ToolChoice.REQUIRED, only=choice["name"])
    if choice.get("type") == "allowed_tools" and isinstance(choice.get("tools"), list):
        names = []
        for index, tool in enumerate(choice["tools"]):
            path = f"tool_choice.tools[{index}]"
            if isinstance(tool, dict):
                check_kind(tool.get("type"), (FUNCTION, None), f"{path}.type")
            names.append((tool.get("name") if isinstance(tool, dict) else tool, f"{path}.name"))
        return only_these(use, names, choice.get("mode"), "tool_choice")
    raise InvalidRequest("this tool_choice is not supported by this server", "tool_choice")


def conversation_of(
    asked: ResponsesRequest, earlier: Sequence[Turn], own: Sequence[Turn], use: ToolUse
) -> Conversation:
    """What the template may see. Instructions are of this request alone, and come first."""
    turns = [*earlier, *own]
    said = asked.instructions
    if said and turns and turns[0].role in ("system", "developer"):
        turns[0] = replace(turns[0], content=f"{said}\n\n{turns[0].text}")
    elif said:
        turns.insert(0, Turn("system", said))
    effort = asked.reasoning.effort if asked.reasoning is not None else None
    hints = effort_hints(effort, "reasoning.effort")
    return Conversation(turns=turns, tools=use.shown(), template_hints=hints, path="input")


def turns_of(asked: ResponsesRequest) -> list[Turn]:
    """The input as turns: what one answer was made of is one turn again."""
    if isinstance(asked.input, str):
        return [Turn("user", asked.input)] if asked.input else []
    turns: list[Turn] = []
    for index, item in enumerate(asked.input):
        for turn in _turns_of(item, f"input[{index}]"):
            if turns and turns[-1].role == turn.role == "assistant":
                turns[-1] = merged(turns[-1], turn)
            else:
                turns.append(turn)
    return turns


def merged(first: Turn, second: Turn) -> Turn:
    """Two pieces of one answer as one turn."""
    content = "\n".join(filter(None, (first.text, second.text)))
    calls = (*first.calls, *second.calls)
    thought = "\n".join(filter(None, (first.reasoning, second.reasoning)))
    return replace(first, content=content, calls=calls, reasoning=thought)


def _turns_of(item: Item, path: str) -> Iterator[Turn]:
    match item.type:
        case None | "message":
            if item.role is None:
                raise InvalidRequest(f"{path}.role is missing", f"{path}.role")
            yield Turn(item.role, _text(item.content, f"{path}.content"), path=path)
        case "function_call":
            yield Turn("assistant", calls=(_call(item, path),), path=path)
        case "function_call_output":
            said = _text(item.output, f"{path}.output")
            yield Turn("tool", said, {"tool_call_id": item.call_id or ""}, path=path)
        case "reasoning":
            thought = item.content or item.summary or ""
            said = _text(thought, f"{path}.content")
            if item.encrypted_content and not said:
                told = f"{path}.encrypted_content is a thought that only its vendor can read"
                raise InvalidRequest(told, f"{path}.encrypted_content", UNSUPPORTED_CODE)
            if said:
                yield Turn("assistant", reasoning=said, path=path)
        case _:
            raise InvalidRequest(f"{path}: items of type {item.type!r} are not supported", path)


def _call(item: Item, path: str) -> ToolCall:
    if not item.name:
        raise InvalidRequest(f"{path}.name is missing", f"{path}.name")
    check_shape((item.arguments or "").encode(), f"{path}.arguments")
    return ToolCall(item.name, item.arguments or "{}", item.call_id or "")


def _text(content: str | Sequence[Part] | None, path: str) -> str:
    if content is None:
        raise InvalidRequest(f"{path} is missing", path)
    if isinstance(content, str):
        return content
    return "\n".join(_said(part, f"{path}[{index}]") for index, part in enumerate(content))


def _said(part: Part, path: str) -> str:
    if part.type == "refusal":
        return part.refusal or ""
    if part.type not in READABLE:
        raise InvalidRequest(f"{path}: parts of type {part.type!r} are not supported", path)
    if part.text is None:
        raise InvalidRequest(f"{path}.text is missing", f"{path}.text")
    return part.text
