"""Anthropic's bodies to neutral requests. Owns what a block means; the inverse is `dialect.py`."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from coordinator.edge.answers.answer import SamplingWishes
from coordinator.edge.answers.grammar_check import format_constraint
from coordinator.edge.answers.tools import Tool, ToolChoice, ToolUse, check_kind, check_tools
from coordinator.edge.apis.anthropic.types import CountRequest, MessagesRequest, OutputConfig
from coordinator.edge.http.bodies import check_fields, parse_object
from coordinator.edge.http.field_errors import UNSUPPORTED_CODE
from coordinator.edge.text.conversation import Conversation, ToolCall, Turn
from coordinator.edge.text.efforts import effort_hints
from protocol.errors import InvalidRequest

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from coordinator.edge.apis.anthropic.types import Block, ClientTool, Message

CHOICES = {
    "auto": ToolChoice.AUTO,
    "none": ToolChoice.NONE,
    "any": ToolChoice.REQUIRED,
    "tool": ToolChoice.REQUIRED,
}
FORMAT = "output_config.format"
UNSUPPORTED = ("container", "mcp_servers", "context_management", "output_format")
"""Known fields that give the model what only the vendor runs, or change what it sees, unless they are empty."""
DIRECT = ["direct"]
"""Who calls a tool here: the model itself."""
ASSISTANTS, USERS = ("thinking", "tool_use", "redacted_thinking"), ("tool_result",)
"""Blocks of one role; they stand in its messages, and nowhere inside of others."""
FAILED = "Error: "
"""What says of a tool's result that it is none, where the tool's own words do not begin so."""


def parse_messages(body: bytes) -> tuple[MessagesRequest, Conversation, ToolUse]:
    """POST /v1/messages, everything checked that needs no model."""
    asked = check_fields(_supported(body), MessagesRequest)
    use = tools_of(asked)
    return asked, conversation_of(asked, use), use


def parse_count(body: bytes) -> tuple[CountRequest, Conversation]:
    """POST /v1/messages/count_tokens, likewise."""
    asked = check_fields(_supported(body), CountRequest)
    return asked, conversation_of(asked, tools_of(asked))


def _supported(body: bytes) -> dict[str, Any]:
    fields = parse_object(body)
    for name in UNSUPPORTED:
        value = fields.get(name)
        if any(value.values()) if isinstance(value, dict) else value:
            raise InvalidRequest(f"{name} is not supported by this server", name, UNSUPPORTED_CODE)
    return fields


def wishes_of(asked: MessagesRequest) -> SamplingWishes:
    """What a request says of sampling."""
    form = asked.output_config.format if asked.output_config is not None else None
    return SamplingWishes(
        max_tokens=asked.max_tokens,
        temperature=asked.temperature,
        top_p=asked.top_p,
        top_k=asked.top_k,
        seed=asked.seed,
        constraint=format_constraint(form, FORMAT),
        constraint_field=FORMAT,
    )


def tools_of(asked: CountRequest) -> ToolUse:
    """The client's own tools; those that only the vendor knows are refused."""
    for index, tool in enumerate(asked.tools or ()):
        _check_tool(tool, f"tools[{index}]")
    tools = tuple(
        Tool(
            tool.name,
            tool.input_schema or {},
            tool.description or "",
            bool(tool.strict),
            path=f"tools[{index}].input_schema",
        )
        for index, tool in enumerate(asked.tools or ())
    )
    choice = asked.tool_choice
    if choice is None:
        return check_tools(ToolUse(tools))
    if choice.type == "tool" and choice.name is None:
        raise InvalidRequest("tool_choice.name is missing", "tool_choice.name")
    only = choice.name if choice.type == "tool" else None
    return check_tools(
        ToolUse(tools, CHOICES[choice.type], only, not choice.disable_parallel_tool_use)
    )


def _check_tool(tool: ClientTool, path: str) -> None:
    """Raise InvalidRequest for what would change what the model is told of it."""
    check_kind(tool.type, (None, "custom"), f"{path}.type")
    wanted = {
        "input_examples": bool(tool.input_examples),
        "defer_loading": bool(tool.defer_loading),
        "allowed_callers": tool.allowed_callers not in (None, [], DIRECT),
    }
    for name in (name for name, is_asked in wanted.items() if is_asked):
        told = f"{path}.{name} is not supported by this server"
        raise InvalidRequest(told, f"{path}.{name}", UNSUPPORTED_CODE)


def conversation_of(asked: CountRequest, use: ToolUse) -> Conversation:
    """What the template may see. An answer that was begun by the client is gone on with."""
    turns = list(_turns(asked))
    last = turns[-1]
    thinks = asked.thinking is not None and asked.thinking.type != "disabled"
    output = asked.output_config or OutputConfig()
    if output.task_budget:
        path = "output_config.task_budget"
        raise InvalidRequest(f"{path} is not supported by this server", path, UNSUPPORTED_CODE)
    hints = effort_hints(output.effort, "output_config.effort")
    return Conversation(
        turns=turns,
        tools=use.shown(),
        template_hints=hints | {"enable_thinking": thinks},
        continue_final_turn=last.role == "assistant" and bool(last.content) and _only_says(last),
    )


