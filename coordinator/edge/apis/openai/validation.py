"""Bytes of a body to a checked request. Owns which field an error names; renders and tokenizes nothing."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, TypeVar

import orjson
from pydantic import BaseModel, ValidationError

from coordinator.edge.apis.openai.types import UNSUPPORTED, ChatRequest, CompletionRequest
from coordinator.edge.http import limits
from protocol.errors import InvalidRequest

if TYPE_CHECKING:
    from collections.abc import Collection, Iterable, Sequence

    from coordinator.edge.apis.openai.types import GenerationRequest

Model = TypeVar("Model", bound=BaseModel)


def parse_object(body: bytes) -> dict[str, Any]:
    """A JSON object without NUL characters and not too deep; raises InvalidRequest."""
    try:
        fields = orjson.loads(body)
    except orjson.JSONDecodeError as error:
        raise InvalidRequest(f"the body is not valid JSON: {error}", "body") from error
    if not isinstance(fields, dict):
        raise InvalidRequest("the body must be a JSON object", "body")
    for name, value in fields.items():
        _check_depth(name, value)
    if b"\\u0000" in body:  # a raw NUL is not valid JSON
        _check_no_nul(fields)
    return fields


def _check_depth(name: str, value: object) -> None:
    """Level by level: no recursion, and quick for long flat lists."""
    level = _containers([value])
    for _ in range(limits.MAX_JSON_DEPTH):
        if not level:
            return
        level = [inner for node in level for inner in _containers(_values(node))]
    message = f"{name} is nested more than {limits.MAX_JSON_DEPTH} levels deep"
    raise InvalidRequest(message, name)


def _containers(values: Iterable[object]) -> list[dict[str, Any] | list[Any]]:
    return [value for value in values if isinstance(value, dict | list)]


def _values(node: dict[str, Any] | list[Any]) -> Iterable[Any]:
    return node.values() if isinstance(node, dict) else node


def _check_no_nul(fields: dict[str, Any]) -> None:
    stack: list[tuple[str, Any]] = [("", fields)]
    while stack:
        path, node = stack.pop()
        if isinstance(node, str) and "\0" in node:
            raise InvalidRequest(f"{path} contains a NUL character", path)
        if isinstance(node, dict):
            stack += [(f"{path}.{name}".lstrip("."), value) for name, value in node.items()]
        elif isinstance(node, list):
            stack += [(f"{path}[{index}]", value) for index, value in enumerate(node)]


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
