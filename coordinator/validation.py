"""Bytes of a body to a checked request. Owns which field an error names; renders and tokenizes nothing."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, TypeVar

import orjson
from pydantic import BaseModel, ValidationError

from coordinator import limits
from coordinator.openai_types import UNSUPPORTED, ChatRequest, CompletionRequest
from engine.api.errors import InvalidRequest

if TYPE_CHECKING:
    from collections.abc import Collection, Iterator, Sequence

    from coordinator.openai_types import GenerationRequest

Model = TypeVar("Model", bound=BaseModel)


def parse_object(body: bytes) -> dict[str, Any]:
    """A JSON object without NUL characters and not too deep; raises InvalidRequest."""
    try:
        fields = orjson.loads(body)
    except orjson.JSONDecodeError as error:
        raise InvalidRequest(f"the body is not valid JSON: {error}", "body") from error
    if not isinstance(fields, dict):
        raise InvalidRequest("the body must be a JSON object", "body")
    for path, value in _walk(fields):
        if "\0" in value:
            raise InvalidRequest(f"{path} contains a NUL character", path)
    return fields


def _walk(root: dict[str, Any]) -> Iterator[tuple[str, str]]:
    """Every text of a document with its path; numbers are passed over quickly."""
    stack: list[tuple[str, Any, int]] = [("", root, 1)]
    while stack:
        path, node, depth = stack.pop()
        if depth > limits.MAX_JSON_DEPTH:
            message = f"the body is nested more than {limits.MAX_JSON_DEPTH} levels deep"
            raise InvalidRequest(message, path.split(".")[0].split("[")[0])
        for part, value in _children(node):
            inner = f"{path}[{part}]" if isinstance(part, int) else f"{path}.{part}".lstrip(".")
            if isinstance(value, dict | list):
                stack.append((inner, value, depth + 1))
            else:
                yield inner, value


def _children(node: Any) -> Iterator[tuple[str | int, Any]]:
    pairs = node.items() if isinstance(node, dict) else enumerate(node)
    return ((part, value) for part, value in pairs if isinstance(value, str | dict | list))


def check_fields(fields: dict[str, Any], model: type[Model]) -> Model:
    """The typed request, or InvalidRequest naming the first wrong field."""
    try:
        return model.model_validate(fields)
    except ValidationError as error:
        raise _invalid(fields, error) from error


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


def parse_completion(body: bytes) -> CompletionRequest:
    """POST /v1/completions, likewise."""
    fields = parse_object(body)
    refuse_unsupported(fields, supported=("echo",))
    request = check_fields(fields, CompletionRequest)
    _check_stream(request)
    if request.echo and request.logprobs is not None:
        message = "logprobs of the prompt are not supported: ask without echo or without logprobs"
        raise InvalidRequest(message, "logprobs")
    return request


def refuse_unsupported(fields: dict[str, Any], supported: Collection[str] = ()) -> None:
    """Raise InvalidRequest for a known field whose value this server cannot honour."""
    for name, asks_for_nothing in UNSUPPORTED.items():
        if name in fields and name not in supported and not asks_for_nothing(fields[name]):
            raise InvalidRequest(f"{name} is not supported by this server", name)


def _check_stream(request: GenerationRequest) -> None:
    if request.stream_options is not None and not request.stream:
        raise InvalidRequest("stream_options needs stream: true", "stream_options")


def _check_tools(request: ChatRequest) -> None:
    if request.tools and len(orjson.dumps(request.tools)) > limits.MAX_TOOLS_BYTES:
        raise InvalidRequest(f"tools take more than {limits.MAX_TOOLS_BYTES} bytes", "tools")


def _invalid(fields: dict[str, Any], error: ValidationError) -> InvalidRequest:
    first = max(error.errors(include_url=False), key=lambda entry: len(entry["loc"]))
    path = _path(fields, first["loc"], is_missing=first["type"] == "missing")
    message = str(first["msg"]).removeprefix("Value error, ")
    return InvalidRequest(f"{path}: {message}", path)


def _path(fields: object, location: Sequence[str | int], *, is_missing: bool) -> str:
    """pydantic's location without its union branches: the part that leads into the body."""
    path, node = "", fields
    for position, part in enumerate(location):
        if isinstance(part, int) and isinstance(node, list) and part < len(node):
            path, node = f"{path}[{part}]", node[part]
        elif isinstance(part, str) and isinstance(node, dict) and part in node:
            path, node = f"{path}.{part}".lstrip("."), node[part]
        elif is_missing and position == len(location) - 1:
            path = f"{path}.{part}".lstrip(".")
    return path or "body"