def _turns(asked: CountRequest) -> Iterator[Turn]:
    """Neighbours of one role are one turn, as their API has it."""
    system = "\n".join(_texts(asked.system, "system")) if asked.system else ""
    run = [Turn("system", system, path="system")] if system else []
    for index, message in enumerate(asked.messages):
        for turn in _turns_of(message, f"messages[{index}]"):
            if run and (run[-1].role != turn.role or not _only_says(run[-1])):
                yield _joined(run)
                run = []
            run.append(turn)
    if run:
        yield _joined(run)


def _joined(run: Sequence[Turn]) -> Turn:
    """Everything that is said, and what the last has besides."""
    if len(run) == 1:
        return run[0]
    return replace(run[-1], content="\n".join(filter(None, (turn.text for turn in run))))


def _only_says(turn: Turn) -> bool:
    return not (turn.others or turn.calls or turn.reasoning or turn.role == "tool")


def _turns_of(message: Message, path: str) -> Iterator[Turn]:
    """Results of tools come before what else the user says with them."""
    blocks = message.content
    if isinstance(blocks, str):
        yield Turn(message.role, blocks, path=path)
        return
    within = f"{path}.content"
    _check_roles(message.role, blocks, within)
    results = [(place, it) for place, it in enumerate(blocks) if it.type == "tool_result"]
    for place, block in results:
        others = {"tool_call_id": block.tool_use_id or ""}
        yield Turn("tool", _result(block, f"{within}[{place}].content"), others, path=path)
    calls = [
        _call(block, f"{within}[{position}]")
        for position, block in enumerate(blocks)
        if block.type == "tool_use"
    ]
    thought = "".join(block.thinking or "" for block in blocks if block.type == "thinking")
    own = (*ASSISTANTS, *USERS)
    said = "\n".join(_texts(blocks, within, apart=own))
    if said or calls or thought or not results:
        yield Turn(message.role, said, calls=calls, reasoning=thought, path=path)


def _check_roles(role: str, blocks: Sequence[Block], path: str) -> None:
    """Raise InvalidRequest for a block that the other side writes."""
    for position, block in enumerate(blocks):
        is_theirs = role != "assistant" and block.type in ASSISTANTS
        if is_theirs or (role != "user" and block.type in USERS):
            where = f"{path}[{position}]"
            told = f"{where}: a message of role {role!r} has no blocks of type {block.type!r}"
            raise InvalidRequest(told, where)
        if block.type == "redacted_thinking":
            where = f"{path}[{position}]"
            told = f"{where}: blocks of type {block.type!r} can be read by their vendor only"
            raise InvalidRequest(told, where, UNSUPPORTED_CODE)


def _result(block: Block, path: str) -> str:
    """What a tool said; that it failed is said, too."""
    said = "\n".join(_texts(block.content or "", path))
    if not block.is_error or said.casefold().startswith("error"):
        return said
    return FAILED + said if said else FAILED.rstrip(": ")


def _call(block: Block, path: str) -> ToolCall:
    if not block.name:
        raise InvalidRequest(f"{path}.name is missing", f"{path}.name")
    return ToolCall(block.name, json.dumps(block.input or {}, ensure_ascii=False), block.id or "")


def _texts(content: str | Sequence[Block], path: str, apart: Sequence[str] = ()) -> Iterator[str]:
    """What blocks say, but those of the kinds `apart`; raises InvalidRequest for what cannot be read here."""
    if isinstance(content, str):
        yield content
        return
    for position, block in enumerate(content):
        if block.type not in apart:
            yield from _texts_of(block, f"{path}[{position}]")


def _texts_of(block: Block, path: str) -> Iterator[str]:
    source, citations = block.source, block.citations
    if isinstance(citations, dict) and citations.get("enabled"):
        told = f"{path}.citations are not supported by this server"
        raise InvalidRequest(told, f"{path}.citations", UNSUPPORTED_CODE)
    if block.type == "text":
        if block.text is None:
            raise InvalidRequest(f"{path}.text is missing", f"{path}.text")
        yield block.text
    elif block.type == "document" and isinstance(source, dict) and source.get("type") == "text":
        yield from filter(None, (block.title, block.context, str(source.get("data", ""))))
    elif block.type == "search_result":
        yield from filter(None, (block.title, source if isinstance(source, str) else None))
        yield from _texts(block.content or "", f"{path}.content")
    else:
        raise InvalidRequest(f"{path}: blocks of type {block.type!r} are not supported", path)
