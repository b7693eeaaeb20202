"""What a bad request gets: a 4xx in OpenAI's shape that names the field, and no harm to the next one."""

from __future__ import annotations

import asyncio
import json
from typing import Any

import httpx
import orjson
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from coordinator.cluster.scripted_service import ScriptedPools, ScriptedService, say
from coordinator.edge.app import EdgeLimits, create_app
from protocol.errors import ConfigError
from protocol.finish import FinishReason
from tests.patience import PATIENCE_S

CHAT, COMPLETE = "/v1/chat/completions", "/v1/completions"
OTHER_DIALECTS = ("/v1/messages", "/api/")
HELLO = [{"role": "user", "content": "Hello"}]
HELLO_CHAT: dict[str, Any] = {"messages": HELLO}
HELLO_PROMPT: dict[str, Any] = {"prompt": "Hi"}
IMAGE = {"type": "image_url", "image_url": {"url": "http://169.254.169.254/"}}
SCHEMA = {"type": "json_schema", "json_schema": {"name": "x", "schema": {}}}
CALLING: dict[str, Any] = {
    "role": "assistant",
    "content": "x",
    "tool_calls": [{"id": "a", "type": "function", "function": {"name": "f", "arguments": "{}"}}],
}
NAMED_TOOL = {"type": "function", "function": {"name": "f"}}
CODES = {
    *("invalid_value", "model_not_found", "unknown_url", "method_not_allowed", "invalid_api_key"),
    *("context_length_exceeded", "insufficient_permissions", "rate_limit_exceeded"),
    *("invalid_type", "missing_required_parameter", "unsupported_parameter"),
    *("string_above_max_length", "empty_string", "array_above_max_length", "empty_array"),
    *("object_above_max_properties", "integer_above_max_value", "integer_below_min_value"),
    *("decimal_above_max_value", "decimal_below_min_value"),
}


def deep(levels):
    value: Any = 1
    for _ in range(levels):
        value = [value]
    return value


