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
CONTENTS: dict[str, dict[str, Any]] = {
    "/health": {},
    "/live": {},
    "/metrics": {"text/plain": {"schema": {"type": "string"}}},
}
ERROR = {
    "description": "Refused or failed",
    "content": {"application/json": {"schema": {"$ref": REFS.format(model="ErrorReply")}}},
}
NOT_READY = {"description": "A request sent now could not be served"}
KEY = {"type": "http", "scheme": "bearer"}
STYLE = "body{font:15px/1.5 system-ui,sans-serif;margin:2rem auto;max-width:60rem;padding:0 1rem}pre{overflow:auto;background:#8881;padding:1rem}"


def describe(app: FastAPI, *, has_keys: bool) -> dict[str, Any]:
    """The whole document."""
    document: dict[str, Any] = json.loads(json.dumps(app.openapi()))
    schemas: dict[str, Any] = {"ErrorReply": ERROR_REPLY}
    document["components"] = {"schemas": schemas}
    for path, operations in document["paths"].items():
        for operation in operations.values():
            _complete(path, operation)
            _hoist(operation, schemas)
    if has_keys:
        document["components"]["securitySchemes"] = {"key": KEY}
        document["security"] = [{"key": []}]
    return document


def _complete(path: str, operation: dict[str, Any]) -> None:
    content = CONTENTS.get(path, JSON_OBJECT)
    if streamed := operation.pop(STREAMED, ""):
        content = content | {streamed: {"schema": {"type": "string"}}}
    answer = {"description": "Done"} | ({"content": content} if content else {})
    operation["responses"] = {"200": answer, "default": ERROR}
    if error := operation.pop(ERROR_SCHEMA, None):
        told = {"content": {"application/json": {"schema": error}}}
        operation["responses"]["default"] = ERROR | told
    if path in ("/health", "/live"):
        operation["responses"] = {"200": answer} | ({"503": NOT_READY} if path == "/health" else {})
        operation["security"] = []


def _hoist(operation: dict[str, Any], schemas: dict[str, Any]) -> None:
    """Definitions inside a body move to where its references point; two APIs may use one name for different things."""
    content = operation.get("requestBody", {}).get("content", {}).get("application/json")
    if content is None:
        return
    for name in list(content["schema"].get("$defs", {})):
        free, number = name, 1
        while (
            schemas.get(free, content["schema"]["$defs"][name]) != content["schema"]["$defs"][name]
        ):
            number += 1
            free = f"{name}{number}"
        if free != name:
            told = json.dumps(content["schema"])
            old, new = (json.dumps(REFS.format(model=each)) for each in (name, free))
            content["schema"] = json.loads(told.replace(old, new))
        schemas[free] = content["schema"]["$defs"][name]
    content["schema"].pop("$defs", None)


def docs_page(document: dict[str, Any]) -> tuple[str, str]:
    """The page, and the policy that lets it be read and nothing else."""
    style = f"<style>{STYLE}</style>"
    sections = "".join(
        _section(method, path, operation)
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


def _section(method: str, path: str, operation: dict[str, Any]) -> str:
    told = escape(operation.get("description") or operation.get("summary", ""))
    body = operation.get("requestBody", {}).get("content", {}).get("application/json", {})
    shown = f"<details><summary>body</summary>{_json(body['schema'])}</details>" if body else ""
    return f"<h2><code>{method.upper()} {escape(path)}</code></h2><p>{told}</p>{shown}"


def _json(value: object) -> str:
    return f"<pre>{escape(json.dumps(value, indent=2))}</pre>"
