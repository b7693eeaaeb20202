"""A second API needs no change elsewhere: one that is written here, NDJSON as Ollama's generate has it, is served whole."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

import httpx
import orjson
import pytest
from fastapi import APIRouter, Depends, Request
from starlette.responses import Response

from coordinator.cluster.scripted_service import say
from coordinator.cluster.service_api import StreamEvent
from coordinator.edge.answers.answer import AnswerRequest, SamplingWishes
from coordinator.edge.apis.registry import APIS
from coordinator.edge.app import create_app
from coordinator.edge.http.auth import Principal
from coordinator.edge.http.below_path import BelowPath
from coordinator.edge.http.bodies import parse_object
from coordinator.edge.http.limits import EdgeLimits
from protocol.errors import Overloaded, WorkerLost
from protocol.finish import FinishReason
from tests.patience import PATIENCE_S

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from coordinator.edge.answers.answer import Delta, Ending, Usage
    from coordinator.edge.answers.edge import Edge
    from coordinator.edge.http.error_replies import Failure

PATH = "/lines/generate"


def line(**fields) -> bytes:
    return orjson.dumps(fields) + b"\n"


class Ndjson:
    """One object a line; the last has `done` and the counts."""

    stream_media_type = "application/x-ndjson"
    stream_headers: Mapping[str, str] = {"X-Dialect": "lines"}
    whole_media_type = "application/json"

    def begin(self, usage: Usage) -> bytes:
        return line(prompt_eval_count=usage.num_prompt_tokens)

    def delta(self, delta: Delta, usage: Usage) -> bytes:
        return line(response=delta.text, eval_count=usage.num_output_tokens, done=False)

    def end(self, delta: Delta, ending: Ending) -> bytes:
        usage = ending.usage
        return line(response=delta.text, done=False) + line(
            response="",
            done=True,
            done_reason=delta.finish_reason,
            prompt_eval_count=usage.num_prompt_tokens,
            eval_count=usage.num_output_tokens,
        )

    def failure(self, failure: Failure) -> bytes:
        return line(error=failure.message)

    def whole(self, choices: Sequence[Delta], ending: Ending) -> bytes:
        (delta,) = choices
        count = ending.usage.num_output_tokens
        return line(
            response=delta.text, done=True, done_reason=delta.finish_reason, eval_count=count
        )


class GenerateApi:
    prefix = "/lines/"
    header = ""

    def __init__(self, edge: Edge) -> None:
        self._edge = edge

    def router(self) -> APIRouter:
        router, edge, who = APIRouter(), self._edge, Depends(self._edge.guard)

        @router.post(PATH, response_model=None)
        async def generate(request: Request, principal: Principal = who) -> Response:
            arrival_s = edge.clock.now_s()
            body = await edge.bodies.read(request, parse_object)
            model = edge.model_for(principal, body["model"])
            options = body.get("options", {})
            asked = AnswerRequest(
                arrival_s=arrival_s,
                operation="generate",
                reply_id="",
                model=body["model"],
                prompts=[await edge.of(model).reader.text(body["prompt"], add_special_tokens=True)],
                prompt_field="prompt",
                wishes=SamplingWishes(
                    max_tokens=options.get("num_predict"),
                    max_tokens_field="options.num_predict",
                    temperature=options.get("temperature"),
                ),
                default_max_tokens=128,
                stops=tuple(options.get("stop", ())),
                is_stream=body.get("stream", True),
            )
            return await edge.respond(request, principal, asked, Ndjson())

        return router

    def failure(self, failure: Failure) -> bytes:
        return orjson.dumps({"error": failure.message})


@pytest.fixture
def app(service, served_model, clock):
    apis = (*APIS, GenerateApi)
    return create_app(
        service=service, model=served_model, clock=clock, api_keys=["k1", "k2"], apis=apis
    )


@pytest.fixture
async def client(app):
    transport = httpx.ASGITransport(app=app, raise_app_exceptions=False)
    headers = {"x-api-key": "k1"}
    async with httpx.AsyncClient(
        transport=transport, base_url="http://edge", headers=headers
    ) as connected:
        yield connected


async def generate(client, **fields):
    return await client.post(PATH, json={"model": "tiny", "prompt": "Hello"} | fields)


def lines(response):
    return [orjson.loads(said) for said in response.text.splitlines()]


def script(tokenizer, text, finish_reason=FinishReason.LENGTH):
    return say(tokenizer.encode(text, add_special_tokens=False), finish_reason)


async def test_stream_is_lines_with_the_counts_in_the_last(client, service, tokenizer):
    service.default = script(tokenizer, "Hello world")
    response = await generate(client)
    first, *told, last = lines(response)
    size = len(tokenizer.encode("Hello world", add_special_tokens=False))
    assert first == {"prompt_eval_count": len(service.generations[0].prompt_token_ids)}
    assert "".join(said["response"] for said in told) == "Hello world"
    assert [said["eval_count"] for said in told[:-1]] == list(range(1, size))
    assert (last["done"], last["done_reason"], last["eval_count"]) == (True, "length", size)
    assert response.headers["content-type"] == "application/x-ndjson"
    assert response.headers["x-dialect"] == "lines"


async def test_whole_answer_is_one_object(client, service, tokenizer):
    service.default = script(tokenizer, "Hello END", None)
    response = await generate(client, stream=False, options={"stop": ["END"]})
    told = response.json()
    assert (told["response"], told["done_reason"]) == ("Hello ", "stop")
    assert response.headers["content-type"] == "application/json"


async def test_options_reach_the_sampling(client, service, tokenizer):
    service.default = script(tokenizer, "Hello")
    await generate(client, options={"num_predict": 7, "temperature": 0.25})
    sampling = service.generations[0].sampling
    assert (sampling.max_tokens, sampling.temperature) == (7, 0.25)


@pytest.mark.parametrize("stream", [False, True])
async def test_refusal_is_told_in_its_shape_with_status_and_headers(client, service, stream):
    service.refusal = Overloaded("full", 2.2)
    response = await generate(client, stream=stream)
    assert (response.status_code, response.json()) == (429, {"error": "full"})
    assert response.headers["retry-after"] == "3"


async def test_failure_after_the_first_token_is_a_line(client, service, tokenizer):
    service.default = [*script(tokenizer, "Hello", None), StreamEvent(error=WorkerLost("gone"))]
    response = await generate(client)
    assert response.status_code == 200
    assert lines(response)[-1] == {"error": "gone"}


async def test_wrong_field_is_named_as_its_clients_call_it(client):
    response = await generate(client, options={"num_predict": 9999})
    assert response.status_code == 400
    assert "9999 in options.num_predict" in response.json()["error"]


async def test_unknown_model_body_key_and_path_are_told_in_its_shape(client):
    for response, status in (
        (await generate(client, model="no"), 404),
        (await client.post(PATH, content=b"{"), 400),
        (await client.post(PATH, headers={"x-api-key": "no"}), 401),
        (await client.get("/lines/nowhere"), 404),
        (await client.get(PATH), 405),
    ):
        assert response.status_code == status
        assert list(response.json()) == ["error"]
        assert isinstance(response.json()["error"], str)


async def test_other_api_and_other_paths_keep_theirs(client, service, tokenizer):
    service.default = script(tokenizer, "Hello")
    told = await client.post("/v1/completions", json={"prompt": "Hello"})
    assert told.json()["choices"][0]["text"] == "Hello"
    assert (await client.get("/nowhere")).json()["error"]["type"] == "NotFoundError"
    assert (await client.get("/v1/models/no")).json()["error"]["param"] == "model"


async def test_failures_are_told_in_its_shape_below_a_root_path(app):
    transport = httpx.ASGITransport(app=BelowPath(app, "/baton"))
    async with httpx.AsyncClient(transport=transport, base_url="http://edge") as connected:
        for path in (PATH, "/baton" + PATH):
            response = await connected.post(path)
            assert response.status_code == 401
            assert isinstance(response.json()["error"], str)


async def test_tenants_caches_are_apart(client, service, tokenizer):
    service.default = script(tokenizer, "Hello")
    for key in ("k1", "k2"):
        await client.post(PATH, json={"model": "tiny", "prompt": "x"}, headers={"x-api-key": key})
    first, second = (generation.cache_salt for generation in service.generations)
    assert first
    assert first != second


async def talk(app, messages, on_send):
    """Speak ASGI by hand: `messages`, then silence."""
    waiting = list(messages)

    async def receive():
        return waiting.pop(0) if waiting else await asyncio.Event().wait()

    scope = {
        "type": "http",
        "method": "POST",
        "path": PATH,
        "query_string": b"",
        "headers": [(b"x-api-key", b"k1")],
        "scheme": "http",
        "server": ("edge", 80),
        "root_path": "",
    }
    await asyncio.wait_for(app(scope, receive, on_send), PATIENCE_S)


POSTED = {"type": "http.request", "body": b'{"model": "tiny", "prompt": "Hello"}'}


async def test_client_that_leaves_is_noticed(app, service):
    service.default = say([5, 6], None)

    async def ignore(_): ...

    await talk(app, [POSTED, {"type": "http.disconnect"}], ignore)
    assert service.streams[0].cancel_reason == "client disconnected"


async def test_client_that_stops_reading_is_given_up(service, served_model):
    limits = EdgeLimits(stalled_client_s=0.01)
    app = create_app(service=service, model=served_model, limits=limits, apis=(*APIS, GenerateApi))
    service.default = say([5, 6], None)

    async def stand_still(message):
        if message["type"] == "http.response.body":
            await asyncio.Event().wait()

    await talk(app, [POSTED], stand_still)
    assert service.streams[0].cancel_reason == "the client stopped reading"
