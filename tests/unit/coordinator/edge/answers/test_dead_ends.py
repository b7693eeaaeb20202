"""An answer that its grammar leads nowhere: the client hears which of its fields that was, before the first byte or after."""

from __future__ import annotations

import httpx
import orjson
import pytest

from coordinator.cluster.scripted_service import say
from coordinator.cluster.service_api import StreamEvent
from coordinator.edge.app import create_app
from protocol.errors import GrammarDeadEnd

TOLD = "the answer's grammar: it takes too much work to go on here"
CHAT, COMPLETION = "/v1/chat/completions", "/v1/completions"
HELLO = [{"role": "user", "content": "Hello"}]
LOOK = {"type": "function", "function": {"name": "look", "parameters": {}}}
FORM = {"type": "json_object"}


class Lenient:
    worked_s = 0.0

    async def refusal(self, constraint):
        return None


@pytest.fixture
async def client(service, served_model, clock):
    app = create_app(service=service, model=served_model, clock=clock, grammars=Lenient())
    transport = httpx.ASGITransport(app=app, raise_app_exceptions=False)
    async with httpx.AsyncClient(transport=transport, base_url="http://edge") as connected:
        yield connected


@pytest.mark.parametrize(
    ("path", "body", "field"),
    [
        (COMPLETION, {"prompt": "Hello", "guided_regex": "a*"}, "guided_regex"),
        (COMPLETION, {"prompt": "Hello", "response_format": FORM}, "response_format"),
        (CHAT, {"messages": HELLO, "tools": [LOOK]}, "tools"),
    ],
)
async def test_it_is_a_refusal_that_names_the_field(client, service, path, body, field):
    service.default = [*say([5, 6], None), StreamEvent(error=GrammarDeadEnd(TOLD))]
    response = await client.post(path, json=body)
    assert response.status_code == 400
    assert response.json()["error"] == {
        "message": TOLD,
        "type": "BadRequestError",
        "param": field,
        "code": "grammar_dead_end",
    }


async def test_after_the_first_token_it_is_the_last_event(client, service):
    service.default = [*say([50, 60], None), StreamEvent(error=GrammarDeadEnd(TOLD))]
    body = {"prompt": "Hello", "guided_regex": "a*", "stream": True}
    response = await client.post(COMPLETION, json=body)
    assert response.status_code == 200
    *_, last, done = response.text.strip().split("\n\n")
    assert done == "data: [DONE]"
    error = orjson.loads(last.removeprefix("data: "))["error"]
    assert (error["param"], error["code"]) == ("guided_regex", "grammar_dead_end")
