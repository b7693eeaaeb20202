"""Ollama's bodies to neutral requests. Owns what its fields and options mean; the inverse is `dialects.py`."""

from __future__ import annotations

import json
from dataclasses import replace
from itertools import count
from typing import TYPE_CHECKING, Any

from coordinator.edge.answers.answer import SamplingWishes
from coordinator.edge.answers.grammar_check import schema_constraint
from coordinator.edge.answers.tools import ToolUse, check_tools, function_tool
from coordinator.edge.apis.ollama.types import ChatRequest, GenerateRequest, Options
from coordinator.edge.http.bodies import check_fields, parse_object
from coordinator.edge.http.field_errors import UNSUPPORTED_CODE
from coordinator.edge.text.conversation import Conversation, ToolCall, Turn
from coordinator.edge.text.efforts import effort_hints
from protocol.constraints import Constraint, ConstraintKind
from protocol.errors import InvalidRequest

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from coordinator.edge.apis.ollama.types import AnswerBody, Message

LATEST = ":latest"
UNSUPPORTED = ("context", "images", "suffix", "template")
"""Known fields that would change the answer, unless they are empty."""


def parse_chat(body: bytes) -> tuple[ChatRequest, Conversation, ToolUse]:
    """POST /api/chat, everything checked that needs no model. A last message of the assistant is gone on with."""
    asked = check_fields(_supported(body), ChatRequest)
    use = tools_of(asked)
    turns = [_turn(message, f"messages[{index}]") for index, message in enumerate(asked.messages)]
    last = turns[-1] if turns else Turn("user")
    conversation = Conversation(
        turns=_linked(turns),
        tools=use.shown(),
        template_hints=_hints(asked),
        continue_final_turn=last.role == "assistant" and bool(last.content) and not last.calls,
    )
    return asked, conversation, use


def parse_generate(body: bytes) -> tuple[GenerateRequest, Conversation]:
    """POST /api/generate: a text is a conversation of one turn, unless it is raw."""
    asked = check_fields(_supported(body), GenerateRequest)
    if asked.raw and asked.system:
        raise InvalidRequest("system needs the template, which raw leaves out", "system")
    turns = [Turn("user", asked.prompt or "", path="prompt")]
    if asked.system:
        turns.insert(0, Turn("system", asked.system, path="system"))
    return asked, Conversation(turns=turns, template_hints=_hints(asked), path="prompt")


def wishes_of(asked: AnswerBody) -> SamplingWishes:
    """What a request says of sampling."""
    options = asked.options or Options()
    num_predict = options.num_predict
    if num_predict == 0:
        raise InvalidRequest("options.num_predict must not be 0", "options.num_predict")
    has_limit = num_predict is not None and num_predict > 0
    options = _without_penalties(options) if options.repeat_last_n == 0 else options
    _check_options(options)
    return SamplingWishes(
        max_tokens=num_predict if has_limit else None,
        max_tokens_field="options.num_predict",
        temperature=options.temperature,
        top_k=options.top_k,
        top_p=options.top_p,
        min_p=options.min_p,
        seed=options.seed,
        repetition_penalty=options.repeat_penalty,
        presence_penalty=options.presence_penalty or 0.0,
        frequency_penalty=options.frequency_penalty or 0.0,
        logprobs=(asked.top_logprobs or 0) if asked.logprobs else None,
        constraint=_constraint(asked),
        constraint_field="format",
    )


def _without_penalties(options: Options) -> Options:
    """Penalties that look back at no token."""
    none = {"repeat_penalty": 1.0, "presence_penalty": 0.0, "frequency_penalty": 0.0}
    return options.model_copy(update=none)


def _check_options(options: Options) -> None:
    """Raise InvalidRequest for samplers that there are not here. Penalties look back at all that was said."""
    penalizes = bool(
        options.repeat_penalty not in (None, 1.0)
        or options.presence_penalty
        or options.frequency_penalty
    )
    asked = {
        "mirostat": options.mirostat not in (None, 0),
        "typical_p": options.typical_p not in (None, 0.0, 1.0),
        "tfs_z": options.tfs_z not in (None, 1.0),
        "repeat_last_n": penalizes and options.repeat_last_n not in (None, -1),
        "penalize_newline": penalizes and options.penalize_newline is False,
    }
    for name in (name for name, is_asked in asked.items() if is_asked):
        path = f"options.{name}"
        raise InvalidRequest(f"{path} is not supported by this server", path, UNSUPPORTED_CODE)