Fields = list[tuple[dict[str, Any], str]]
FIELDS: Fields = [
    ({"temperature": "hot"}, "temperature"),
    ({"temperature": "0.5"}, "temperature"),
    ({"temperature": True}, "temperature"),
    ({"temperature": -0.1}, "temperature"),
    ({"temperature": 2.1}, "temperature"),
    ({"temperature": 1e999}, "body"),
    ({"top_p": 0}, "top_p"),
    ({"top_p": 1.01}, "top_p"),
    ({"top_k": -2}, "top_k"),
    ({"top_k": 1.5}, "top_k"),
    ({"min_p": -0.1}, "min_p"),
    ({"min_p": 1.1}, "min_p"),
    ({"presence_penalty": 2.1}, "presence_penalty"),
    ({"frequency_penalty": -2.1}, "frequency_penalty"),
    ({"repetition_penalty": 0}, "repetition_penalty"),
    ({"max_tokens": -5}, "max_tokens"),
    ({"max_tokens": "many"}, "max_tokens"),
    ({"max_tokens": 1.5}, "max_tokens"),
    ({"max_tokens": 10**30}, "max_tokens"),
    ({"max_tokens": 256}, "max_tokens"),
    ({"min_tokens": -1}, "min_tokens"),
    ({"min_tokens": 9, "max_tokens": 8}, "min_tokens"),
    ({"n": 0}, "n"),
    ({"n": 9}, "n"),
    ({"n": 16384}, "n"),
    ({"seed": 2**64}, "seed"),
    ({"seed": "s"}, "seed"),
    ({"stop": ""}, "stop"),
    ({"stop": ["a", ""]}, "stop[1]"),
    ({"stop": ["x"] * 17}, "stop"),
    ({"stop": "é" * 129}, "stop"),
    ({"stop": 5}, "stop"),
    ({"stop": "a\0"}, "stop"),
    ({"stop_token_ids": [400]}, "stop_token_ids"),
    ({"stop_token_ids": [-1]}, "stop_token_ids[0]"),
    ({"stop_token_ids": "x"}, "stop_token_ids"),
    ({"logit_bias": {"400": 1}}, "logit_bias"),
    ({"logit_bias": {"x": 1}}, "logit_bias.x"),
    ({"logit_bias": {"1": 101}}, "logit_bias.1"),
    ({"logit_bias": {str(index): 1 for index in range(1025)}}, "logit_bias"),
    ({"logit_bias": [1]}, "logit_bias"),
    ({"stream": "maybe"}, "stream"),
    ({"stream_options": {"include_usage": True}}, "stream_options"),
    ({"stream": True, "stream_options": 5}, "stream_options"),
    ({"best_of": 2}, "best_of"),
    ({"use_beam_search": True}, "use_beam_search"),
    ({"prompt_logprobs": 21}, "prompt_logprobs"),
    ({"response_format": SCHEMA}, "response_format"),
    ({"response_format": {"type": "json_object"}}, "response_format"),
    ({"suffix": "x"}, "suffix"),
    ({"structured_outputs": {"regex": "a"}}, "structured_outputs"),
    ({"cache_salt": "x" * 257}, "cache_salt"),
    ({"cache_salt": 7}, "cache_salt"),
    ({"model": 7}, "model"),
    ({"deep": deep(40)}, "deep"),
    ({"deep": deep(900)}, "deep"),
]
CHAT_FIELDS: Fields = [
    ({"messages": []}, "messages"),
    ({"messages": None}, "messages"),
    ({"messages": "Hello"}, "messages"),
    ({"messages": [5]}, "messages[0]"),
    ({"messages": [{}]}, "messages[0].role"),
    ({"messages": [{"role": "user"}]}, "messages[0].content"),
    ({"messages": [{"role": "", "content": "x"}]}, "messages[0].role"),
    ({"messages": [{"role": "user", "content": 5}]}, "messages[0].content"),
    ({"messages": [{"role": "user", "content": [IMAGE]}]}, "messages[0].content[0]"),
    ({"messages": [{"role": "user", "content": [{"text": "x"}]}]}, "messages[0].content[0].type"),
    (
        {"messages": [{"role": "user", "content": [{"type": "text"}]}]},
        "messages[0].content[0].text",
    ),
    ({"messages": HELLO * 1025}, "messages"),
    ({"messages": [*HELLO, {**CALLING, "prefix": True}]}, "messages[1].prefix"),
    ({"messages": [*HELLO, {**CALLING, "partial": True}]}, "messages[1].partial"),
    ({"messages": [*HELLO, {**CALLING, "refusal": ["x"]}]}, "messages[1].refusal"),
    ({"messages": [*HELLO, {**CALLING, "reasoning": {"x": 1}}]}, "messages[1].reasoning"),
    ({"tools": [NAMED_TOOL, {"type": "custom", "custom": {"name": "f"}}]}, "tools[1].type"),
    ({"tools": [{"type": "web_search"}]}, "tools[0].type"),
    ({"tools": [{"type": "function"}]}, "tools[0].function"),
    ({"tools": [NAMED_TOOL, {"type": "function", "name": "f"}]}, "tools[1].function"),
    ({"tools": [{"function": "f"}]}, "tools[0].function"),
    ({"tools": [{"function": {}}]}, "tools[0].function.name"),
    ({"tools": [{"function": {"name": 5}}]}, "tools[0].function.name"),
    ({"tools": [{"function": {"name": ""}}]}, "tools[0].function.name"),
    ({"tools": [{"function": {"name": "f" * 129}}]}, "tools[0].function.name"),
    ({"tools": [{"function": {"name": "f", "parameters": []}}]}, "tools[0].function.parameters"),
    ({"tools": [{"function": {"name": "f", "description": 5}}]}, "tools[0].function.description"),
    ({"tools": [{"function": {"name": "f", "strict": "no"}}]}, "tools[0].function.strict"),
    ({"messages": [{"role": "user", "content": "東" * 300}]}, "messages"),
    ({"logprobs": 5}, "logprobs"),
    ({"logprobs": True, "top_logprobs": 21}, "top_logprobs"),
    ({"top_logprobs": 3}, "top_logprobs"),
    ({"max_completion_tokens": 0}, "max_completion_tokens"),
    ({"max_completion_tokens": 999}, "max_completion_tokens"),
    ({"tools": [NAMED_TOOL], "tool_choice": "required"}, "tool_choice"),
    ({"tools": [NAMED_TOOL], "tool_choice": NAMED_TOOL}, "tool_choice"),
    ({"tools": [NAMED_TOOL] * 129}, "tools"),
    ({"tools": [{"x": "y" * 70_000}]}, "tools"),
    ({"tools": "x"}, "tools"),
    ({"chat_template": "{{ 1 }}"}, "chat_template"),
    ({"reasoning_effort": 5}, "reasoning_effort"),
    ({"reasoning_effort": "a lot"}, "reasoning_effort"),
    ({"chat_template_kwargs": {"messages": 1}}, "chat_template_kwargs.messages"),
    ({"chat_template_kwargs": {"enable_thinking": True}}, "chat_template_kwargs.enable_thinking"),
    ({"documents": [{"title": "a", "text": "b"}]}, "documents"),
    ({"documents": [5]}, "documents[0]"),
    ({"messages": [HELLO[0] | {"name": "Ada"}]}, "messages[0].name"),
    ({"messages": [HELLO[0] | {"function_call": {"name": "f"}}]}, "messages[0].function_call"),
    ({"messages": [HELLO[0] | {"audio": {"id": "a"}}]}, "messages[0].audio"),
    ({"messages": [*HELLO, CALLING]}, "messages[1].tool_calls"),
    ({"messages": [*HELLO, CALLING | {"tool_calls": 5}]}, "messages[1].tool_calls"),
    (
        {"messages": [*HELLO, CALLING | {"tool_calls": [{"function": {}}]}]},
        "messages[1].tool_calls[0].function.name",
    ),
    (
        {"messages": [*HELLO, CALLING | {"tool_calls": [], "reasoning_content": "Hm."}]},
        "messages[1].reasoning_content",
    ),
    ({"add_generation_prompt": True, "continue_final_message": True}, "continue_final_message"),
    ({"echo": True}, "echo"),
    ({"max_tokens": 0}, "max_tokens"),
]
COMPLETION_FIELDS: Fields = [
    ({"prompt": None}, "prompt"),
    ({"documents": [{"text": "b"}]}, "documents"),
    ({"prompt": 5}, "prompt"),
    ({"prompt": ""}, "prompt"),
    ({"prompt": []}, "prompt"),
    ({"prompt": [[]]}, "prompt"),
    ({"prompt": [1, "a"]}, "prompt[1]"),
    ({"prompt": [1.5]}, "prompt[0]"),
    ({"prompt": [True]}, "prompt[0]"),
    ({"prompt": [-1]}, "prompt[0]"),
    ({"prompt": [400]}, "prompt"),
    ({"prompt": [[5], [2**40]]}, "prompt[1][0]"),
    ({"prompt": ["x"] * 129}, "prompt"),
    ({"prompt": [5] * 256}, "prompt"),
    ({"logprobs": 21}, "logprobs"),
]
TABLE: list[tuple[str, dict[str, Any], str]] = [
    *((CHAT, HELLO_CHAT | fields, param) for fields, param in FIELDS + CHAT_FIELDS),
    *((COMPLETE, HELLO_PROMPT | fields, param) for fields, param in FIELDS + COMPLETION_FIELDS),
    (CHAT, {}, "messages"),
    (COMPLETE, {}, "prompt"),
    ("/tokenize", {}, "prompt"),
    ("/tokenize", {"prompt": "x", "messages": HELLO}, "prompt"),
    ("/detokenize", {"tokens": "x"}, "tokens"),
    ("/detokenize", {"tokens": [400]}, "tokens"),
]


