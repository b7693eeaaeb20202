"""The document that clients are generated from: a validator takes it, and requests made of it are answered as it says."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any

import httpx
import hypothesis
import pytest
import schemathesis
from openapi_spec_validator import OpenAPIV31SpecValidator
from schemathesis.checks import not_a_server_error
from schemathesis.specs.openapi import checks

from coordinator.accounts.accounts import Accounts, AccountSettings
from coordinator.accounts.terms import KeyTerms
from protocol.clock import SystemClock
from tests.e2e.edge_server import edge_server
from tests.marks import deep

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

pytestmark = [pytest.mark.e2e, pytest.mark.slow]
CHECKS = [
    not_a_server_error,
    checks.status_code_conformance,
    checks.content_type_conformance,
    checks.response_headers_conformance,
    checks.response_schema_conformance,
    checks.negative_data_rejection,
    checks.missing_required_header,
    checks.unsupported_method,
    checks.allow_header_conformance,
]
"""All but those about resources that are made and deleted, and one: a schema cannot say everything that is refused, such
as a text with a NUL in it, or one that the context does not hold."""
FEW, MANY = 5, 12
TESTED = hypothesis.settings(
    deadline=None,
    database=None,
    derandomize=True,
    suppress_health_check=list(hypothesis.HealthCheck),
    phases=[hypothesis.Phase.generate],
)


PLAIN, EVERYTHING = "plain", "everything"
SAID = [{"role": "user", "content": "x"}]


async def key_of(settings: AccountSettings) -> str:
    """One that opens every route."""
    accounts = Accounts.open(settings, SystemClock())
    accounts.start(asyncio.get_running_loop())
    made = await accounts.create(KeyTerms(scopes=("inference", "metrics", "admin")))
    await accounts.close()
    return made.secret


@pytest.fixture
def client(tmp_path: Path, options: str) -> Iterator[httpx.Client]:
    """A server for each test: among what is asked is to drain it."""
    told: dict[str, Any] = {"is_short": True}
    headers = {}
    if options == EVERYTHING:
        told |= {"has_everything": True, "keys_db": str(tmp_path / "keys.db")}
        key = asyncio.run(key_of(AccountSettings(tmp_path / "keys.db")))
        headers["authorization"] = f"Bearer {key}"
    with (
        edge_server(tmp_path, **told) as port,
        httpx.Client(base_url=f"http://127.0.0.1:{port}", headers=headers) as client,
    ):
        yield client


@pytest.fixture
def document(client: httpx.Client) -> dict[str, Any]:
    found: dict[str, Any] = client.get("/openapi.json").json()
    return found


@pytest.mark.parametrize("options", [PLAIN, EVERYTHING])
def test_the_document_is_valid(document: dict[str, Any]) -> None:
    assert document["openapi"].startswith("3.1")
    OpenAPIV31SpecValidator(document).validate()


@pytest.mark.parametrize("mode", list(schemathesis.GenerationMode), ids=lambda mode: mode.value)
@pytest.mark.parametrize(
    ("options", "examples"), [(PLAIN, FEW), deep(PLAIN, MANY), deep(EVERYTHING, FEW)]
)
def test_whatever_is_asked_is_answered_as_the_document_says(
    client: httpx.Client,
    document: dict[str, Any],
    mode: schemathesis.GenerationMode,
    examples: int,
) -> None:
    schema = schemathesis.openapi.from_dict(document)
    given = {name: value for name, value in client.headers.items() if name == "authorization"}
    tried = 0
    for found in schema.get_all_operations():
        operation = found.ok()
        if (
            mode is schemathesis.GenerationMode.NEGATIVE
            and "requestBody" not in operation.definition.raw
        ):
            continue  # nothing can be wrong about what takes nothing, or any text

        @hypothesis.settings(TESTED, max_examples=examples)
        @hypothesis.given(case=operation.as_strategy(generation_mode=mode))
        def answered(case: schemathesis.Case) -> None:
            nonlocal tried
            tried += 1
            reply = case.call(base_url=str(client.base_url), headers=given, timeout=20)
            case.validate_response(reply, checks=CHECKS)

        answered()
    assert tried >= 5 * examples


@pytest.mark.parametrize("options", [PLAIN])
@pytest.mark.parametrize(
    ("path", "body"),
    [
        ("/v1/chat/completions", {"messages": SAID}),
        ("/v1/completions", {"prompt": "x"}),
        ("/v1/responses", {"input": "x"}),
        ("/v1/messages", {"messages": SAID, "max_tokens": 5}),
        ("/api/chat", {"model": "tiny", "messages": SAID}),
        ("/api/generate", {"model": "tiny", "prompt": "x"}),
    ],
)
def test_a_stream_is_as_the_document_says(
    client: httpx.Client, document: dict[str, Any], path: str, body: dict[str, Any]
) -> None:
    """Seldom is what is made at random one."""
    operation = schemathesis.openapi.from_dict(document)[path]["POST"]
    case = operation.Case(body=body | {"stream": True}, media_type="application/json")
    reply = case.call(base_url=str(client.base_url), timeout=20)
    assert reply.status_code == 200
    case.validate_response(reply, checks=CHECKS)
