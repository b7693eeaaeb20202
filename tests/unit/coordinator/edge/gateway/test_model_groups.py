"""Model groups through the whole edge, with real HTTP servers behind it: what is asked, told, tried again, and booked."""

from __future__ import annotations

import asyncio
import contextlib
from typing import Any

import httpx
import orjson
import pytest
import yaml

from coordinator.cluster.scripted_service import ScriptedService, say
from coordinator.cluster.service_api import StreamEvent
from coordinator.edge.app import create_app
from coordinator.upstreams.settings import read_settings
from protocol.clock import ManualClock
from protocol.errors import Overloaded
from protocol.finish import FinishReason
from tests.unit.coordinator.edge.gateway.scripted_upstream import (
    DONE,
    anthropic_events,
    chunk,
    hang,
    openai_answer,
    reply,
    stream,
    upstream,
    usage,
)

SECRET = "sk-very-secret-0123456789"
HELLO = [{"role": "user", "content": "Hello"}]
TOOL: dict[str, Any] = {
    "type": "function",
    "function": {
        "name": "weather",
        "description": "of a place",
        "parameters": {"type": "object", "properties": {"city": {"type": "string"}}},
    },
}


def entry(server, group="g", provider="openai", **params):
    suffix = "/v1" if provider == "openai" else ""
    fields = {"model": f"{provider}/their-model", "api_base": server.url + suffix}
    return {"model_name": group, "litellm_params": fields | {"api_key": SECRET} | params}


def own(group="g", **params):
    return {"model_name": group, "litellm_params": {"model": "baton/tiny"} | params}


@contextlib.asynccontextmanager
async def edge(served_model, tmp_path, *entries, service=None, router=None, clock=None, **options):
    """A client of an edge with these deployments."""
    file = tmp_path / "router.yaml"
    settings = {"num_retries": 2, "cooldown_time": 30} | (router or {})
    file.write_text(yaml.safe_dump({"model_list": list(entries), "router_settings": settings}))
    app = create_app(
        service=service or ScriptedService(),
        model=served_model,
        clock=clock or ManualClock(),
        router=read_settings(file, {}),
        **options,
    )
    transport = httpx.ASGITransport(app=app, raise_app_exceptions=False)
    async with (
        app.router.lifespan_context(app),
        httpx.AsyncClient(transport=transport, base_url="http://edge") as client,
    ):
        yield client


async def chat(client, **fields):
    return await client.post(
        "/v1/chat/completions", json={"model": "g", "messages": HELLO} | fields
    )


def text_of(response):
    lines = [line for line in response.text.split("\n\n") if line.startswith("data: {")]
    chunks = [orjson.loads(line.removeprefix("data: ")) for line in lines]
    return "".join(
        choice["delta"].get("content") or "" for it in chunks for choice in it.get("choices", ())
    )


async def test_a_whole_answer_comes_from_an_openai_server(served_model, tmp_path):
    async with (
        upstream(openai_answer("Hi", " there")) as server,
        edge(served_model, tmp_path, entry(server)) as client,
    ):
        response = await chat(client, temperature=0.5, max_tokens=9, stop=["x"], seed=3)
    told = response.json()
    assert response.status_code == 200, response.text
    assert told["choices"][0]["message"]["content"] == "Hi there"
    assert told["choices"][0]["finish_reason"] == "stop"
    assert told["model"] == "g"
    assert told["usage"]["prompt_tokens"] == 7
    assert told["usage"]["completion_tokens"] == 2
    assert told["usage"]["prompt_tokens_details"]["cached_tokens"] == 2
    assert response.headers["x-baton-deployment"] == "g/1"
    path, headers, body = server.asked[0]
    assert (path, headers["authorization"]) == ("/v1/chat/completions", f"Bearer {SECRET}")
    assert body == {
        "model": "their-model",
        "stream": True,
        "stream_options": {"include_usage": True},
        "messages": HELLO,
        "max_tokens": 9,
        "temperature": 0.5,
        "seed": 3,
        "stop": ["x"],
    }


