"""Bytes of a body to a checked request. Owns what OpenAI's clients are refused; renders and tokenizes nothing."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import orjson

from coordinator.edge.apis.openai.types import (
    UNSUPPORTED,
    ChatRequest,
    CompletionRequest,
    DetokenizeRequest,
    TokenizeRequest,
)
from coordinator.edge.http import limits
from coordinator.edge.http.field_errors import LONG_ARRAY
from coordinator.edge.http.json_bodies import check_fields, parse_object
from protocol.errors import ContextLengthExceeded, InvalidRequest

if TYPE_CHECKING:
    from collections.abc import Collection

    from coordinator.edge.apis.openai.types import GenerationRequest

UNSUPPORTED_CODE = "unsupported_parameter"


def parse_chat(body: bytes) -> ChatRequest:
    """POST /v1/chat/completions, everything checked that needs no model."""
    fields = parse_object(body)
    refuse_unsupported(fields)
    request = check_fields(fields, ChatRequest)
    _check_stream(request)
    if request.top_logprobs and not request.logprobs:
        raise InvalidRequest("top_logprobs needs logprobs: true", "top_logprobs")
    _check_tools(request)
    return request


def parse_completion(body: bytes, max_model_len: int) -> CompletionRequest:
    """POST /v1/completions, likewise."""
    fields = parse_object(body)
    refuse_unsupported(fields, supported=("echo",))
    _check_prompt_sizes(fields.get("prompt"), max_model_len)
    request = check_fields(fields, CompletionRequest)
    _check_stream(request)
    if request.echo and request.logprobs is not None:
        message = "logprobs of the prompt are not supported: ask without echo or without logprobs"
        raise InvalidRequest(message, "logprobs")
    return request


def parse_tokenize(body: bytes) -> TokenizeRequest:
    """POST /tokenize: exactly one of `prompt` and `messages`."""
    request = check_fields(parse_object(body), TokenizeRequest)
    if (request.prompt is None) == (request.messages is None):
        raise InvalidRequest("give either prompt or messages", "prompt")
    return request


def parse_detokenize(body: bytes) -> DetokenizeRequest:
    """POST /detokenize: token ids."""
    return check_fields(parse_object(body), DetokenizeRequest)


def _check_prompt_sizes(prompt: object, max_model_len: int) -> None:
    """Counted first: types are checked element by element, in one go that nothing can interrupt."""
    if not isinstance(prompt, list) or not prompt:
        return
    are_ids = isinstance(prompt[0], int)
    if not are_ids and len(prompt) > limits.MAX_PROMPTS:
        told = f"prompt must have at most {limits.MAX_PROMPTS} prompts, but has {len(prompt)}"
        raise InvalidRequest(told, "prompt", LONG_ARRAY)
    lists = [prompt] if are_ids else [item for item in prompt if isinstance(item, list)]
    longest = max(map(len, lists), default=0)
    if longest > max_model_len:
        told = f"your prompt has {longest} tokens."
        raise ContextLengthExceeded(max_model_len, told, "prompt")


def refuse_unsupported(fields: dict[str, Any], supported: Collection[str] = ()) -> None:
    """Raise InvalidRequest for a known field whose value this server cannot honour."""
    for name, asks_for_nothing in UNSUPPORTED.items():
        if name in fields and name not in supported and not asks_for_nothing(fields[name]):
            raise InvalidRequest(f"{name} is not supported by this server", name, UNSUPPORTED_CODE)


def _check_stream(request: GenerationRequest) -> None:
    if request.stream_options is not None and not request.stream:
        raise InvalidRequest("stream_options needs stream: true", "stream_options")


def _check_tools(request: ChatRequest) -> None:
    if request.tools and len(orjson.dumps(request.tools)) > limits.MAX_TOOLS_BYTES:
        told = f"tools must take at most {limits.MAX_TOOLS_BYTES} bytes"
        raise InvalidRequest(told, "tools", LONG_ARRAY)