async def assert_serves(client, service):
    service.default = say([2], FinishReason.STOP)
    assert (await client.post(CHAT, json={"messages": HELLO})).status_code == 200


def check_error(response, status, param):
    error = response.json()["error"]
    assert (response.status_code, error["param"]) == (status, param), response.text
    assert set(error) == {"message", "type", "param", "code"}
    assert error["code"] is None or error["code"] in CODES
    assert "Traceback" not in error["message"]


@pytest.mark.parametrize(
    ("path", "fields", "param"), TABLE, ids=[f"{path}-{param}" for path, _, param in TABLE]
)
async def test_a_bad_field_is_named(client, service, path, fields, param):
    body = json.dumps(fields).replace("Infinity", "1e999")
    check_error(await client.post(path, content=body), 400, param)
    assert service.generations == []
    await assert_serves(client, service)


BODIES = [
    b"",
    b"{",
    b"[]",
    b"null",
    b'"text"',
    b"\xff\xfe",
    b'{"prompt": "\xff"}',
    b'{"prompt": "\\ud800"}',
    b'{"prompt": "a\x00b"}',
    b'{"prompt": NaN}',
    b"[" * 100_000,
    b'{"a":' * 100_000,
]


@pytest.mark.parametrize("body", BODIES, ids=lambda body: repr(body[:16]))
async def test_a_broken_body_is_named(client, service, body):
    check_error(await client.post(COMPLETE, content=body), 400, "body")
    await assert_serves(client, service)


