"""A request's body, from bytes to checked fields. Owns 413, 415, 408 and 499, how many bytes of all bodies together wait in
memory, how much structure a body may have, and which field an error names.

    request ─► BodyReader.read: bytes within limits ─► check_shape ─► parse (an API's, by parse_object and check_fields)

A few bytes of JSON can cost a hundred times as much memory and time when they become objects, and one parser call
that builds a million of them stops every other thread. So structure is counted before anything is built: escapes are
taken out, what stands between quotes is left out, and the rest is counted with the speed of memory. For valid JSON the
counts are exact; what is not valid the parser refuses afterwards.
"""

from __future__ import annotations

import asyncio
import functools
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, NamedTuple, TypeVar

import orjson
from pydantic import BaseModel, ValidationError
from starlette.requests import ClientDisconnect
from starlette.responses import Response

from coordinator.edge.http.error_replies import BodyEncoded, BodyTooLarge, BodyTooSlow, ClientLeft
from coordinator.edge.http.field_errors import most_telling, refusal
from coordinator.edge.http.limits import MAX_JSON_DEPTH
from coordinator.edge.http.misspelt import check_spelling
from protocol.errors import InvalidRequest, Overloaded

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence

    from starlette.requests import Request

    from coordinator.edge.http.limits import EdgeLimits
    from coordinator.edge.http.side_work import SideWork

INLINE_BODY_BYTES = 16 * 1024
MAX_CONTAINERS = 16 * 1024
MAX_STRINGS = 64 * 1024
MAX_VALUES = 64 * 1024
MAX_IDS = 1200 * 1024
"""Values of a body that may hold lists of token ids. Others are walked, written and read again, one call of C each."""
READ_BY_MODELS = frozenset({"prompt", "messages", "input", "instructions", "system", "documents"})
"""Fields of any text: a NUL has a token as any other character, and what a tool read from a file may hold one. Elsewhere it is
in a name, and no name has one."""
UNKNOWN = -1
STREAMED, ERROR_SCHEMA = "x-streamed", "x-error"
"""What a route tells of itself besides what OpenAPI has a place for: the media type of its stream, its errors' schema."""
Model = TypeVar("Model", bound=BaseModel)
Parsed = TypeVar("Parsed")


class BodyReader:
    """Every body of one application. `room` counts those that are being read or parsed."""

    def __init__(self, limits: EdgeLimits, side: SideWork) -> None:
        self.room = BodyRoom(limits.max_bodies_bytes)
        self._limits = limits
        self._side = side

    async def read(
        self, request: Request, parse: Callable[[bytes], Parsed], most_values: int = MAX_VALUES
    ) -> Parsed:
        """The parsed body; large ones are parsed off the event loop, and none that is all brackets."""
        with self.room.hold() as take:
            body = await read_body(request, self._limits, take)

            def checked() -> Parsed:
                check_shape(body, most_values=most_values)
                return parse(body)

            if len(body) <= INLINE_BODY_BYTES:
                return checked()
            return await self._side.run(checked)


class BodyRoom:
    """`used` bytes of at most `most` are in bodies that are being read or parsed."""

    def __init__(self, most: int) -> None:
        self.most = most
        self.used = 0

    @contextmanager
    def hold(self) -> Iterator[Callable[[int], None]]:
        """Room for one body, taken as it grows and given back at the end. Taking raises Overloaded."""
        held = 0

        def take(size: int) -> None:
            nonlocal held
            if self.used + size > self.most:
                raise Overloaded("too many large bodies are being read at once", 1.0)
            self.used += size
            held += size

        try:
            yield take
        finally:
            self.used -= held


