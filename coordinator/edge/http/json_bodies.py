"""JSON bodies both ways. Owns which field an error names, and what a body may not hold; reads no socket."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, TypeVar

import orjson
from pydantic import BaseModel, ValidationError
from starlette.responses import Response

from coordinator.edge.http.field_errors import most_telling, refusal
from coordinator.edge.http.limits import MAX_JSON_DEPTH
from protocol.errors import InvalidRequest

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

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
    for _ in range(MAX_JSON_DEPTH):
        if not level:
            return
        level = [inner for node in level for inner in _containers(_values(node))]
    message = f"{name} is nested more than {MAX_JSON_DEPTH} levels deep"
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


def _invalid(fields: dict[str, Any], error: ValidationError) -> InvalidRequest:
    entries = error.errors(include_url=False)
    first = most_telling(entries)
    path = _path(fields, first["loc"], is_missing=first["type"] == "missing")
    others = [entry["type"] for entry in entries if _path(fields, entry["loc"]) == path]
    return refusal(first, path, others)


def _path(fields: object, location: Sequence[str | int], *, is_missing: bool = False) -> str:
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


def body_schema(model: type[BaseModel]) -> dict[str, Any]:
    """What OpenAPI says of a body that the route parses itself, to bound it first; its `$defs` still have to be
    hoisted to where its references point."""
    schema = model.model_json_schema(ref_template="#/components/schemas/{model}")
    return {"requestBody": {"required": True, "content": {"application/json": {"schema": schema}}}}


def json_response(content: object) -> Response:
    """A JSON answer."""
    return Response(orjson.dumps(content), media_type="application/json")
