"""OpenAI's bodies to neutral requests. Owns what its clients are refused, and what a message, a prompt or a field of
sampling means; renders and tokenizes nothing.

    bytes ─► parse_chat: ChatRequest (`types.py`: types and ranges) ─► conversation_of, chat_wishes ─► neutral

The inverse, neutral answers to OpenAI's bytes, is `dialects.py`.
"""

from __future__ import annotations

import json
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from coordinator.edge.answers.answer import SamplingWishes
from coordinator.edge.answers.tools import (
    Tool,
    ToolChoice,
    ToolUse,
    check_kind,
    check_size,
    check_tools,
    function_tool,
    only_these,
)
from coordinator.edge.apis.openai.constraints import constraint_of
from coordinator.edge.apis.openai.types import (
    UNSUPPORTED,
    ChatRequest,
    CompletionRequest,
    DetokenizeRequest,
    TokenizeRequest,
)
from coordinator.edge.http import limits
from coordinator.edge.http.bodies import check_fields, check_shape, parse_object
from coordinator.edge.http.field_errors import LONG_ARRAY, UNSUPPORTED_CODE, WRONG_TYPE
from coordinator.edge.text.conversation import Conversation, ToolCall, Turn
from coordinator.edge.text.efforts import effort_hints
from protocol.errors import ContextLengthExceeded, InvalidRequest

if TYPE_CHECKING:
    from collections.abc import Collection, Iterator, Sequence

    from coordinator.edge.apis.openai.types import ContentPart, GenerationRequest, Message

REASONING = ("reasoning_content", "reasoning")
UNSUPPORTED_OF_MESSAGES = ("audio", "function_call", "prefix", "partial")
"""Known fields of messages that would change what the model sees; `tool_calls` takes the place of the second,
`continue_final_message` that of the last two."""


def parse_chat(body: bytes) -> tuple[ChatRequest, Conversation, ToolUse]:
    """POST /v1/chat/completions, everything checked that needs no model; and what the chat template is to see."""
    fields = parse_object(body)
    refuse_unsupported(fields, supported=("documents",))
    request = check_fields(fields, ChatRequest)
    _check_stream(request)
    if request.top_logprobs and not request.logprobs:
        raise InvalidRequest("top_logprobs needs logprobs: true", "top_logprobs")
    return request, conversation_of(request), tools_of(request)


def parse_completion(body: bytes, max_model_len: int) -> CompletionRequest:
    """POST /v1/completions, likewise."""
    fields = parse_object(body)
    refuse_unsupported(fields, supported=("echo",))
    check_sizes(fields.get("prompt"), max_model_len, "prompt", limits.MAX_PROMPTS)
    request = check_fields(fields, CompletionRequest)
    _check_stream(request)
    return request


def parse_tokenize(body: bytes) -> tuple[TokenizeRequest, Conversation | None]:
    """POST /tokenize: exactly one of `prompt` and `messages`."""
    request = check_fields(parse_object(body), TokenizeRequest)
    if (request.prompt is None) == (request.messages is None):
        raise InvalidRequest("give either prompt or messages", "prompt")
    return request, conversation_of(request) if request.prompt is None else None


def parse_detokenize(body: bytes) -> DetokenizeRequest:
    """POST /detokenize: token ids."""
    return check_fields(parse_object(body), DetokenizeRequest)


def check_sizes(prompt: object, max_model_len: int, param: str, most: int) -> None:
    """Counted first: types are checked element by element, in one go that nothing can interrupt."""
    if not isinstance(prompt, list) or not prompt:
        return
    are_ids = isinstance(prompt[0], int | float)
    if not are_ids and len(prompt) > most:
        told = f"{param} must have at most {most} prompts, but has {len(prompt)}"
        raise InvalidRequest(told, param, LONG_ARRAY)
    lists = [prompt] if are_ids else [item for item in prompt if isinstance(item, list)]
    longest = max(map(len, lists), default=0)
    if longest > max_model_len:
        told = f"your {param} has {longest} tokens."
        raise ContextLengthExceeded(max_model_len, told, param)


def refuse_unsupported(fields: dict[str, Any], supported: Collection[str] = ()) -> None:
    """Raise InvalidRequest for a known field whose value this server cannot honour."""
    for name, asks_for_nothing in UNSUPPORTED.items():
        if name in fields and name not in supported and not asks_for_nothing(fields[name]):
            raise InvalidRequest(f"{name} is not supported by this server", name, UNSUPPORTED_CODE)


def _check_stream(request: GenerationRequest) -> None:
    if request.stream_options is not None and not request.stream:
        raise InvalidRequest("stream_options needs stream: true", "stream_options")


