"""OpenAI's bodies to neutral requests. Owns what a message, a prompt or a field of sampling means; checks what types cannot.

The inverse, neutral answers to OpenAI's bytes, is `dialects.py`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import orjson

from coordinator.edge.answers.sampling import SamplingWishes
from coordinator.edge.http.body_shape import check_shape
from coordinator.edge.text.chat_template import ALLOWED_KWARGS
from coordinator.edge.text.prompts import Conversation, Turn
from protocol.errors import InvalidRequest

if TYPE_CHECKING:
    from coordinator.edge.apis.openai.types import (
        ChatRequest,
        CompletionRequest,
        GenerationRequest,
        Message,
        TokenizeRequest,
    )


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
    """What a completion says of sampling."""
    return _wishes(asked, asked.max_tokens, "max_tokens", asked.logprobs)


def _wishes(
    asked: GenerationRequest, max_tokens: int | None, max_tokens_field: str, logprobs: int | None
) -> SamplingWishes:
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
        stop_token_ids=asked.stop_token_ids or (),
        ignore_eos=bool(asked.ignore_eos),
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
    for name, value in kwargs.items():
        if name not in ALLOWED_KWARGS or not isinstance(value, bool | int | float | str | None):
            path = f"chat_template_kwargs.{name}"
            raise InvalidRequest(f"{path} is not supported by this server", path)
    continued = bool(request.continue_final_message)
    if continued and request.add_generation_prompt:
        message = "continue_final_message and add_generation_prompt exclude each other"
        raise InvalidRequest(message, "continue_final_message")
    messages = request.messages or []
    return Conversation(
        turns=[_turn(message, index) for index, message in enumerate(messages)],
        tools=_tools(request),
        template_kwargs=kwargs,
        add_generation_prompt=request.add_generation_prompt is not False,
        continue_final_turn=continued,
        add_special_tokens=bool(request.add_special_tokens),
    )


def _tools(request: ChatRequest | TokenizeRequest) -> list[dict[str, Any]] | None:
    """Tools go to templates that know them; with tool_choice "none" the model need not see them."""
    return None if getattr(request, "tool_choice", None) == "none" else request.tools or None


def _turn(message: Message, index: int) -> Turn:
    path = f"messages[{index}]"
    fields = {**(message.model_extra or {})}
    if isinstance(fields.get("tool_calls"), list):
        fields["tool_calls"] = [
            _tool_call(call, f"{path}.tool_calls[{position}]")
            for position, call in enumerate(fields["tool_calls"])
        ]
    elif not fields.get("tool_calls"):
        fields.pop("tool_calls", None)
    return Turn(message.role, _content(message, path), fields)


def _content(message: Message, path: str) -> str:
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
        if part.text is None:
            raise InvalidRequest(f"{name}.text is missing", f"{name}.text")
    return "\n".join(part.text or "" for part in content)


def _tool_call(call: object, path: str) -> dict[str, Any]:
    """Templates want the arguments of an earlier call as an object; clients send JSON text. What a model wrote
    is not always such: then the text is the one entry of an object, and the conversation goes on."""
    function = call.get("function") if isinstance(call, dict) else None
    if not isinstance(call, dict) or not isinstance(function, dict):
        raise InvalidRequest(f"{path}.function is missing", f"{path}.function")
    arguments = function.get("arguments")
    if isinstance(arguments, str):
        check_shape(arguments.encode(), f"{path}.function.arguments")
        arguments = _arguments(arguments)
    return call | {"function": function | {"arguments": arguments}}


def _arguments(text: str) -> dict[str, Any]:
    try:
        arguments = orjson.loads(text or "{}")
    except orjson.JSONDecodeError:
        return {"arguments": text}
    return arguments if isinstance(arguments, dict) else {"arguments": text}