async def test_a_long_prompt_is_told_both_numbers(client):
    response = await client.post(COMPLETE, json={"prompt": [5] * 300})
    assert "300" in response.text
    assert "256" in response.text


async def test_unknown_models_routes_and_methods(client):
    check_error(await client.post(CHAT, json={"messages": HELLO, "model": "no"}), 404, "model")
    check_error(await client.get("/v1/models/no"), 404, "model")
    check_error(await client.get("/nowhere"), 404, None)
    check_error(await client.get(CHAT), 405, None)
    check_error(await client.post("/v1/rerank", json={}), 404, None)


async def test_a_body_at_the_limit_passes_and_one_byte_more_does_not(served_model, service):
    app = create_app(service=service, model=served_model, limits=EdgeLimits(max_body_bytes=100))
    service.default = say([2], FinishReason.STOP)
    body = orjson.dumps({"prompt": "Hello"})
    transport = httpx.ASGITransport(app=app)
    async with httpx.AsyncClient(transport=transport, base_url="http://edge") as client:
        fits = await client.post(COMPLETE, content=body.ljust(100))
        assert fits.status_code == 200
        check_error(await client.post(COMPLETE, content=body.ljust(101)), 413, "body")

        async def unannounced():
            for _ in range(4):
                yield b" " * 50

        check_error(await client.post(COMPLETE, content=unannounced()), 413, "body")


async def test_a_large_declared_body_is_refused_unread(app):
    sent = await drive(app, [], headers=[(b"content-length", b"5000000")])
    assert sent[0]["status"] == 413


async def test_a_slow_body_times_out(served_model, service):
    app = create_app(service=service, model=served_model, limits=EdgeLimits(body_deadline_s=0.01))
    sent = await drive(app, [{"type": "http.request", "body": b"{", "more_body": True}])
    assert sent[0]["status"] == 408


@settings(
    suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None, max_examples=150
)
@given(
    fields=st.dictionaries(
        st.sampled_from(sorted({name for fields, _ in FIELDS + CHAT_FIELDS for name in fields})),
        st.recursive(
            st.none() | st.booleans() | st.integers(-(2**60), 2**60) | st.text(max_size=5),
            lambda inner: (
                st.lists(inner, max_size=3)
                | st.dictionaries(st.text(max_size=5), inner, max_size=3)
            ),
            max_leaves=6,
        ),
        max_size=4,
    )
)
async def test_no_body_causes_a_server_error(client, service, fields):
    service.default = say([2], FinishReason.STOP)
    body = {"messages": HELLO} | fields
    response = await client.post(CHAT, content=orjson.dumps(body))
    assert response.status_code in (200, 400, 404), response.text


# ---- keys

OPEN = {"/health", "/live"}
ADMIN = {
    "/metrics",
    "/cluster",
    "/cluster/audit",
    "/cluster/drain",
    "/cluster/scale",
    "/cluster/workers/w/drain",
    "/cluster/workers/w/role",
}


def routes_of(app):
    found = []
    for path, methods in app.openapi()["paths"].items():
        filled = path.replace("{model_id}", "tiny").replace("{worker_id}", "w")
        found += [(method.upper(), filled) for method in methods]
    return [*found, ("GET", "/openapi.json"), ("GET", "/docs")]


async def status(app, method, path, headers):
    transport = httpx.ASGITransport(app=app)
    async with httpx.AsyncClient(transport=transport, base_url="http://edge") as client:
        return await client.request(method, path, headers=headers)


async def test_every_route_but_two_needs_a_key(served_model):
    app = create_app(
        service=ScriptedService(),
        model=served_model,
        api_keys=["k1", "k2"],
        admin_keys=["boss"],
        pools=ScriptedPools(),
    )
    routes = routes_of(app)
    assert {path for _, path in routes} >= ADMIN
    assert len(routes) >= 16
    for method, path in routes:
        right = "boss" if path in ADMIN else "k2"
        wrong = "k1" if path in ADMIN else "boss"
        for headers, allowed in (
            ({}, False),
            ({"Authorization": "Bearer "}, False),
            ({"Authorization": f"Basic {right}"}, False),
            ({"Authorization": f"Bearer {wrong}"}, False),
            ({"Authorization": f"Bearer {right}x"}, False),
            ({"x-api-key": wrong}, False),
            ({"Authorization": f"Bearer {right}"}, True),
            ({"x-api-key": right}, True),
        ):
            response = await status(app, method, path, headers)
            expected = allowed or path in OPEN
            assert (response.status_code not in (401, 403)) == expected, (method, path, headers)
            if not expected:
                is_known = path in ADMIN and "k1" in "".join(headers.values()).split("Bearer ")[-1:]
                if path.startswith(OTHER_DIALECTS):
                    assert response.json()["error"]
                else:
                    check_error(response, 403 if is_known else 401, None)
                assert is_known or response.headers["www-authenticate"] == "Bearer"