def tools_of(asked: ChatRequest) -> ToolUse:
    """The functions that an answer may call."""
    check_size(asked.tools or ())
    use = ToolUse(
        tuple(_functions(asked.tools or ())), is_parallel=asked.parallel_tool_calls is not False
    )
    choice = asked.tool_choice
    if choice is None:
        return check_tools(use)
    if isinstance(choice, str):
        wanted = ToolChoice.REQUIRED if choice == "any" else ToolChoice(choice)
        return check_tools(replace(use, choice=wanted))
    return check_tools(_chosen(use, choice))


def _functions(tools: Sequence[dict[str, Any]]) -> Iterator[Tool]:
    for index, tool in enumerate(tools):
        check_kind(tool.get("type"), (None, "function"), f"tools[{index}].type")
        yield function_tool(tool, f"tools[{index}]")


def _chosen(use: ToolUse, choice: dict[str, Any]) -> ToolUse:
    """`{"type": "function", "function": {"name": …}}`, or those of the tools that may be called."""
    function, allowed = choice.get("function"), choice.get("allowed_tools")
    if isinstance(function, dict) and isinstance(function.get("name"), str):
        return replace(use, choice=ToolChoice.REQUIRED, only=function["name"])
    if not isinstance(allowed, dict) or not isinstance(allowed.get("tools"), list):
        told = "tool_choice must name a function, as {type: function, function: {name: …}}"
        raise InvalidRequest(told, "tool_choice")
    path = "tool_choice.allowed_tools"
    functions = [
        tool.get("function") if isinstance(tool, dict) else tool for tool in allowed["tools"]
    ]
    names = [
        (
            function.get("name") if isinstance(function, dict) else function,
            f"{path}.tools[{index}].function.name",
        )
        for index, function in enumerate(functions)
    ]
    return only_these(use, names, allowed.get("mode"), path)


def chat_wishes(asked: ChatRequest) -> SamplingWishes:
    """What a chat says of sampling."""
    is_new_name = asked.max_completion_tokens is not None
    return _wishes(
        asked,
        asked.max_completion_tokens or asked.max_tokens,
        "max_completion_tokens" if is_new_name else "max_tokens",
        (asked.top_logprobs or 0) if asked.logprobs else None,
    )


def completion_wishes(asked: CompletionRequest) -> SamplingWishes:
    """What a completion says of sampling; what is echoed is scored like what is written."""
    wishes = _wishes(asked, asked.max_tokens, "max_tokens", asked.logprobs)
    asked_for = [asked.prompt_logprobs, asked.logprobs if asked.echo else None]
    most = max((count for count in asked_for if count is not None), default=None)
    return replace(wishes, prompt_logprobs=most)


def check_scores(prompts: Sequence[list[int]], num_top: int | None, times: int) -> None:
    """Raise InvalidRequest where the log-probabilities of all prompts, told so many times, are too many."""
    if num_top is None:
        return
    count = sum(map(len, prompts)) * (1 + num_top) * times
    if count > limits.MAX_PROMPT_LOGPROBS:
        told = f"log-probabilities of prompts must be at most {limits.MAX_PROMPT_LOGPROBS} in one answer, but are {count}"
        raise InvalidRequest(told, "prompt", LONG_ARRAY)


def _wishes(
    asked: GenerationRequest, max_tokens: int | None, max_tokens_field: str, logprobs: int | None
) -> SamplingWishes:
    constraint, constraint_field = constraint_of(asked)
    return SamplingWishes(
        max_tokens=max_tokens,
        max_tokens_field=max_tokens_field,
        min_tokens=asked.min_tokens or 0,
        temperature=asked.temperature,
        top_p=asked.top_p,
        top_k=asked.top_k,
        min_p=asked.min_p,
        presence_penalty=asked.presence_penalty or 0.0,
        frequency_penalty=asked.frequency_penalty or 0.0,
        repetition_penalty=asked.repetition_penalty,
        logit_bias=asked.logit_bias or {},
        seed=asked.seed,
        logprobs=logprobs,
        prompt_logprobs=asked.prompt_logprobs,
        stop_token_ids=asked.stop_token_ids or (),
        ignore_eos=bool(asked.ignore_eos),
        constraint=constraint,
        constraint_field=constraint_field,
    )


def prompts_of(request: CompletionRequest) -> list[str | list[int]]:
    """The prompts of a completion, one after another."""
    prompt = request.prompt
    if isinstance(prompt, str):
        return [prompt]
    if not prompt:
        raise InvalidRequest("the prompt is empty", "prompt")
    many: list[str] = [item for item in prompt if isinstance(item, str)]
    lists: list[list[int]] = [item for item in prompt if isinstance(item, list)]
    return [*many, *lists] or [[item for item in prompt if isinstance(item, int)]]


