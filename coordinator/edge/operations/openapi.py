"""`/openapi.json` and `/docs`. Owns what FastAPI cannot know: the schemas of bodies that routes parse themselves, what
answers look like, and which errors there are. The page is made from the document and loads nothing from anywhere."""

from __future__ import annotations

import json
from html import escape
from typing import TYPE_CHECKING, Any

from coordinator.edge.http.bodies import ERROR_SCHEMA, STREAMED
from coordinator.edge.operations.routes_ui import content_security_policy

if TYPE_CHECKING:
    from fastapi import FastAPI

REFS = "#/components/schemas/{model}"
NULLABLE_TEXT = {"anyOf": [{"type": "string"}, {"type": "null"}]}
ERROR_REPLY = {
    "title": "ErrorReply",
    "type": "object",
    "required": ["error"],
    "properties": {
        "error": {
            "type": "object",
            "required": ["message", "type", "param", "code"],
            "properties": {
                "message": {"type": "string"},
                "type": {"type": "string"},
                "param": NULLABLE_TEXT,
                "code": NULLABLE_TEXT,
            },
        }
    },
}
JSON_OBJECT = {"application/json": {"schema": {"type": "object"}}}
PLAIN_TEXT = {"text/plain": {"schema": {"type": "string"}}}
CONTENTS: dict[str, dict[str, Any]] = {
    "/health": {},
    "/live": {},
    "/sleep": {},
    "/wake_up": {},
    "/metrics": PLAIN_TEXT,
    "/usage": JSON_OBJECT | {"text/csv": {"schema": {"type": "string"}}},
    "/v1/load_lora_adapter": PLAIN_TEXT,
    "/v1/unload_lora_adapter": PLAIN_TEXT,
}
ERROR = {
    "description": "Refused or failed",
    "content": {"application/json": {"schema": {"$ref": REFS.format(model="ErrorReply")}}},
}
BOUNDS = {
    "ge": "minimum",
    "gt": "exclusiveMinimum",
    "le": "maximum",
    "lt": "exclusiveMaximum",
}
"""What pydantic leaves as it is where a field has its own way to be read."""
NOT_READY = {"description": "A request sent now could not be served"}
KEY = {"type": "http", "scheme": "bearer"}
STYLE = "body{font:15px/1.5 system-ui,sans-serif;margin:2rem auto;max-width:60rem;padding:0 1rem}pre{overflow:auto;background:#8881;padding:1rem}"


def describe(app: FastAPI, *, has_keys: bool) -> dict[str, Any]:
    """The whole document; a server that is below a path says so."""
    document: dict[str, Any] = json.loads(json.dumps(app.openapi()))
    schemas: dict[str, Any] = {"ErrorReply": ERROR_REPLY}
    document["components"] = {"schemas": schemas}
    for path, operations in document["paths"].items():
        for operation in operations.values():
            _complete(path, operation)
            _hoist(operation, schemas)
    if app.state.prefix:
        document["servers"] = [{"url": app.state.prefix}]
    if has_keys:
        document["components"]["securitySchemes"] = {"key": KEY}
        document["security"] = [{"key": []}]
    return document


def _complete(path: str, operation: dict[str, Any]) -> None:
    content = CONTENTS.get(path, JSON_OBJECT)
    if streamed := operation.pop(STREAMED, ""):
        content = content | {streamed: {}}  # of a stream a schema may mean the whole, or each event
    answer = {"description": "Done"} | ({"content": content} if content else {})
    operation["responses"] = {"200": answer, "default": ERROR}
    if error := operation.pop(ERROR_SCHEMA, None):
        told = {"content": {"application/json": {"schema": error}}}
        operation["responses"]["default"] = ERROR | told
    if path in ("/health", "/live"):
        operation["responses"] = {"200": answer} | ({"503": NOT_READY} if path == "/health" else {})
        operation["security"] = []


def _hoist(operation: dict[str, Any], schemas: dict[str, Any]) -> None:
    """A body and the definitions inside it move to where references point; two APIs may use one name for different things."""
    content = operation.get("requestBody", {}).get("content", {}).get("application/json")
    if content is None:
        return
    found = content["schema"].pop("$defs", {}) | {content["schema"]["title"]: content["schema"]}
    names = {name: _free_name(name, schema, schemas) for name, schema in found.items()}
    places = {
        REFS.format(model=name): REFS.format(model=free)
        for name, free in names.items()
        if free != name
    }
    content["schema"] = {"$ref": REFS.format(model=names[content["schema"]["title"]])}
    for name, free in names.items():
        schemas[free] = _pointing(_titled(found[name], free), places)


def _free_name(name: str, schema: dict[str, Any], schemas: dict[str, Any]) -> str:
    free, number = name, 1
    while schemas.get(free) not in (None, _titled(schema, free)):
        number += 1
        free = f"{name}{number}"
    return free


def _titled(schema: dict[str, Any], name: str) -> dict[str, Any]:
    """Generators name classes by titles: no two have the same."""
    return schema | {"title": name}


def _pointing(node: Any, places: dict[str, str]) -> Any:
    """The same in JSON Schema's own words, with references that lead to other places."""
    if isinstance(node, list):
        return [_pointing(each, places) for each in node]
    if not isinstance(node, dict):
        return node
    led = {_keyword(key, value): _pointing(value, places) for key, value in node.items()}
    if isinstance(place := led.get("$ref"), str):
        led["$ref"] = places.get(place, place)
    return led


def _keyword(key: str, value: object) -> str:
    return BOUNDS.get(key, key) if isinstance(value, int | float) else key


def docs_page(document: dict[str, Any]) -> tuple[str, str]:
    """The page, and the policy that lets it be read and nothing else."""
    style = f"<style>{STYLE}</style>"
    sections = "".join(
        _section(method, path, operation, document)
        for path, operations in document["paths"].items()
        for method, operation in operations.items()
    )
    schemas = "".join(
        f"<details id='{escape(name)}'><summary>{escape(name)}</summary>{_json(schema)}</details>"
        for name, schema in document["components"]["schemas"].items()
    )
    page = (
        f"<!doctype html><html lang='en'><head><meta charset='utf-8'><title>Baton</title>{style}</head><body>"
        f"<h1>Baton {escape(document['info']['version'])}</h1><p><a href='openapi.json'>openapi.json</a></p>"
        f"{sections}<h2>Schemas</h2>{schemas}</body></html>"
    )
    return page, content_security_policy(page)


def _section(method: str, path: str, operation: dict[str, Any], document: dict[str, Any]) -> str:
    told = escape(operation.get("description") or operation.get("summary", ""))
    body = operation.get("requestBody", {}).get("content", {}).get("application/json", {})
    schemas, name = document["components"]["schemas"], body["schema"]["$ref"] if body else ""
    schema = schemas.get(name.rpartition("/")[2])
    shown = f"<details><summary>body</summary>{_json(schema)}</details>" if body else ""
    return f"<h2><code>{method.upper()} {escape(path)}</code></h2><p>{told}</p>{shown}"


def _json(value: object) -> str:
    return f"<pre>{escape(json.dumps(value, indent=2))}</pre>"