async def test_a_stream_comes_from_an_anthropic_server_with_a_call(served_model, tmp_path):
    blocks: list[Any] = [
        ({"type": "text", "text": ""}, [{"type": "text_delta", "text": "Let me see"}]),
        (
            {"type": "tool_use", "id": "toolu_1", "name": "weather", "input": {}},
            [
                {"type": "input_json_delta", "partial_json": '{"city": '},
                {"type": "input_json_delta", "partial_json": '"Rome"}'},
            ],
        ),
    ]
    events = anthropic_events(blocks, "tool_use")
    earlier = {
        "role": "assistant",
        "content": None,
        "tool_calls": [
            {"id": "c1", "type": "function", "function": {"name": "weather", "arguments": "{}"}}
        ],
    }
    messages = [
        {"role": "system", "content": "Be brief"},
        *HELLO,
        earlier,
        {"role": "tool", "tool_call_id": "c1", "content": "rain"},
    ]
    async with (
        upstream(stream(*events)) as server,
        edge(served_model, tmp_path, entry(server, provider="anthropic")) as client,
    ):
        response = await chat(client, messages=messages, tools=[TOOL], stream=True)
    assert response.status_code == 200, response.text
    lines = response.text.split("\n\n")
    chunks = [orjson.loads(it[6:]) for it in lines if it.startswith("data: {")]
    calls = [c for it in chunks for c in it["choices"][0]["delta"].get("tool_calls", ())]
    assert text_of(response) == "Let me see"
    assert (calls[0]["id"], calls[0]["function"]["name"]) == ("toolu_1", "weather")
    assert "".join(call["function"]["arguments"] for call in calls) == '{"city": "Rome"}'
    assert chunks[-1]["choices"][0]["finish_reason"] == "tool_calls"
    path, headers, body = server.asked[0]
    assert (path, headers["x-api-key"]) == ("/v1/messages", SECRET)
    assert body["system"] == "Be brief"
    assert body["tools"][0]["input_schema"] == TOOL["function"]["parameters"]
    assert body["messages"] == [
        {"role": "user", "content": [{"type": "text", "text": "Hello"}]},
        {
            "role": "assistant",
            "content": [{"type": "tool_use", "id": "c1", "name": "weather", "input": {}}],
        },
        {
            "role": "user",
            "content": [{"type": "tool_result", "tool_use_id": "c1", "content": "rain"}],
        },
    ]


async def test_anthropic_clients_are_answered_by_an_openai_server(served_model, tmp_path):
    call = {"index": 0, "id": "c9", "function": {"name": "weather", "arguments": "{}"}}
    events = [
        chunk({"content": "Well"}),
        chunk({"tool_calls": [call]}),
        chunk(finish_reason="tool_calls"),
        usage(11, 4),
        DONE,
    ]
    asked = {"model": "g", "max_tokens": 50, "messages": HELLO, "system": "Be brief"}
    tools = [{"name": "weather", "input_schema": {"type": "object"}}]
    async with (
        upstream(stream(*events)) as server,
        edge(served_model, tmp_path, entry(server)) as client,
    ):
        response = await client.post("/v1/messages", json=asked | {"tools": tools})
    told = response.json()
    assert response.status_code == 200, response.text
    assert told["content"] == [
        {"type": "text", "text": "Well"},
        {"type": "tool_use", "id": "c9", "name": "weather", "input": {}},
    ]
    assert told["stop_reason"] == "tool_use"
    assert told["usage"]["output_tokens"] == 4
    assert server.asked[0][2]["messages"][0] == {"role": "system", "content": "Be brief"}
    assert server.asked[0][2]["tools"][0]["function"]["name"] == "weather"


BROKEN = {
    "500": reply(500, {"error": {"message": f"oops {SECRET}"}}),
    "429": reply(429, {"error": {"message": "slow down"}}, retry_after="9"),
    "401": reply(401, {"error": {"message": f"bad key {SECRET}"}}),
    "redirect": reply(307, b"", location="http://127.0.0.1:9/"),
    "page": reply(200, b"<html>", content_type="text/html"),
    "empty": stream(),
    "cut": stream(chunk({"role": "assistant", "content": ""})),
    "nonsense": stream(b"data: {not json\n\n"),
    "no object": stream(b"data: [1]\n\n"),
    "error event": stream(b'data: {"error": {"message": "overloaded"}}\n\n'),
    "odd": stream(chunk({"content": 5})),
    "index": stream(chunk({"content": "x"}, index=7)),
    "filtered": stream(chunk(finish_reason="content_filter"), DONE),
    "huge": stream(b"data: " + b"x" * (1 << 21)),
    "unended": stream(chunk({"role": "assistant"}), DONE),
}