def conversation_of(request: ChatRequest | TokenizeRequest) -> Conversation:
    """What the template may see. Raises InvalidRequest for what it may not."""
    kwargs = request.chat_template_kwargs or {}
    continued = bool(request.continue_final_message)
    if continued and request.add_generation_prompt:
        message = "continue_final_message and add_generation_prompt exclude each other"
        raise InvalidRequest(message, "continue_final_message")
    messages = request.messages or []
    effort = getattr(request, "reasoning_effort", None)
    return Conversation(
        turns=[_turn(message, index) for index, message in enumerate(messages)],
        tools=_tools(request),
        documents=request.documents or None,
        template_kwargs=kwargs,
        template_hints=effort_hints(effort, "reasoning_effort"),
        add_generation_prompt=request.add_generation_prompt is not False,
        continue_final_turn=continued,
        add_special_tokens=bool(request.add_special_tokens),
    )


def _tools(request: ChatRequest | TokenizeRequest) -> list[dict[str, Any]] | None:
    """Tools go to templates that know them; with tool_choice "none" the model need not see them."""
    return None if getattr(request, "tool_choice", None) == "none" else request.tools or None


def _turn(message: Message, index: int) -> Turn:
    """A message; fields that are null or empty say nothing."""
    path = f"messages[{index}]"
    others = {name: value for name, value in (message.model_extra or {}).items() if value}
    for name in UNSUPPORTED_OF_MESSAGES:
        if name in others:
            raise InvalidRequest(f"{path}.{name} is not supported by this server", f"{path}.{name}")
    calls = others.pop("tool_calls", None)
    refusal = _optional_text(others.pop("refusal", None), f"{path}.refusal")
    thoughts = [_optional_text(others.pop(name, None), f"{path}.{name}") for name in REASONING]
    content = _content(message, path, refusal)
    return Turn(
        message.role,
        content,
        others,
        _calls(calls, f"{path}.tool_calls"),
        next(filter(None, thoughts), ""),
        path,
    )


def _optional_text(value: object, path: str) -> str:
    if not isinstance(value, str | None):
        raise InvalidRequest(f"{path} must be a string", path, WRONG_TYPE)
    return value or ""


def _content(message: Message, path: str, refusal: str) -> str | tuple[str, ...]:
    """A refusal is what an assistant said, after what else it said."""
    if not refusal:
        return _said(message, path)
    said = _said(message, path) if message.content else ()
    return (*([said] if isinstance(said, str) else said), refusal) if said else refusal


def _said(message: Message, path: str) -> str | tuple[str, ...]:
    content = message.content
    if content is None:
        if message.role in ("assistant", "tool"):
            return ""
        raise InvalidRequest(f"{path}.content is missing", f"{path}.content")
    if isinstance(content, str):
        return content
    for position, part in enumerate(content):
        name = f"{path}.content[{position}]"
        if part.type not in ("text", "input_text", "output_text", "refusal"):
            raise InvalidRequest(f"{name}: parts of type {part.type!r} are not supported", name)
        if _text_of(part) is None:
            raise InvalidRequest(f"{name}.text is missing", f"{name}.text")
    return tuple(_text_of(part) or "" for part in content) or ""


def _text_of(part: ContentPart) -> str | None:
    """OpenAI's parts of type refusal have their text in `refusal`."""
    refusal = (part.model_extra or {}).get("refusal")
    return part.text if part.text is not None or not isinstance(refusal, str) else refusal


def _calls(calls: object, path: str) -> tuple[ToolCall, ...]:
    if not isinstance(calls, list | None):
        raise InvalidRequest(f"{path} must be an array", path, WRONG_TYPE)
    return tuple(_tool_call(call, f"{path}[{index}]") for index, call in enumerate(calls or ()))


def _tool_call(call: object, path: str) -> ToolCall:
    """An earlier call. Clients send its arguments as the text that the model wrote, some as an object."""
    function = call.get("function") if isinstance(call, dict) else None
    if not isinstance(call, dict) or not isinstance(function, dict):
        raise InvalidRequest(f"{path}.function is missing", f"{path}.function")
    name, arguments, call_id = function.get("name"), function.get("arguments"), call.get("id")
    if not isinstance(name, str):
        raise InvalidRequest(f"{path}.function.name must be a string", f"{path}.function.name")
    if isinstance(arguments, str):
        check_shape(arguments.encode(), f"{path}.function.arguments")
    elif arguments is None:
        arguments = "{}"
    else:
        arguments = json.dumps(arguments, ensure_ascii=False)
    return ToolCall(name, arguments, call_id if isinstance(call_id, str) else "")
