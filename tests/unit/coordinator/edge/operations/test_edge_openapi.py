"""`/openapi.json` is a valid and true document, and `/docs` needs nothing from elsewhere."""

from __future__ import annotations

import re

import httpx
import pytest
from jsonschema import Draft202012Validator

from coordinator.cluster.scripted_service import ScriptedPools, ScriptedService
from coordinator.edge.app import create_app
from tests.unit.coordinator.edge.http.all_options import everything


@pytest.fixture
async def document(served_model):
    app = create_app(service=ScriptedService(), model=served_model, pools=ScriptedPools())
    async with httpx.AsyncClient(
        transport=httpx.ASGITransport(app=app), base_url="http://localhost"
    ) as client:
        return (await client.get("/openapi.json")).json()


def refs(node) -> list[str]:
    if isinstance(node, dict):
        own = [node["$ref"]] if isinstance(node.get("$ref"), str) else []
        return own + [ref for value in node.values() for ref in refs(value)]
    return [ref for item in node for ref in refs(item)] if isinstance(node, list) else []


def meant(document, reference):
    return document["components"]["schemas"][reference["$ref"].rpartition("/")[2]]


async def test_every_reference_leads_somewhere(document):
    found = set(refs(document))
    assert len(found) >= 3
    for ref in found:
        assert ref.removeprefix("#/components/schemas/") in document["components"]["schemas"]


async def test_every_schema_has_its_own_title(document):
    """Generators name classes by them, and leave out what has the name of another."""
    schemas = document["components"]["schemas"]
    assert {"ChatRequest", "ChatRequest2", "Message", "Message2"} <= schemas.keys()
    assert [name for name, schema in schemas.items() if schema["title"] != name] == []
    for path in document["paths"].values():
        for operation in path.values():
            if "requestBody" in operation:
                content = operation["requestBody"]["content"]["application/json"]
                assert content["schema"].keys() == {"$ref"}


async def test_every_reference_leads_to_what_was_meant(document):
    """Each API's messages have that API's parts."""
    for path, parts in (("/v1/chat/completions", "ContentPart"), ("/v1/messages", "Block")):
        content = document["paths"][path]["post"]["requestBody"]["content"]
        body = meant(document, content["application/json"]["schema"])
        message = meant(document, body["properties"]["messages"]["items"])
        assert refs(message["properties"]["content"]) == [f"#/components/schemas/{parts}"]


async def test_bounds_are_told_in_words_that_json_schema_has(document):
    schemas = document["components"]["schemas"]
    for name, field, wrong, right in (
        ("MessagesRequest", "max_tokens", 0, 1),
        ("CompletionRequest", "top_p", 0, 1),
        ("CompletionRequest", "temperature", 2.1, 2),
        ("CompletionRequest", "logprobs", 21, 20),
        ("GenerateRequest", "top_logprobs", -1, 0),
        ("ScaleRequest", "prefill", -1, 0),
    ):
        validator = Draft202012Validator(schemas[name]["properties"][field])
        assert validator.is_valid(right), (name, field)
        assert not validator.is_valid(wrong), (name, field)
    assert not {"ge", "gt", "le", "lt", "min_length", "max_length"} & words(schemas)


def words(node) -> set[str]:
    """All keys of something."""
    if isinstance(node, dict):
        return {*node}.union(*(words(value) for value in node.values()))
    return set().union(*(words(item) for item in node)) if isinstance(node, list) else set()


async def test_every_schema_is_one(document):
    for schema in document["components"]["schemas"].values():
        Draft202012Validator.check_schema(schema)


async def test_no_answer_is_declared_that_is_never_given(document):
    operations = [entry for path in document["paths"].values() for entry in path.values()]
    assert len(operations) >= 15
    assert len({entry["operationId"] for entry in operations}) == len(operations)
    for entry in operations:
        assert "422" not in entry["responses"]
        assert "200" in entry["responses"]
    assert "HTTPValidationError" not in document["components"]["schemas"]


async def test_errors_are_as_declared(document, client):
    schema = document["components"]["schemas"]["ErrorReply"]
    for reply in (
        await client.post("/v1/completions", json={}),
        await client.get("/nowhere"),
        await client.get("/v1/models/no"),
    ):
        Draft202012Validator(schema).validate(reply.json())


async def test_the_page_loads_nothing(client):
    reply = await client.get("/docs")
    assert re.findall(r"(?:src|href)=['\"]?([^'\" >]+)", reply.text) == ["openapi.json"]
    assert "http://" not in reply.text
    assert "https://" not in reply.text
    assert "POST /v1/chat/completions" in reply.text
    assert "default-src 'none'" in reply.headers["content-security-policy"]


async def test_with_keys_the_document_says_so(served_model):
    app = create_app(service=ScriptedService(), model=served_model, api_keys=["k"])
    async with httpx.AsyncClient(
        transport=httpx.ASGITransport(app=app), base_url="http://localhost"
    ) as client:
        told = (await client.get("/openapi.json", headers={"x-api-key": "k"})).json()
    assert told["security"] == [{"key": []}]
    assert told["paths"]["/health"]["get"]["security"] == []


async def test_what_stands_behind_question_marks_is_told(served_model, tmp_path):
    """A generated client can say no other."""
    app = create_app(service=ScriptedService(), model=served_model, **everything(tmp_path))
    async with httpx.AsyncClient(
        transport=httpx.ASGITransport(app=app), base_url="http://localhost"
    ) as client:
        paths = (await client.get("/openapi.json")).json()["paths"]
    told = {
        path: [parameter["name"] for parameter in operation.get("parameters", ())]
        for path in ("/sleep", "/wake_up", "/is_sleeping")
        for operation in paths[path].values()
    }
    assert told == {
        "/sleep": ["level", "mode", "model"],
        "/wake_up": ["tags", "model"],
        "/is_sleeping": ["model"],
    }
