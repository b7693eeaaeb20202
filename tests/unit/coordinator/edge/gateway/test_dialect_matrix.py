"""Every dialect of clients at every dialect of servers, streamed and whole: the same text, calls, ends and counts."""

from __future__ import annotations

from typing import Any, NamedTuple

import orjson
import pytest

from tests.unit.coordinator.edge.gateway.scripted_upstream import (
    DONE,
    anthropic_events,
    chunk,
    stream,
    upstream,
    usage,
)
from tests.unit.coordinator.edge.gateway.test_model_groups import HELLO, TOOL, edge, entry

ARGUMENTS = {"city": "Rome", "days": [1, 2]}
PIECES = ('{"city": "Ro', 'me", "days": [1, 2]}')
FUNCTION = TOOL["function"]
ITEM = {"type": "function"} | FUNCTION
FORMS: dict[str, dict[str, Any]] = {
    "/v1/chat/completions": {"messages": HELLO, "tools": [TOOL]},
    "/v1/messages": {
        "messages": HELLO,
        "max_tokens": 50,
        "tools": [{"name": "weather", "input_schema": FUNCTION["parameters"]}],
    },
    "/v1/responses": {"input": "Hello", "tools": [ITEM]},
    "/api/chat": {"messages": HELLO, "tools": [TOOL]},
}


class Told(NamedTuple):
    """What an answer says, in nobody's dialect. Calls are names with arguments."""

    text: str
    calls: list[tuple[str, Any]]
    is_cut: bool
    counts: tuple[int, int]


ANSWERS = {
    "text": Told("Hi there", [], False, (8, 9)),
    "cut": Told("Hi there", [], True, (8, 9)),
    "call": Told("", [("weather", ARGUMENTS)], False, (8, 9)),
    "both": Told("Hi there", [("weather", ARGUMENTS)], False, (8, 9)),
    "two": Told("", [("weather", ARGUMENTS), ("weather", {})], False, (8, 9)),
}


def openai_stream(told: Told) -> Any:
    events = [chunk({"role": "assistant", "content": ""})]
    if told.text:
        events += [chunk({"content": told.text[:3]}), chunk({"content": told.text[3:]})]
    for index, (name, arguments) in enumerate(told.calls):
        first = {"index": index, "id": f"c{index}", "type": "function"}
        function: dict[str, Any] = {"name": name, "arguments": ""}
        events.append(chunk({"tool_calls": [first | {"function": function}]}))
        for piece in PIECES if arguments else ("{}",):
            more = {"index": index, "function": {"arguments": piece}}
            events.append(chunk({"tool_calls": [more]}))
    reason = "length" if told.is_cut else "tool_calls" if told.calls else "stop"
    return stream(*events, chunk(finish_reason=reason), usage(*told.counts), DONE)


def anthropic_stream(told: Told) -> Any:
    blocks: list[Any] = []
    if told.text:
        texts = (told.text[:3], told.text[3:])
        deltas = [{"type": "text_delta", "text": text} for text in texts]
        blocks.append(({"type": "text", "text": ""}, deltas))
    for index, (name, arguments) in enumerate(told.calls):
        block = {"type": "tool_use", "id": f"c{index}", "name": name, "input": {}}
        pieces = ("", *PIECES) if arguments else ()
        deltas = [{"type": "input_json_delta", "partial_json": piece} for piece in pieces]
        blocks.append((block, deltas))
    reason = "max_tokens" if told.is_cut else "tool_use" if told.calls else "end_turn"
    return stream(*anthropic_events(blocks, reason))


def events_of(text: str) -> list[dict[str, Any]]:
    lines = [line.removeprefix("data:").strip() for line in text.splitlines()]
    return [orjson.loads(line) for line in lines if line.startswith("{")]


def read_chat(text: str, is_stream: bool) -> Told:
    if not is_stream:
        (one,) = events_of(text)
        message, reason = one["choices"][0]["message"], one["choices"][0]["finish_reason"]
        calls = [it["function"] for it in message.get("tool_calls") or ()]
        said, told = message["content"] or "", one["usage"]
    else:
        chunks = events_of(text)
        told = next(one["usage"] for one in reversed(chunks) if one.get("usage"))
        choices = [choice for one in chunks for choice in one["choices"]]
        said = "".join(choice["delta"].get("content") or "" for choice in choices)
        reason = next(it["finish_reason"] for it in choices if it.get("finish_reason"))
        calls = []
        for choice in choices:
            for it in choice["delta"].get("tool_calls") or ():
                if it["index"] == len(calls):
                    calls.append(it["function"] | {"arguments": ""})
                calls[it["index"]]["arguments"] += it["function"].get("arguments") or ""
    assert (reason == "tool_calls") == bool(calls)
    named = [(it["name"], orjson.loads(it["arguments"])) for it in calls]
    counts = (told["prompt_tokens"], told["completion_tokens"])
    return Told(said, named, reason == "length", counts)


