"""Ollama's `keep_alive` where models come and go: in answers, in embeddings, and in requests that ask nothing."""

from __future__ import annotations

import asyncio
from dataclasses import replace
from typing import Any

import httpx
import orjson
import pytest

from coordinator.cluster.scripted_service import say
from coordinator.cluster.service_api import StreamEvent
from coordinator.edge.app import create_app
from coordinator.upstreams.settings import DeploymentSettings, Provider, RouterSettings
from protocol.finish import FinishReason
from protocol.sampling import Pooling
from tests.residents_rig import Rig

PATHS = ("/api/generate", "/api/chat", "/api/embed", "/api/embeddings")
USUAL_S = 60.0
NOTHING = {"prompt": "", "input": "", "messages": [], "stream": False}
HELLO = {
    "prompt": "Hello",
    "input": "Hello",
    "messages": [{"role": "user", "content": "Hello"}],
    "stream": False,
}


@pytest.fixture
async def rig():
    rig = Rig("tiny", keep_alive_s=USUAL_S)
    rig.residents.start()
    yield rig
    rig.residents.close()


@pytest.fixture
def app(rig, service, served_model, tokenizer):
    group = DeploymentSettings(deployment_id="d", group="g", provider=Provider.OWN, model="tiny")
    service.default = say(tokenizer.encode("Hi", add_special_tokens=False), FinishReason.STOP)
    return create_app(
        service=service,
        model=replace(served_model, pooling=Pooling.MEAN),
        clock=rig.clock,
        residents=rig.residents,
        router=RouterSettings(deployments=(group,)),
    )


@pytest.fixture
async def client(app):
    transport = httpx.ASGITransport(app=app, raise_app_exceptions=False)
    async with httpx.AsyncClient(transport=transport, base_url="http://edge") as connected:
        yield connected


def embeds(service):
    service.default = [
        StreamEvent(finish_reason=FinishReason.LENGTH, embedding=b"\0\0\x80\x3f" * 8)
    ]


async def asked(client, path, body, **fields):
    reply = await client.post(path, json={"model": "tiny"} | body | fields)
    assert reply.status_code == 200, reply.text
    return reply.json()


@pytest.mark.parametrize("path", PATHS)
async def test_a_request_that_asks_nothing_brings_the_model_in_and_sends_it_away(client, rig, path):
    await asked(client, path, NOTHING, keep_alive="1h30m")
    assert rig.residents.view("tiny")["state"] == "loaded"
    assert rig.residents.view("tiny")["keep_alive_s"] == 5400.0
    await asked(client, path, NOTHING, keep_alive=0)
    await rig.settle()
    assert rig.residents.view("tiny")["state"] == "unloaded"


@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize(
    ("said", "state", "keep_s"),
    [
        ("0", "unloaded", 0.0),
        (0, "unloaded", 0.0),
        (-1, "loaded", -1),
        ("-1s", "loaded", -1),
        ("1h30m", "loaded", 5400.0),
        (90, "loaded", 90.0),
        (None, "loaded", USUAL_S),
        ("", "loaded", USUAL_S),
    ],
)
async def test_an_answer_says_how_long_its_model_stays(
    client, rig, service, path, said, state, keep_s
):
    if "embed" in path:
        embeds(service)
    await asked(client, path, HELLO, keep_alive=said)
    await rig.settle()
    view = rig.residents.view("tiny")
    assert (view["state"], view["users"], view["keep_alive_s"]) == (state, 0, keep_s)


@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize("body", [HELLO, NOTHING])
@pytest.mark.parametrize("said", ["soon", "5 m", "1h30", "--5m", "nan"])
async def test_what_is_no_time_is_refused_and_loads_nothing(client, rig, path, body, said):
    reply = await client.post(path, json={"model": "tiny", "keep_alive": said} | body)
    assert reply.status_code == 400
    assert "keep_alive" in reply.json()["error"]
    await rig.settle()
    assert rig.residents.view("tiny")["state"] == "unloaded"


async def test_a_group_of_deployments_sends_no_model_away(client, rig):
    await asked(client, "/api/generate", NOTHING, keep_alive=-1)
    told = await asked(client, "/api/generate", NOTHING, model="g", keep_alive=0)
    assert told["done_reason"] == "unload"
    await rig.settle()
    assert rig.residents.view("tiny")["state"] == "loaded"


@pytest.mark.parametrize("path", [*PATHS, "/models/load"])
async def test_a_client_that_leaves_while_its_model_comes_frees_its_place(app, rig, path):
    rig.clusters["tiny"].late = True
    watched, left = asyncio.Event(), asyncio.Event()
    head = (b"content-type", b"application/json")
    body = {"model": "tiny"} | ({} if path == "/models/load" else NOTHING)
    events = iter([{"type": "http.request", "body": orjson.dumps(body), "more_body": False}])

    async def receive():
        for event in events:
            return event
        watched.set()
        await left.wait()
        return {"type": "http.disconnect"}

    async def send(_):
        pass

    scope: dict[str, Any] = {
        "type": "http",
        "asgi": {"version": "3.0"},
        "http_version": "1.1",
        "method": "POST",
    }
    scope |= {"path": path, "raw_path": path.encode(), "query_string": b"", "headers": [head]}
    scope |= {"scheme": "http", "root_path": "", "client": ("127.0.0.1", 1), "server": ("edge", 80)}
    asking = asyncio.create_task(app(scope, receive, send))
    await watched.wait()
    await rig.settle()
    assert rig.residents.view("tiny")["waiting"] == 1
    left.set()
    await asking
    assert rig.residents.view("tiny")["waiting"] == 0
    rig.clusters["tiny"].come()
    await rig.settle()
    assert rig.residents.view("tiny")["users"] == 0
