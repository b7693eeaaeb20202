"""What LiteLLM's SDK makes of a server, by three of its providers. Prints one JSON object."""

from __future__ import annotations

import asyncio
import json
import sys

import litellm

HELLO = [{"role": "user", "content": "Say hello."}]
ASKED = {"temperature": 0, "max_tokens": 64, "api_key": "none", "num_retries": 0}
WEATHER = {
    "type": "function",
    "function": {
        "name": "weather",
        "description": "The weather in a city.",
        "parameters": {
            "type": "object",
            "properties": {"city": {"type": "string", "maxLength": 20}},
            "required": ["city"],
            "additionalProperties": False,
        },
    },
}
CITY = {
    "type": "object",
    "properties": {"name": {"type": "string", "maxLength": 20}},
    "required": ["name"],
    "additionalProperties": False,
}


def providers(url: str) -> dict[str, dict[str, str]]:
    return {
        "openai": {"model": "openai/smollm2-135m", "api_base": f"{url}/v1"},
        "hosted_vllm": {"model": "hosted_vllm/smollm2-135m", "api_base": f"{url}/v1"},
        "anthropic": {"model": "anthropic/smollm2-135m", "api_base": url},
    }


def text(url: str) -> dict[str, object]:
    told = {}
    for name, where in providers(url).items():
        whole = litellm.completion(messages=HELLO, **where, **ASKED)
        stream = litellm.completion(messages=HELLO, stream=True, **where, **ASKED)
        later = asyncio.run(litellm.acompletion(messages=HELLO, **where, **ASKED))
        told[name] = [
            whole.choices[0].message.content,
            "".join(chunk.choices[0].delta.content or "" for chunk in stream),
            later.choices[0].message.content,
        ]
    return told


def tools(url: str) -> dict[str, object]:
    told = {}
    for name, where in providers(url).items():
        asked = {**where, **ASKED, "tools": [WEATHER], "tool_choice": "required"}
        whole = litellm.completion(messages=HELLO, **asked).choices[0]
        chunks = list(litellm.completion(messages=HELLO, stream=True, **asked))
        streamed = litellm.stream_chunk_builder(chunks).choices[0]
        told[name] = [
            [choice.finish_reason, call.function.name, json.loads(call.function.arguments)]
            for choice in (whole, streamed)
            for call in choice.message.tool_calls[:1]
        ]
    return told


def schema(url: str) -> dict[str, object]:
    form = {"type": "json_schema", "json_schema": {"name": "city", "schema": CITY, "strict": True}}
    told = {}
    for name, where in providers(url).items():
        answer = litellm.completion(messages=HELLO, response_format=form, **where, **ASKED)
        told[name] = sorted(json.loads(answer.choices[0].message.content))
    return told


if __name__ == "__main__":
    print(json.dumps({"text": text, "tools": tools, "schema": schema}[sys.argv[2]](sys.argv[1])))