def read_messages(text: str, is_stream: bool) -> Told:
    if not is_stream:
        (one,) = events_of(text)
        blocks, reason, told = one["content"], one["stop_reason"], one["usage"]
    else:
        blocks, told, reason = [], {}, None
        for one in events_of(text):
            told |= one.get("usage") or one.get("message", {}).get("usage") or {}
            if one["type"] == "content_block_start":
                assert one["index"] == len(blocks)
                blocks.append(one["content_block"] | {"partial": ""})
            elif one["type"] == "content_block_delta":
                block, delta = blocks[one["index"]], one["delta"]
                if delta["type"] == "text_delta":
                    block["text"] += delta["text"]
                else:
                    block["partial"] += delta["partial_json"]
            elif one["type"] == "message_delta":
                reason = one["delta"]["stop_reason"]
        for block in blocks:
            if block["type"] == "tool_use":
                block["input"] = orjson.loads(block["partial"])
    said = "".join(block["text"] for block in blocks if block["type"] == "text")
    calls = [(it["name"], it["input"]) for it in blocks if it["type"] == "tool_use"]
    assert (reason == "tool_use") == bool(calls)
    return Told(said, calls, reason == "max_tokens", (told["input_tokens"], told["output_tokens"]))


def read_response(text: str, is_stream: bool) -> Told:
    one = events_of(text)[-1]
    whole = one["response"] if is_stream else one
    parts = [
        part for item in whole["output"] if item["type"] == "message" for part in item["content"]
    ]
    calls = [it for it in whole["output"] if it["type"] == "function_call"]
    named = [(it["name"], orjson.loads(it["arguments"])) for it in calls]
    told, said = whole["usage"], "".join(part["text"] for part in parts)
    if is_stream:
        events = events_of(text)
        deltas = [it["delta"] for it in events if it["type"] == "response.output_text.delta"]
        assert "".join(deltas) == said
    counts = (told["input_tokens"], told["output_tokens"])
    return Told(said, named, whole["status"] == "incomplete", counts)


def read_ollama(text: str, is_stream: bool) -> Told:
    lines = events_of(text)
    assert len(lines) > 1 or not is_stream
    said = "".join(one["message"]["content"] for one in lines)
    calls = [it["function"] for one in lines for it in one["message"].get("tool_calls") or ()]
    last = lines[-1]
    named = [(it["name"], it["arguments"]) for it in calls]
    counts = (last["prompt_eval_count"], last["eval_count"])
    return Told(said, named, last["done_reason"] == "length", counts)


READERS = {
    "/v1/chat/completions": read_chat,
    "/v1/messages": read_messages,
    "/v1/responses": read_response,
    "/api/chat": read_ollama,
}


@pytest.mark.parametrize("is_stream", [False, True])
@pytest.mark.parametrize("provider", ["openai", "hosted_vllm", "anthropic"])
@pytest.mark.parametrize("path", FORMS)
async def test_everybody_hears_what_a_server_said(
    served_model, tmp_path, path, provider, is_stream
):
    say = anthropic_stream if provider == "anthropic" else openai_stream
    acts = [say(told) for told in ANSWERS.values()]
    async with (
        upstream(*acts) as server,
        edge(served_model, tmp_path, entry(server, provider=provider)) as client,
    ):
        for name, expected in ANSWERS.items():
            body = FORMS[path] | {"model": "g", "stream": is_stream}
            if path == "/v1/chat/completions" and is_stream:
                body["stream_options"] = {"include_usage": True}
            reply = await client.post(path, json=body)
            assert reply.status_code == 200, reply.text
            told = READERS[path](reply.text, is_stream)
            if path == "/v1/messages":  # their input is what was not cached
                cached = expected.counts[0] - told.counts[0]
                assert cached in (0, 2, 3)
                told = told._replace(counts=(told.counts[0] + cached, told.counts[1]))
            assert told == expected, name
    for _, _, asked in server.asked:
        (tool,) = asked["tools"]
        schema = tool.get("input_schema") or tool["function"]["parameters"]
        assert schema == FUNCTION["parameters"]