def _constraint(asked: AnswerBody) -> Constraint | None:
    """`json`, or a schema; empty is none."""
    if not asked.format:
        return None
    if asked.format == "json":
        return Constraint(kind=ConstraintKind.JSON_OBJECT)
    if isinstance(asked.format, str) and not asked.format.lstrip().startswith("{"):
        raise InvalidRequest('format must be "json" or a JSON schema', "format")
    return schema_constraint(asked.format, "format")


def stops_of(asked: AnswerBody) -> tuple[str, ...]:
    """Where a text ends."""
    stop = asked.options.stop if asked.options is not None else None
    return (stop,) if isinstance(stop, str) else tuple(stop or ())


def model_of(name: str | None, served: Sequence[str]) -> str | None:
    """The served name that is meant: the same, or the one without the tag that stands for none."""
    if not name or name in served:
        return name or None
    return name.removesuffix(LATEST)


def tools_of(asked: ChatRequest) -> ToolUse:
    """Functions, as OpenAI's clients write them."""
    tools = (function_tool(tool, f"tools[{index}]") for index, tool in enumerate(asked.tools or ()))
    return check_tools(ToolUse(tuple(tools)))


def _supported(body: bytes) -> dict[str, Any]:
    fields = parse_object(body)
    for name in UNSUPPORTED:
        if fields.get(name):
            raise InvalidRequest(f"{name} is not supported by this server", name, UNSUPPORTED_CODE)
    return fields


def _hints(asked: AnswerBody) -> dict[str, bool | str]:
    if isinstance(asked.think, str):
        return effort_hints(asked.think, "think")
    return {} if asked.think is None else {"enable_thinking": asked.think}


def _turn(message: Message, path: str) -> Turn:
    if message.images:
        raise InvalidRequest(f"{path}.images is not supported by this server", f"{path}.images")
    calls = [
        _call(call, f"{path}.tool_calls[{position}]")
        for position, call in enumerate(message.tool_calls or ())
    ]
    others = {"name": message.tool_name, "tool_call_id": message.tool_call_id}
    others = {name: value for name, value in others.items() if value}
    reasoning = message.thinking or ""
    return Turn(message.role, message.content or "", others, calls, reasoning, path)


def _call(call: dict[str, Any], path: str) -> ToolCall:
    function = call.get("function")
    name = function.get("name") if isinstance(function, dict) else None
    if not isinstance(function, dict) or not isinstance(name, str):
        raise InvalidRequest(f"{path}.function.name is missing", f"{path}.function.name")
    arguments, call_id = function.get("arguments") or {}, call.get("id")
    told = arguments if isinstance(arguments, str) else json.dumps(arguments, ensure_ascii=False)
    return ToolCall(name, told, call_id if isinstance(call_id, str) else "")


def _linked(turns: list[Turn]) -> list[Turn]:
    """Calls and results with ids, which some templates insist on: Ollama's clients tell which result is whose by its
    tool's name, or by its place."""
    numbers = count(1)
    named = [replace(turn, calls=_numbered(turn.calls, numbers)) for turn in turns]
    waiting: list[ToolCall] = []
    for place, turn in enumerate(named):
        if turn.calls:
            waiting = list(turn.calls)
        elif turn.role == "tool" and "tool_call_id" not in turn.others and waiting:
            own = [call for call in waiting if call.name == turn.others.get("name")]
            answered = (own or waiting)[0]
            waiting.remove(answered)
            others = {**turn.others, "tool_call_id": answered.call_id}
            named[place] = replace(turn, others=others)
    return named


def _numbered(calls: Sequence[ToolCall], numbers: Iterator[int]) -> list[ToolCall]:
    return [
        call if call.call_id else replace(call, call_id=f"call_{next(numbers)}") for call in calls
    ]
