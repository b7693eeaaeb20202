"""Messages and prompts to token ids. Owns what a template sees of a request; long inputs leave the event loop."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeVar

import orjson

from coordinator.edge.text.chat_template import ALLOWED_KWARGS, ChatTemplate, continue_from
from protocol.errors import InvalidRequest

if TYPE_CHECKING:
    from collections.abc import Callable

    from coordinator.edge.apis.openai.types import (
        ChatRequest,
        CompletionRequest,
        Message,
        TokenizeRequest,
    )
    from coordinator.edge.http.limits import EdgeLimits
    from coordinator.edge.text.tokenizer import TextTokenizer
    from protocol.clock import Clock

Result = TypeVar("Result")


@dataclass(frozen=True, slots=True)
class PromptReader:
    """Turns what a client sent into what a worker takes."""

    tokenizer: TextTokenizer
    template: ChatTemplate
    limits: EdgeLimits
    clock: Clock

    async def chat(self, request: ChatRequest | TokenizeRequest) -> list[int]:
        """Token ids of a conversation; the template writes its own special tokens."""
        context = template_context(request)
        messages = context["messages"]
        size = sum(len(message["content"]) for message in messages)

        def read() -> list[int]:
            text = self.template.render(context, clock=self.clock, limits=self.limits)
            if request.continue_final_message:
                text = continue_from(text, messages[-1]["content"])
            return self.tokenizer.encode(text, add_special_tokens=bool(request.add_special_tokens))

        return await self._run(read, size)

    async def text(self, text: str, *, add_special_tokens: bool) -> list[int]:
        """Token ids of plain text."""
        return await self._run(
            lambda: self.tokenizer.encode(text, add_special_tokens=add_special_tokens), len(text)
        )

    async def completion(self, request: CompletionRequest) -> list[list[int]]:
        """One list of token ids for each prompt of any of the four forms."""
        special = request.add_special_tokens is not False
        return [
            await self.text(prompt, add_special_tokens=special)
            if isinstance(prompt, str)
            else prompt
            for prompt in prompts_of(request)
        ]

    async def _run(self, work: Callable[[], Result], size: int) -> Result:
        if size <= self.limits.inline_text_bytes:
            return work()
        return await asyncio.to_thread(work)


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


def template_context(request: ChatRequest | TokenizeRequest) -> dict[str, Any]:
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
    return kwargs | {
        "messages": [_message(message, index) for index, message in enumerate(messages)],
        "tools": _tools(request),
        "documents": None,
        "add_generation_prompt": not continued and request.add_generation_prompt is not False,
    }


def _tools(request: ChatRequest | TokenizeRequest) -> list[dict[str, Any]] | None:
    """Tools go to templates that know them; with tool_choice "none" the model need not see them."""
    return None if getattr(request, "tool_choice", None) == "none" else request.tools or None


def _message(message: Message, index: int) -> dict[str, Any]:
    path = f"messages[{index}]"
    fields = {**(message.model_extra or {})}
    if isinstance(fields.get("tool_calls"), list):
        fields["tool_calls"] = [
            _tool_call(call, f"{path}.tool_calls[{position}]")
            for position, call in enumerate(fields["tool_calls"])
        ]
    elif not fields.get("tool_calls"):
        fields.pop("tool_calls", None)
    return fields | {"role": message.role, "content": _content(message, path)}


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
    """Templates want the arguments of an earlier call as an object; clients send JSON text."""
    function = call.get("function") if isinstance(call, dict) else None
    if not isinstance(call, dict) or not isinstance(function, dict):
        raise InvalidRequest(f"{path}.function is missing", f"{path}.function")
    arguments = function.get("arguments")
    if isinstance(arguments, str):
        try:
            arguments = orjson.loads(arguments or "{}")
        except orjson.JSONDecodeError as error:
            name = f"{path}.function.arguments"
            raise InvalidRequest(f"{name} is not valid JSON: {error}", name) from error
    return call | {"function": function | {"arguments": arguments}}