async def read_body(
    request: Request, limits: EdgeLimits, take: Callable[[int], None] = lambda _: None
) -> bytes:
    """The body, whose size is told to `take` as it grows; raises BodyEncoded, BodyTooLarge, BodyTooSlow or ClientLeft."""
    encoding = request.headers.get("content-encoding", "").strip()
    if encoding.lower() not in ("", "identity"):
        told = f"Content-Encoding {encoding[:20]!r} is not taken: send the body as it is"
        raise BodyEncoded(told, "Content-Encoding")
    declared = request.headers.get("content-length", "")
    if declared.isdecimal() and int(declared) > limits.max_body_bytes:
        raise _too_large(limits)
    pieces: list[bytes] = []
    size = 0
    try:
        async with asyncio.timeout(limits.body_deadline_s):
            async for piece in request.stream():
                size += len(piece)
                if size > limits.max_body_bytes:
                    raise _too_large(limits)
                take(len(piece))
                pieces.append(piece)
    except TimeoutError as error:
        message = f"the body did not arrive within {limits.body_deadline_s:g} s"
        raise BodyTooSlow(message, "body") from error
    except ClientDisconnect as error:
        raise ClientLeft(f"the client left after {size} bytes of its body") from error
    return b"".join(pieces)


def _too_large(limits: EdgeLimits) -> BodyTooLarge:
    return BodyTooLarge(f"the body is larger than {limits.max_body_bytes} bytes", "body")


class BodyShape(NamedTuple):
    """Objects and arrays, strings (keys too), and values that a comma or bracket comes before."""

    containers: int
    strings: int
    values: int


def shape_of(body: bytes) -> BodyShape:
    """The counts; with more than `MAX_STRINGS` strings the others are not taken."""
    plain = body.replace(b"\\\\", b"").replace(b'\\"', b"") if b"\\" in body else body
    strings = plain.count(b'"') // 2
    if strings > MAX_STRINGS:
        return BodyShape(UNKNOWN, strings, UNKNOWN)
    structure = b"".join(plain.split(b'"')[::2])
    containers = structure.count(b"[") + structure.count(b"{")
    return BodyShape(containers, strings, containers + structure.count(b","))


def check_shape(body: bytes, param: str = "body", most_values: int = MAX_VALUES) -> None:
    """Raise InvalidRequest for more structure than any request needs."""
    shape = shape_of(body)
    for name, number, limit in (
        ("strings", shape.strings, MAX_STRINGS),
        ("objects and arrays", shape.containers, MAX_CONTAINERS),
        ("values", shape.values, most_values),
    ):
        if number > limit:
            raise InvalidRequest(f"{param} has {number} {name}, more than {limit}", param)


def parse_object(body: bytes) -> dict[str, Any]:
    """A JSON object without NUL characters, but for what models read, and not too deep; raises InvalidRequest."""
    try:
        fields = orjson.loads(body)
    except orjson.JSONDecodeError as error:
        raise InvalidRequest(f"the body is not valid JSON: {error}", "body") from error
    if not isinstance(fields, dict):
        raise InvalidRequest("the body must be a JSON object", "body")
    for name, value in fields.items():
        check_depth(name, value)
    if b"\\u0000" in body:  # a raw NUL is not valid JSON
        others = {name: value for name, value in fields.items() if name not in READ_BY_MODELS}
        _check_no_nul(others)
    return fields


def check_depth(name: str, value: object) -> None:
    """Raise InvalidRequest for what is nested too deep. Level by level: no recursion, and quick for long flat lists."""
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
        found = model.model_validate(fields)
    except ValidationError as error:
        raise _invalid(fields, error) from error
    check_spelling(found)
    return found


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


def body_schema(
    model: type[BaseModel], streamed: str = "", error: Mapping[str, Any] | None = None
) -> dict[str, Any]:
    """What OpenAPI says of a body that the route parses itself, to bound it first; its `$defs` still have to be
    hoisted to where its references point. `streamed` is the media type of answers that come in pieces, `error` the
    schema of errors other than OpenAI's."""
    content = {"application/json": {"schema": orjson.loads(_schema_of(model))}}
    told: dict[str, Any] = {"requestBody": {"required": True, "content": content}}
    return told | error_schema(error) | ({STREAMED: streamed} if streamed else {})


@functools.cache
def _schema_of(model: type[BaseModel]) -> bytes:
    """As JSON, for whoever gets it changes it."""
    return orjson.dumps(model.model_json_schema(ref_template="#/components/schemas/{model}"))


def error_schema(error: Mapping[str, Any] | None) -> dict[str, Any]:
    """What a route without a body tells of its errors."""
    return {ERROR_SCHEMA: dict(error)} if error else {}


def json_response(content: object) -> Response:
    """A JSON answer."""
    return Response(orjson.dumps(content), media_type="application/json")