async def test_no_spelling_of_a_path_or_host_goes_around_the_keys(served_model):
    app = create_app(service=ScriptedService(), model=served_model, api_keys=["k"])
    for path in ("/health/../v1/models", "//v1/models", "/v1/models/", "/v1/models/tiny/../tiny"):
        response = await status(app, "GET", path, {"Host": "edge/health?"})
        assert response.status_code in (307, 401, 404), path


def test_an_empty_key_is_refused_at_the_start(served_model):
    with pytest.raises(ConfigError):
        create_app(service=ScriptedService(), model=served_model, api_keys=[""])


async def test_tenants_do_not_share_a_prefix_cache(served_model):
    service = ScriptedService(default=say([2], FinishReason.STOP))
    app = create_app(service=service, model=served_model, api_keys=["k1", "k2"])
    transport = httpx.ASGITransport(app=app)
    async with httpx.AsyncClient(transport=transport, base_url="http://edge") as client:
        for key in ("k1", "k2", "k1"):
            await client.post(COMPLETE, json={"prompt": "Hello"}, headers={"x-api-key": key})
    first, second, third = (generation.cache_salt for generation in service.generations)
    assert first == third != second


# ---- clients that leave


async def drive(app, messages, *, path=COMPLETE, headers=(), on_send=None):
    """Speak ASGI by hand: `messages` in order, then silence."""
    waiting = list(messages)
    sent = []

    async def receive():
        if waiting:
            message = waiting.pop(0)
            return await message() if callable(message) else message
        return await asyncio.Event().wait()

    async def send(message):
        sent.append(message)
        if on_send is not None:
            await on_send(message)

    scope = {
        "type": "http",
        "method": "POST",
        "path": path,
        "raw_path": path.encode(),
        "query_string": b"",
        "headers": list(headers),
        "scheme": "http",
        "server": ("edge", 80),
        "client": ("me", 1),
        "http_version": "1.1",
        "root_path": "",
    }
    await asyncio.wait_for(app(scope, receive, send), PATIENCE_S)
    return sent


def posted(**fields):
    return {"type": "http.request", "body": orjson.dumps({"prompt": "Hello"} | fields)}


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("n", [1, 3])
@pytest.mark.parametrize("begun", [False, True])
async def test_a_disconnect_cancels_every_choice(app, service, stream, n, begun):
    service.default = say([5, 6] if begun else [], None)
    told = asyncio.Event()

    async def leave():
        if stream and begun:
            await told.wait()
        return {"type": "http.disconnect"}

    async def on_send(message):
        told.set()

    await drive(app, [posted(stream=stream, n=n), leave], on_send=on_send)
    assert [stream.cancel_reason for stream in service.streams] == ["client disconnected"] * n


async def test_a_client_that_stops_reading_is_given_up(served_model, service):
    limits = EdgeLimits(stalled_client_s=0.01)
    app = create_app(service=service, model=served_model, limits=limits)
    service.default = say([5, 6], None)

    async def on_send(message):
        if message["type"] == "http.response.body":
            await asyncio.Event().wait()

    await drive(app, [posted(stream=True)], on_send=on_send)
    assert service.streams[0].cancel_reason == "the client stopped reading"


async def test_a_finished_request_cancels_nothing(client, service):
    service.default = say([5, 6])
    await client.post(COMPLETE, json={"prompt": "Hello", "stream": True})
    assert service.streams[0].cancel_reason is None


async def test_no_task_is_left_behind(app, service):
    before = asyncio.all_tasks()
    service.default = say([5], None)

    async def leave():
        return {"type": "http.disconnect"}

    await drive(app, [posted(stream=True, n=3), leave])
    assert asyncio.all_tasks() == before