@pytest.mark.parametrize("kind", BROKEN)
@pytest.mark.parametrize("is_stream", [False, True])
async def test_before_the_first_token_another_answers(served_model, tmp_path, kind, is_stream):
    async with upstream(BROKEN[kind]) as bad, upstream(openai_answer("fine")) as good:
        entries = (entry(bad, order=1), entry(good, order=2))
        async with edge(served_model, tmp_path, *entries) as client:
            response = await chat(client, stream=is_stream)
            view = await client.get("/cluster/deployments")
            metrics = (await client.get("/metrics")).text
    assert response.status_code == 200, response.text
    told = text_of(response) if is_stream else response.json()["choices"][0]["message"]["content"]
    assert told == "fine"
    assert response.headers["x-baton-deployment"] == "g/2"
    assert response.headers["x-baton-attempts"] == "2"
    assert SECRET not in view.text + metrics + response.text + str(response.headers)
    first, second = view.json()["data"]
    assert (first["failures"], second["failures"]) == (1, 0)
    assert (first["running"], second["running"]) == (0, 0)
    cools = kind in ("429", "401")
    assert first["state"] == ("cooling" if cools else "up")
    assert 'baton_deployment_requests_total{deployment="g/2",outcome="ok"} 1.0' in metrics


async def test_a_place_that_says_nothing_is_left(served_model, tmp_path):
    async with upstream(hang) as bad, upstream(openai_answer("fine")) as good:
        entries = (entry(bad, order=1, stream_timeout=0.2), entry(good, order=2))
        async with edge(served_model, tmp_path, *entries) as client:
            response = await chat(client, stream=True)
        await asyncio.wait_for(bad.hung_up.wait(), 10)
    assert text_of(response) == "fine"


async def test_a_stream_that_breaks_later_ends_honestly(served_model, tmp_path):
    async with (
        upstream(stream(chunk({"content": "Once"}))) as bad,
        edge(served_model, tmp_path, entry(bad), entry(bad)) as client,
    ):
        response = await chat(client, stream=True)
    assert response.status_code == 200
    assert text_of(response) == "Once"
    assert '"type":"UpstreamError"' in response.text
    assert response.text.endswith("data: [DONE]\n\n")
    assert len(bad.asked) == 1


async def test_a_whole_answer_that_breaks_later_is_made_elsewhere(served_model, tmp_path):
    async with (
        upstream(stream(chunk({"content": "Once"}))) as bad,
        upstream(openai_answer("fine")) as good,
    ):
        entries = (entry(bad, order=1), entry(good, order=2))
        async with edge(served_model, tmp_path, *entries) as client:
            response = await chat(client)
    assert response.json()["choices"][0]["message"]["content"] == "fine"


async def test_full_pools_spill_over(served_model, tmp_path):
    service = ScriptedService()
    service.refusal = Overloaded("full", 3.0)
    async with upstream(openai_answer("elsewhere")) as server:
        entries = (own(order=1), entry(server, order=2))
        async with edge(served_model, tmp_path, *entries, service=service) as client:
            response = await chat(client)
    assert response.json()["choices"][0]["message"]["content"] == "elsewhere"


async def test_our_pools_answer_for_a_server_that_fails(served_model, tmp_path, tokenizer):
    service = ScriptedService()
    ids = tokenizer.encode("Hello", add_special_tokens=False)
    service.default = say(ids, FinishReason.LENGTH)
    async with upstream(BROKEN["500"]) as server:
        entries = (entry(server, order=1), own(order=2))
        async with edge(served_model, tmp_path, *entries, service=service) as client:
            response = await chat(client, logprobs=False)
    told = response.json()
    assert told["choices"][0]["message"]["content"] == "Hello"
    assert told["usage"]["prompt_tokens"] == len(service.generations[0].prompt_token_ids)
    assert response.headers["x-baton-deployment"] == "g/2"


