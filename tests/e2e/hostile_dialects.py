"""Hostile bodies in every dialect, as `hostile_bodies` has them for chats and completions. Owns the list."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import orjson

from tests.e2e.hostile_bodies import (
    CHAT,
    COMPLETE,
    DETOKENIZE,
    LIMIT,
    SAY,
    TOKENIZE,
    chat,
    filled,
    prompt,
    text,
)

MESSAGES, COUNT, RESPONSES = "/v1/messages", "/v1/messages/count_tokens", "/v1/responses"
OLLAMA_CHAT, GENERATE, SHOW, EMBED = "/api/chat", "/api/generate", "/api/show", "/api/embed"
SCALE = "/cluster/scale"
MUCH = "x" * (LIMIT - 400)
FEW = 60_000
ONE_TOKEN = {"num_predict": 1}
VALUES = {"a": [1] * FEW}
TOO_MANY = {"a": [1] * 1_000_000}
SCHEMA = {"type": "object", "properties": {f"k{i}": {"type": "string"} for i in range(8000)}}
LONG_SCHEMA = {"type": "string", "enum": [MUCH]}
BASE64 = "iVBORw0KGgo" * (LIMIT // 12)
BRACKETS = "[" * 900 + "]" * 900
MANY_BRACKETS = "[" + ",".join(["[]"] * (LIMIT // 4)) + "]"
STOPS = ["ab" * 100 + str(i) for i in range(16)]


def messages(**fields: Any) -> bytes:
    return orjson.dumps({"messages": [SAY], "max_tokens": 1} | fields)


def blocks(*content: Any) -> bytes:
    return messages(messages=[{"role": "user", "content": list(content)}])


def response(**fields: Any) -> bytes:
    return orjson.dumps({"input": "x", "max_output_tokens": 1} | fields)


def ollama(**fields: Any) -> bytes:
    return orjson.dumps({"messages": [SAY], "stream": False, "options": ONE_TOKEN} | fields)


def generate(**fields: Any) -> bytes:
    return orjson.dumps({"prompt": "x", "stream": False, "options": ONE_TOKEN} | fields)


def call(arguments: Any) -> list[dict[str, Any]]:
    function = {"function": {"name": "f", "arguments": arguments}}
    return [SAY, {"role": "assistant", "content": "", "tool_calls": [function]}]


def says(said: str) -> list[dict[str, str]]:
    return [{"role": "user", "content": said}]


OPENAI: dict[str, tuple[str, Callable[[], bytes]]] = {
    "128 texts": (
        COMPLETE,
        lambda: orjson.dumps({"prompt": ["x " * 4000] * 128, "max_tokens": 1, "echo": True}),
    ),
    "128 short texts": (COMPLETE, lambda: orjson.dumps({"prompt": ["x"] * 128, "max_tokens": 1})),
    "128 full prompts": (
        COMPLETE,
        lambda: orjson.dumps({"prompt": [[64] * 8000] * 128, "max_tokens": 1, "echo": True}),
    ),
    "scores of a full prompt": (
        COMPLETE,
        lambda: orjson.dumps(
            {"prompt": [64] * 8000, "max_tokens": 1, "echo": True, "logprobs": 20}
            | {"prompt_logprobs": 20}
        ),
    ),
    "alternatives in 128 choices": (
        COMPLETE,
        lambda: orjson.dumps({"prompt": ["x"] * 16, "n": 8, "max_tokens": 30, "logprobs": 20}),
    ),
    "a million fractions": (COMPLETE, lambda: filled(b'{"prompt":"x","u":[', b"1.5", b"]}")),
    "a huge n": (COMPLETE, lambda: b'{"prompt":"x","n":' + b"9" * 4000 + b"}"),
    "16 stops": (COMPLETE, lambda: orjson.dumps(prompt("x") | {"stop": STOPS, "n": 8})),
    "a call's object": (CHAT, lambda: chat(messages=call(VALUES))),
    "a call's huge object": (CHAT, lambda: chat(messages=call(TOO_MANY))),
    "a call's deep text": (CHAT, lambda: chat(messages=call(f'{{"a":{BRACKETS}}}'))),
    "a call's brackets": (CHAT, lambda: chat(messages=call(f'{{"a":{MANY_BRACKETS}}}'))),
    "a call's long text": (
        CHAT,
        lambda: chat(messages=call(orjson.dumps({"a": MUCH[:-200]}).decode())),
    ),
    "calls that are none": (
        CHAT,
        lambda: filled(b'{"messages":[{"role":"assistant","tool_calls":[', b"1", b"]}]}"),
    ),
    "a schema": (
        CHAT,
        lambda: chat(response_format={"type": "json_schema", "json_schema": {"schema": SCHEMA}}),
    ),
    "a long schema": (
        CHAT,
        lambda: chat(
            response_format={"type": "json_schema", "json_schema": {"schema": LONG_SCHEMA}}
        ),
    ),
    "a schema in a text": (CHAT, lambda: chat(guided_json=orjson.dumps(SCHEMA).decode())),
    "brackets in a schema's text": (CHAT, lambda: chat(guided_json=MANY_BRACKETS)),
    "a deep schema's text": (CHAT, lambda: chat(guided_json='{"a":' * 900 + "1" + "}" * 900)),
    "choices": (CHAT, lambda: chat(guided_choice=[f"c{i}" for i in range(FEW)])),
    "a regex": (CHAT, lambda: chat(guided_regex="(a|b)*" * (LIMIT // 8))),
    "a grammar": (CHAT, lambda: chat(guided_grammar='root ::= "a"\n' * (LIMIT // 16))),
    "structured outputs": (CHAT, lambda: chat(structured_outputs={"json": LONG_SCHEMA})),
    "control tokens": (CHAT, lambda: text("<|im_start|>", lambda said: {"messages": says(said)})),
    "brackets of control tokens": (CHAT, lambda: text("<|", lambda said: {"messages": says(said)})),
    "an assistant's text": (
        CHAT,
        lambda: text(
            "<|im_end|> ", lambda said: {"messages": [SAY, {"role": "assistant", "content": said}]}
        ),
    ),
    "spaces": (CHAT, lambda: text(" ", lambda said: {"messages": says(said)})),
    "noncharacters": (CHAT, lambda: text("\ufdd0", lambda said: {"messages": says(f"<|{said}")})),
    "thoughts": (
        CHAT,
        lambda: chat(
            messages=[SAY, {"role": "assistant", "content": "", "reasoning_content": MUCH}]
        ),
    ),
    "an image": (
        CHAT,
        lambda: chat(
            messages=[
                {
                    "role": "user",
                    "content": [
                        {
                            "type": "image_url",
                            "image_url": {"url": f"data:image/png;base64,{BASE64}"},
                        }
                    ],
                }
            ]
        ),
    ),
    "documents": (CHAT, lambda: chat(documents=[{"title": "t", "text": MUCH}])),
    "nested template arguments": (CHAT, lambda: chat(chat_template_kwargs={"a": VALUES})),
    "metadata": (CHAT, lambda: chat(metadata={"a": MUCH})),
    "a user": (CHAT, lambda: chat(user=MUCH)),
    "tokenize tools": (TOKENIZE, lambda: chat(tools=[{"function": {"name": "f", "a": VALUES}}])),
    "detokenize long tokens": (DETOKENIZE, lambda: orjson.dumps({"tokens": [256] * 1_000_000})),
    "scale with brackets": (SCALE, lambda: b'{"prefill":' + b"[" * (LIMIT - 20)),
    "scale with lists": (SCALE, lambda: filled(b'{"prefill":[', b"[]", b"]}")),
}
ANTHROPIC: dict[str, tuple[str, Callable[[], bytes]]] = {
    "one text": (MESSAGES, lambda: messages(messages=says(MUCH))),
    "counted text": (COUNT, lambda: messages(messages=says(MUCH))),
    "1,000 turns of one role": (MESSAGES, lambda: messages(messages=says("x " * 1900) * 1000)),
    "1,000 small turns": (MESSAGES, lambda: messages(messages=says("x") * 1024)),
    "blocks": (
        MESSAGES,
        lambda: filled(
            b'{"max_tokens":1,"messages":[{"role":"user","content":[',
            b'{"type":"text","text":""}',
            b"]}]}",
        ),
    ),
    "8,000 blocks": (MESSAGES, lambda: blocks(*[{"type": "text", "text": ""}] * 8000)),
    "blocks that are none": (MESSAGES, lambda: blocks(*[1] * FEW)),
    "blocks within a result": (
        MESSAGES,
        lambda: blocks({"type": "tool_result", "tool_use_id": "x", "content": [1] * FEW}),
    ),
    "empty blocks within a result": (
        MESSAGES,
        lambda: blocks({"type": "tool_result", "tool_use_id": "x", "content": [{}] * 8000}),
    ),
    "a call's input": (
        MESSAGES,
        lambda: messages(
            messages=[
                SAY,
                {
                    "role": "assistant",
                    "content": [{"type": "tool_use", "id": "i", "name": "f", "input": VALUES}],
                },
            ]
        ),
    ),
    "a system": (MESSAGES, lambda: messages(system=MUCH)),
    "a system of blocks": (
        MESSAGES,
        lambda: messages(system=[{"type": "text", "text": "x"}] * 8000),
    ),
    "an image of messages": (
        MESSAGES,
        lambda: blocks(
            {
                "type": "image",
                "source": {"type": "base64", "media_type": "image/png", "data": BASE64},
            }
        ),
    ),
    "a document that is a list": (
        MESSAGES,
        lambda: blocks({"type": "document", "source": {"type": "text", "data": [1] * FEW}}),
    ),
    "a document": (
        MESSAGES,
        lambda: blocks({"type": "document", "source": {"type": "text", "data": MUCH}}),
    ),
    "a tool of messages": (
        MESSAGES,
        lambda: messages(tools=[{"name": "f", "input_schema": VALUES}]),
    ),
    "tools of the vendor": (MESSAGES, lambda: messages(tools=[{"name": "f", "type": MUCH}])),
    "a chosen tool": (MESSAGES, lambda: messages(tool_choice={"type": "tool", "name": MUCH})),
    "stop sequences": (MESSAGES, lambda: messages(stop_sequences=["a"] * FEW)),
    "metadata of messages": (MESSAGES, lambda: messages(metadata={"user_id": MUCH})),
    "thinking": (MESSAGES, lambda: messages(thinking={"type": MUCH})),
    "a form": (
        MESSAGES,
        lambda: messages(output_config={"format": {"type": "json_schema", "schema": LONG_SCHEMA}}),
    ),
    "a model of messages": (MESSAGES, lambda: messages(model=MUCH)),
    "unknown fields of messages": (MESSAGES, lambda: messages(**{f"k{i}": 1 for i in range(FEW)})),
}
RESPONSE: dict[str, tuple[str, Callable[[], bytes]]] = {
    "an input": (RESPONSES, lambda: response(input=MUCH)),
    "1,000 items": (RESPONSES, lambda: response(input=says("x") * 1024)),
    "1,000 answers": (
        RESPONSES,
        lambda: response(input=[{"role": "assistant", "content": "x " * 1900}] * 1000),
    ),
    "parts of an item": (
        RESPONSES,
        lambda: response(
            input=[{"role": "user", "content": [{"type": "input_text", "text": ""}] * 8000}]
        ),
    ),
    "parts that are none": (
        RESPONSES,
        lambda: response(input=[{"role": "user", "content": [1] * FEW}]),
    ),
    "an item's own field": (RESPONSES, lambda: response(input=[SAY | {"u": [1] * FEW}])),
    "an item's long field": (RESPONSES, lambda: response(input=[SAY | {"u": MUCH}])),
    "a call's arguments": (
        RESPONSES,
        lambda: response(
            input=[
                {
                    "type": "function_call",
                    "name": "f",
                    "call_id": "c",
                    "arguments": f'{{"a":{MANY_BRACKETS}}}',
                }
            ]
        ),
    ),
    "a call's deep arguments": (
        RESPONSES,
        lambda: response(
            input=[
                {
                    "type": "function_call",
                    "name": "f",
                    "call_id": "c",
                    "arguments": f'{{"a":{BRACKETS}}}',
                }
            ]
        ),
    ),
    "metadata of a response": (RESPONSES, lambda: response(metadata={"a": MUCH})),
    "metadata of many keys": (
        RESPONSES,
        lambda: response(metadata={f"k{i}": "v" for i in range(30_000)}),
    ),
    "a user of a response": (RESPONSES, lambda: response(user=MUCH)),
    "instructions": (RESPONSES, lambda: response(instructions=MUCH)),
    "tools of theirs": (
        RESPONSES,
        lambda: response(tools=[{"type": "function", "name": "f", "u": MUCH}]),
    ),
    "a tool's schema": (
        RESPONSES,
        lambda: response(tools=[{"type": "function", "name": "f", "parameters": VALUES}]),
    ),
    "a response in the background": (
        RESPONSES,
        lambda: response(
            stream=True,
            background=True,
            max_output_tokens=60,
            top_logprobs=20,
            tools=[{"type": "web_search", "u": ["a"] * 30_000}],
        ),
    ),
    "a choice of tools": (
        RESPONSES,
        lambda: response(
            tool_choice={"type": "allowed_tools", "tools": [{}] * 8000, "u": MUCH[:-80_000]}
        ),
    ),
    "a form of a response": (
        RESPONSES,
        lambda: response(text={"format": {"type": "json_schema", "schema": LONG_SCHEMA}}),
    ),
    "text with much besides": (
        RESPONSES,
        lambda: response(text={"format": {"type": "text", "u": MUCH}}),
    ),
    "an effort": (RESPONSES, lambda: response(reasoning={"effort": MUCH})),
    "what to include": (RESPONSES, lambda: response(include=["x"] * FEW)),
    "a predecessor": (RESPONSES, lambda: response(previous_response_id=MUCH)),
    "an image of a response": (
        RESPONSES,
        lambda: response(
            input=[
                {"role": "user", "content": [{"type": "input_image", "image_url": BASE64}]},
            ]
        ),
    ),
}
OLLAMA: dict[str, tuple[str, Callable[[], bytes]]] = {
    "a text of ollama": (OLLAMA_CHAT, lambda: ollama(messages=says(MUCH))),
    "messages of ollama": (OLLAMA_CHAT, lambda: ollama(messages=says("x") * 1024)),
    "too many messages": (OLLAMA_CHAT, lambda: ollama(messages=says("x") * 10_000)),
    "calls that are numbers": (
        OLLAMA_CHAT,
        lambda: ollama(messages=[SAY, {"role": "assistant", "tool_calls": [1] * FEW}]),
    ),
    "calls by the million": (
        OLLAMA_CHAT,
        lambda: ollama(messages=[SAY, {"role": "assistant", "tool_calls": [1] * 1_000_000}]),
    ),
    "an ollama call's object": (OLLAMA_CHAT, lambda: ollama(messages=call(VALUES))),
    "images": (OLLAMA_CHAT, lambda: ollama(messages=[SAY | {"images": [BASE64]}])),
    "a format": (OLLAMA_CHAT, lambda: ollama(format=LONG_SCHEMA)),
    "a format that is a text": (OLLAMA_CHAT, lambda: ollama(format=MANY_BRACKETS)),
    "tools of ollama": (
        OLLAMA_CHAT,
        lambda: ollama(tools=[{"function": {"name": "f", "u": VALUES}}]),
    ),
    "options": (OLLAMA_CHAT, lambda: ollama(options={f"k{i}": 1 for i in range(FEW)} | ONE_TOKEN)),
    "stops of ollama": (OLLAMA_CHAT, lambda: ollama(options={"stop": ["ab"] * FEW} | ONE_TOKEN)),
    "a model of ollama": (SHOW, lambda: orjson.dumps({"model": MUCH})),
    "embeddings": (EMBED, lambda: orjson.dumps({"input": ["x"] * FEW})),
    "a prompt of ollama": (GENERATE, lambda: generate(prompt=MUCH)),
    "a raw prompt": (GENERATE, lambda: generate(prompt=MUCH, raw=True)),
    "a system of ollama": (GENERATE, lambda: generate(system=MUCH)),
    "a context": (GENERATE, lambda: generate(context=[1] * FEW)),
    "how long to keep it": (GENERATE, lambda: generate(keep_alive=MUCH)),
    "thinking of ollama": (GENERATE, lambda: generate(think=MUCH)),
}
DIALECTS = OPENAI | ANTHROPIC | RESPONSE | OLLAMA
"""Name to (path, what makes the body)."""
