"""Tools and reasoning in chat completions, to the shapes that clients read; the same calls from the other dialects."""

from __future__ import annotations

import httpx
import orjson
import pytest

from coordinator.cluster.scripted_service import say
from coordinator.edge.app import Parsers, create_app
from protocol.finish import FinishReason

TOOL = {"type": "function", "function": {"name": "look", "parameters": {"type": "object"}}}
CALL = '<tool_call>{"name": "look", "arguments": {"at": "x"}}</tool_call>'
HELLO = [{"role": "user", "content": "Hello"}]


@pytest.fixture
async def client(service, served_model):
    app = create_app(service=service, model=served_model, parsers=Parsers("hermes", "think"))
    transport = httpx.ASGITransport(app=app, raise_app_exceptions=False)
    async with httpx.AsyncClient(transport=transport, base_url="http://edge") as connected:
        yield connected


@pytest.fixture
def script(service, tokenizer):
    def write(text, finish_reason=FinishReason.STOP):
        token_ids = tokenizer.encode(text, add_special_tokens=False)
        service.default = say([*token_ids, 2], finish_reason)

    return write


async def chat(client, **fields):
    asked = {"messages": HELLO, "tools": [TOOL], "max_tokens": 100} | fields
    return await client.post("/v1/chat/completions", json=asked)


def chunks(response):
    lines = [line.removeprefix("data: ") for line in response.text.split("\n\n")]
    assert lines[-2:] == ["[DONE]", ""]
    return [orjson.loads(line) for line in lines[:-2]]


async def test_a_whole_answer_that_calls(client, script):
    script(f"<think>hm</think>\n{CALL}")
    choice = (await chat(client)).json()["choices"][0]
    (call,) = choice["message"].pop("tool_calls")
    assert choice["finish_reason"] == "tool_calls"
    assert choice["message"] == {
        "role": "assistant",
        "content": None,
        "reasoning_content": "hm",
        "reasoning": "hm",
    }
    assert call.pop("id").startswith("call_")
    function = {"name": "look", "arguments": '{"at": "x"}'}
    assert call == {"type": "function", "function": function}


async def test_a_stream_that_calls(client, script):
    script(f"<think>hm</think>Well, {CALL}")
    whole = (await chat(client)).json()["choices"][0]["message"]
    told = chunks(await chat(client, stream=True))
    deltas = [chunk["choices"][0]["delta"] for chunk in told]
    assert deltas[0]["role"] == "assistant"
    assert sum("role" in delta for delta in deltas) == 1
    assert "".join(delta.get("content") or "" for delta in deltas) == whole["content"] == "Well,"
    assert "".join(delta.get("reasoning_content", "") for delta in deltas) == "hm"
    assert all(len(delta.get("tool_calls", ())) <= 1 for delta in deltas)
    first, *rest = [call for delta in deltas for call in delta.get("tool_calls", ())]
    assert first.pop("id").startswith("call_")
    named = {"name": "look", "arguments": ""}
    assert first == {"index": 0, "type": "function", "function": named}
    assert {tuple(call) for call in rest} == {("index", "function")}
    assert {tuple(call["function"]) for call in rest} == {("arguments",)}
    said = "".join(call["function"]["arguments"] for call in rest)
    assert said == whole["tool_calls"][0]["function"]["arguments"]
    assert told[-1]["choices"][0]["finish_reason"] == "tool_calls"


@pytest.mark.parametrize("fields", [{"tool_choice": "none"}, {"tools": None}, {"tools": []}])
async def test_without_tools_a_call_is_text(client, script, fields):
    script(CALL)
    choice = (await chat(client, **fields)).json()["choices"][0]
    assert (choice["message"]["content"], choice["finish_reason"]) == (CALL, "stop")
    assert "tool_calls" not in choice["message"]


async def test_reasoning_tokens_are_counted(client, script, tokenizer):
    script("<think>hm hm</think>Hello")
    usage = (await chat(client)).json()["usage"]
    thought = usage["completion_tokens_details"]["reasoning_tokens"]
    assert 0 < thought < usage["completion_tokens"]


@pytest.mark.parametrize("choice", ["required", {"type": "function", "function": {"name": "look"}}])
async def test_a_call_cannot_be_forced_yet(client, choice):
    response = await chat(client, tool_choice=choice)
    assert (response.status_code, response.json()["error"]["param"]) == (400, "tool_choice")


async def test_the_other_dialects_call_too(client, script):
    script(f"<think>hm</think>{CALL}")
    tools = [{"name": "look", "input_schema": {"type": "object"}}]
    asked = {"messages": HELLO, "tools": tools, "max_tokens": 100}
    told = (await client.post("/v1/messages", json=asked)).json()
    assert [block["type"] for block in told["content"]] == ["thinking", "tool_use"]
    assert (told["content"][1]["input"], told["stop_reason"]) == ({"at": "x"}, "tool_use")
    forced = asked | {"tool_choice": {"type": "any"}}
    assert (await client.post("/v1/messages", json=forced)).status_code == 400
    flat = [{"type": "function", "name": "look", "parameters": {"type": "object"}}]
    told = (await client.post("/v1/responses", json={"input": "Hello", "tools": flat})).json()
    assert [item["type"] for item in told["output"]] == ["reasoning", "function_call"]
    assert told["output"][1]["arguments"] == '{"at": "x"}'