async def test_a_clients_mistake_is_told_and_not_repeated(served_model, tmp_path):
    wrong = reply(400, {"error": {"message": f"temperature is wrong {SECRET}", "code": "bad"}})
    async with (
        upstream(wrong) as first,
        upstream(openai_answer("x")) as second,
        edge(served_model, tmp_path, entry(first), entry(second, order=2)) as client,
    ):
        response = await chat(client)
    assert response.status_code == 400
    assert "temperature is wrong" in response.text
    assert SECRET not in response.text
    assert (len(first.asked), len(second.asked)) == (1, 0)


async def test_a_prompt_that_is_too_long_goes_to_the_longer_group(served_model, tmp_path):
    told = {"error": {"message": "too long", "code": "context_length_exceeded"}}
    router = {"context_window_fallbacks": [{"g": ["long"]}]}
    async with upstream(reply(400, told)) as short, upstream(openai_answer("fits")) as long:
        entries = (entry(short), entry(long, "long"))
        async with edge(served_model, tmp_path, *entries, router=router) as client:
            response = await chat(client)
    assert response.json()["choices"][0]["message"]["content"] == "fits"


async def test_fallback_groups_are_tried_in_order(served_model, tmp_path):
    router = {"num_retries": 1, "fallbacks": [{"g": ["h", "i"]}]}
    async with upstream(BROKEN["500"]) as bad, upstream(openai_answer("fine")) as good:
        entries = (entry(bad), entry(bad, "h"), entry(good, "i"))
        async with edge(served_model, tmp_path, *entries, router=router) as client:
            response = await chat(client)
    assert response.json()["choices"][0]["message"]["content"] == "fine"
    assert response.headers["x-baton-attempts"] == "5"


async def test_when_nobody_has_room_it_says_when(served_model, tmp_path):
    async with (
        upstream(BROKEN["429"]) as bad,
        edge(served_model, tmp_path, entry(bad)) as client,
    ):
        first = await chat(client)
        second = await chat(client)
    assert (first.status_code, second.status_code) == (502, 429)
    assert second.headers["retry-after"] == "9"
    assert len(bad.asked) == 1


async def test_who_leaves_hangs_up_elsewhere_too(served_model, tmp_path):
    async with (
        upstream(stream(chunk({"content": "Once"}), hangs=True)) as slow,
        edge(served_model, tmp_path, entry(slow)) as client,
    ):
        asking = asyncio.create_task(chat(client))
        await asyncio.wait_for(slow.was_asked.wait(), 10)
        asking.cancel()
        await asyncio.wait_for(slow.hung_up.wait(), 10)
        view = (await client.get("/cluster/deployments")).json()["data"][0]
    assert (view["running"], view["failures"]) == (0, 0)


@pytest.mark.parametrize("field", ["logprobs", "logit_bias", "return_token_ids", "top_k"])
async def test_what_cannot_be_asked_there_is_refused_by_name(served_model, tmp_path, field):
    values = {"logprobs": True, "logit_bias": {"5": 1}, "return_token_ids": True, "top_k": 3}
    async with (
        upstream(openai_answer("x")) as server,
        edge(served_model, tmp_path, entry(server)) as client,
    ):
        response = await chat(client, **{field: values[field]})
    assert response.status_code == 400
    assert response.json()["error"]["param"] == field
    assert server.asked == []


async def test_groups_are_listed_and_have_no_tokens_of_their_own(served_model, tmp_path):
    async with (
        upstream(openai_answer("x")) as server,
        edge(served_model, tmp_path, entry(server)) as client,
    ):
        models = (await client.get("/v1/models")).json()["data"]
        refused = await client.post("/tokenize", json={"model": "g", "prompt": "x"})
        unknown = await chat(client, model="nobody")
    assert [model["id"] for model in models] == ["tiny", "tiny-alias", "g"]
    assert refused.status_code == 404
    assert "'g' is a group of deployments" in refused.text
    assert unknown.status_code == 404


async def test_a_group_may_have_our_models_name(served_model, tmp_path):
    service = ScriptedService()
    service.default = [StreamEvent(tokens=[], finish_reason=FinishReason.STOP)]
    async with (
        upstream(openai_answer("theirs")) as server,
        edge(served_model, tmp_path, entry(server, "tiny"), service=service) as client,
    ):
        talked = await chat(client, model="tiny")
        told = await client.post("/v1/completions", json={"model": "tiny", "prompt": [5, 6]})
    assert talked.json()["choices"][0]["message"]["content"] == "theirs"
    assert told.status_code == 200
    assert len(service.generations) == 1
