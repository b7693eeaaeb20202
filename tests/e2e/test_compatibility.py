"""What llama.cpp's own server is tested with, restated: chats, completions, streams, tool calls, messages and responses.

A stream says what the whole answer says, everywhere.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import jsonschema
import pytest

from tests.e2e.server import Server
from tests.marks import deep

pytestmark = [pytest.mark.e2e, pytest.mark.slow, pytest.mark.xdist_group("model")]
MODEL = "smollm2-135m"
CODE = {
    "type": "object",
    "properties": {"code": {"type": "string", "maxLength": 30}},
    "required": ["code"],
    "additionalProperties": False,
}
CITY = {
    "type": "object",
    "properties": {"location": {"type": "string", "maxLength": 20}},
    "required": ["location"],
    "additionalProperties": False,
}
SCHEMAS = {"python": CODE, "get_weather": CITY, "success": {"type": "object", "properties": {}}}
ASK = [{"role": "user", "content": "Say hello in French."}]
AT_ZERO = {"temperature": 0, "max_tokens": 24}


@pytest.fixture(scope="module")
def server() -> Iterator[Server]:
    with Server("--pd", "1p1d", "--kv-cache-memory", "256MiB") as serving:
        yield serving


def post(server: Server, path: str, **body: Any) -> dict[str, Any]:
    reply = server.client.post(path, json={"model": MODEL, **body})
    assert reply.status_code == 200, reply.text
    told: dict[str, Any] = reply.json()
    return told


def events(server: Server, path: str, **body: Any) -> list[dict[str, Any]]:
    asked = {"model": MODEL, "stream": True, **body}
    with server.client.stream("POST", path, json=asked) as reply:
        assert reply.status_code == 200
        lines = [line.removeprefix("data: ") for line in reply.iter_lines() if "{" in line]
    return [json.loads(line) for line in lines]


def chunks(server: Server, **body: Any) -> list[dict[str, Any]]:
    return events(server, "/v1/chat/completions", **body)


def tools(*names: str) -> list[dict[str, Any]]:
    return [
        {"type": "function", "function": {"name": name, "parameters": SCHEMAS[name]}}
        for name in names
    ]


# ---- chats


def test_a_chat_counts_what_it_says_and_its_stream_says_the_same(server: Server) -> None:
    whole = post(server, "/v1/chat/completions", messages=ASK, **AT_ZERO)
    (choice,), usage = whole["choices"], whole["usage"]
    assert whole["id"].startswith("chatcmpl-")
    assert usage["total_tokens"] == usage["prompt_tokens"] + usage["completion_tokens"]
    assert (choice["finish_reason"] == "length") == (usage["completion_tokens"] == 24)
    told = chunks(server, messages=ASK, **AT_ZERO, stream_options={"include_usage": True})
    *parts, last = told
    assert len({chunk["id"] for chunk in told}) == len({chunk["created"] for chunk in told}) == 1
    assert parts[0]["choices"][0]["delta"]["role"] == "assistant"
    said = [chunk["choices"][0]["delta"].get("content") or "" for chunk in parts]
    assert "".join(said) == choice["message"]["content"]
    reasons = [chunk["choices"][0]["finish_reason"] for chunk in parts]
    assert reasons == [None] * (len(parts) - 1) + [choice["finish_reason"]]
    assert (last["choices"], last["usage"]["completion_tokens"]) == ([], usage["completion_tokens"])


@pytest.mark.parametrize(
    ("form", "schema"),
    [
        ({"type": "json_object", "schema": {"const": "42"}}, {"const": "42"}),
        ({"type": "json_schema", "json_schema": {"schema": {"const": "42"}}}, {"const": "42"}),
        ({"type": "json_schema", "json_schema": {"schema": CITY}}, CITY),
        ({"type": "json_object"}, {"type": "object"}),
    ],
)
def test_a_form_is_kept_to(server: Server, form: dict[str, Any], schema: object) -> None:
    body = {"messages": ASK, "response_format": form, "temperature": 0, "max_tokens": 64}
    (choice,) = post(server, "/v1/chat/completions", **body)["choices"]
    if choice["finish_reason"] == "stop":
        jsonschema.validate(json.loads(choice["message"]["content"]), schema)
    assert schema != {"const": "42"} or choice["message"]["content"] == '"42"'


@pytest.mark.parametrize(
    "body",
    [
        {},
        {"messages": "hello"},
        {"messages": []},
        {"messages": [{"role": "user", "content": 5}]},
        {"messages": [{"role": "user", "content": [{"type": "sound"}]}]},
        {"messages": ASK, "response_format": {"type": "sound"}},
        {"messages": ASK, "response_format": {"type": "json_schema", "json_schema": {}}},
        {"messages": ASK, "response_format": {"type": "json_object", "schema": 123}},
        {"messages": ASK, "tool_choice": "required"},
        {"messages": ASK, "logit_bias": {"x": 1}},
        {"messages": [{"role": "user", "content": "word " * 20_000}]},
    ],
)
def test_a_chat_that_is_none_is_refused(server: Server, body: dict[str, Any]) -> None:
    reply = server.client.post("/v1/chat/completions", json=body)
    assert reply.status_code == 400
    assert set(reply.json()["error"]) == {"message", "type", "param", "code"}


# ---- completions


def test_prompts_are_texts_or_tokens_alone_or_many(server: Server) -> None:
    ids = server.client.post("/tokenize", json={"prompt": "Once upon"}).json()["tokens"]
    by_text, by_ids = (
        post(server, "/v1/completions", prompt=prompt, **AT_ZERO)["choices"][0]["text"]
        for prompt in ("Once upon", ids)
    )
    assert by_text == by_ids
    many = post(server, "/v1/completions", prompt=["Once upon", "Once upon"], **AT_ZERO)
    assert [choice["text"] for choice in many["choices"]] == [by_text] * 2
    again = post(server, "/v1/completions", prompt="Once upon", **AT_ZERO)
    assert again["choices"][0]["text"] == by_text


def test_seeds_and_many_at_once_change_nothing(server: Server) -> None:
    def text(seed: int) -> str:
        body = {"prompt": "I believe the meaning of life is", "max_tokens": 16, "temperature": 1.0}
        told: str = post(server, "/v1/completions", seed=seed, **body)["choices"][0]["text"]
        return told

    alone = [text(seed) for seed in range(4)]
    assert len(set(alone)) > 1
    with ThreadPoolExecutor(8) as pool:
        assert list(pool.map(text, [*range(4), *range(4)])) == alone * 2


# ---- tools


@pytest.mark.parametrize(
    ("name", "choice"),
    [
        ("python", "required"),
        ("get_weather", "named"),
        ("success", "named"),
        deep("python", "named"),
        deep("get_weather", "required"),
        deep("success", "required"),
    ],
)
def test_a_tool_that_must_be_called_is(server: Server, name: str, choice: str) -> None:
    named = {"type": "function", "function": {"name": name}}
    known = tools(name) if choice == "required" else tools(*SCHEMAS)
    body = {
        "messages": ASK,
        "tools": known,
        "tool_choice": "required" if choice == "required" else named,
        "parallel_tool_calls": False,
        "temperature": 0,
        "max_tokens": 100,
    }
    (answer,) = post(server, "/v1/chat/completions", **body)["choices"]
    (call,) = answer["message"]["tool_calls"]
    assert answer["finish_reason"] == "tool_calls"
    assert answer["message"]["content"] is None
    assert call["id"].startswith("call_")
    assert call["function"]["name"] == name
    jsonschema.validate(json.loads(call["function"]["arguments"]), SCHEMAS[name])
    deltas = [chunk["choices"][0]["delta"] for chunk in chunks(server, **body)]
    first, *rest = [part for delta in deltas for part in delta.get("tool_calls", ())]
    assert (first["index"], first["type"], first["function"]["name"]) == (0, "function", name)
    said = "".join(part["function"]["arguments"] for part in (first, *rest))
    assert said == call["function"]["arguments"]
    assert not any("name" in part["function"] for part in rest)


@pytest.mark.parametrize(
    "body", [{"tools": []}, {}, {"tools": tools("success"), "tool_choice": "none"}]
)
def test_without_tools_nothing_is_called(server: Server, body: dict[str, Any]) -> None:
    asked = {"messages": ASK, "temperature": 0, "max_tokens": 40} | body
    (answer,) = post(server, "/v1/chat/completions", **asked)["choices"]
    assert "tool_calls" not in answer["message"]
    assert answer["message"]["content"]


def test_a_conversation_goes_on_after_a_call(server: Server) -> None:
    call = {"id": "call_1", "type": "function", "function": {"name": "get_weather"}}
    call["function"] |= {"arguments": '{"location": "Paris"}'}  # type: ignore[operator]
    turns = [
        {"role": "user", "content": "Weather in Paris?"},
        {"role": "assistant", "content": None, "tool_calls": [call]},
        {"role": "tool", "tool_call_id": "call_1", "content": "Sunny, 20 degrees."},
    ]
    body = {"messages": turns, "tools": tools("get_weather"), "tool_choice": "none", **AT_ZERO}
    assert post(server, "/v1/chat/completions", **body)["choices"][0]["message"]["content"]


# ---- messages


def test_messages_are_answered_whole_and_as_events(server: Server) -> None:
    body = {"messages": ASK, "max_tokens": 24, "temperature": 0, "system": "Be brief."}
    whole = post(server, "/v1/messages", **body)
    (block,) = whole["content"]
    assert (whole["type"], whole["role"], block["type"]) == ("message", "assistant", "text")
    told = events(server, "/v1/messages", **body)
    kinds = [event["type"] for event in told if event["type"] != "ping"]
    assert kinds[:2] == ["message_start", "content_block_start"]
    assert kinds[-3:] == ["content_block_stop", "message_delta", "message_stop"]
    assert set(kinds[2:-3]) == {"content_block_delta"}
    said = [event["delta"].get("text", "") for event in told if "delta" in event]
    assert "".join(said) == block["text"]
    counted = post(server, "/v1/messages/count_tokens", messages=ASK, system="Be brief.")
    assert counted == {"input_tokens": whole["usage"]["input_tokens"]}


def test_messages_call_tools_and_take_their_results(server: Server) -> None:
    known = [{"name": name, "input_schema": schema} for name, schema in SCHEMAS.items()]
    body = {"messages": ASK, "max_tokens": 100, "temperature": 0, "tools": known}
    chosen = {"tool_choice": {"type": "tool", "name": "get_weather"}}
    whole = post(server, "/v1/messages", **body, **chosen)
    (block,) = whole["content"]
    assert (whole["stop_reason"], block["type"], block["name"]) == (
        "tool_use",
        "tool_use",
        "get_weather",
    )
    jsonschema.validate(block["input"], CITY)
    told = events(server, "/v1/messages", **body, **chosen)
    said = [event["delta"].get("partial_json", "") for event in told if "delta" in event]
    assert json.loads("".join(said)) == block["input"]
    result = {"type": "tool_result", "tool_use_id": block["id"], "content": "Sunny."}
    turns = [*ASK, {"role": "assistant", "content": [block]}, {"role": "user", "content": [result]}]
    assert post(server, "/v1/messages", **body | {"messages": turns})["content"]


# ---- responses


def test_responses_are_answered_whole_and_as_events(server: Server) -> None:
    body = {"input": "Say hello.", "max_output_tokens": 24, "temperature": 0}
    whole = post(server, "/v1/responses", **body)
    (item,) = whole["output"]
    told = events(server, "/v1/responses", **body)
    assert [event["sequence_number"] for event in told] == list(range(len(told)))
    kinds = [event["type"].removeprefix("response.") for event in told]
    assert kinds[:4] == ["created", "in_progress", "output_item.added", "content_part.added"]
    assert kinds[-1] == whole["status"]
    said = [event["delta"] for event in told if event["type"].endswith("output_text.delta")]
    assert (
        "".join(said)
        == item["content"][0]["text"]
        == told[-1]["response"]["output"][0]["content"][0]["text"]
    )


def test_responses_call_tools_and_take_their_results(server: Server) -> None:
    known = [
        {"type": "function", "name": name, "parameters": schema} for name, schema in SCHEMAS.items()
    ]
    body = {"input": "Weather in Paris?", "tools": known, "temperature": 0}
    chosen = {"tool_choice": {"type": "function", "name": "get_weather"}}
    (call,) = post(server, "/v1/responses", **body, **chosen)["output"]
    jsonschema.validate(json.loads(call["arguments"]), CITY)
    told = events(server, "/v1/responses", **body, **chosen)
    said = [event["delta"] for event in told if event["type"].endswith("arguments.delta")]
    assert "".join(said) == call["arguments"]
    turns = [{"role": "user", "content": "Weather in Paris?"}, call]
    turns += [{"type": "function_call_output", "call_id": call["call_id"], "output": "Sunny."}]
    after = {"input": turns, "tools": known, "tool_choice": "none", "max_output_tokens": 24}
    assert post(server, "/v1/responses", **after)["output"][0]["type"] == "message"
