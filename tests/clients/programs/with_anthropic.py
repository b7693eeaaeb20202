"""What Anthropic's own client makes of a server. Prints one JSON object; `text` or `tools` says what is asked."""

from __future__ import annotations

import asyncio
import json
import sys

import anthropic

HELLO = [{"role": "user", "content": "Hello"}]
TOOL = {"name": "look", "description": "Look.", "input_schema": {"type": "object"}}


def text(url: str) -> dict[str, object]:
    client = anthropic.Anthropic(base_url=url, api_key="secret", max_retries=0)
    asked = {"model": "tiny", "max_tokens": 64, "messages": HELLO}
    whole = client.messages.create(**asked)
    with client.messages.stream(**asked) as stream:
        streamed = "".join(stream.text_stream)
        final = stream.get_final_message()
    try:
        client.messages.create(**asked | {"model": "no"})
    except anthropic.NotFoundError as error:
        refused = error.body["error"]["type"]
    return {
        "whole": whole.content[0].text,
        "streamed": streamed,
        "asynchronous": asyncio.run(asynchronous(url, asked)),
        "usage": [whole.usage.input_tokens, final.usage.input_tokens],
        "output": [whole.usage.output_tokens, final.usage.output_tokens],
        "counted": client.messages.count_tokens(model="tiny", messages=HELLO).input_tokens,
        "stop": [whole.stop_reason, final.stop_reason],
        "models": [model.id for model in client.models.list()],
        "refused": refused,
    }


async def asynchronous(url: str, asked: dict[str, object]) -> str:
    client = anthropic.AsyncAnthropic(base_url=url, api_key="secret", max_retries=0)
    async with client.messages.stream(**asked) as stream:
        return "".join([piece async for piece in stream.text_stream])


def tools(url: str) -> dict[str, object]:
    client = anthropic.Anthropic(base_url=url, api_key="secret", max_retries=0)
    asked = {"model": "tiny", "max_tokens": 64, "messages": HELLO, "tools": [TOOL]}
    whole = client.messages.create(**asked)
    with client.messages.stream(**asked) as stream:
        final = stream.get_final_message()
    return {
        "calls": [[block.name, block.input] for block in whole.content],
        "streamed": [[block.name, block.input] for block in final.content],
        "stop": [whole.stop_reason, final.stop_reason],
    }


if __name__ == "__main__":
    print(json.dumps({"text": text, "tools": tools}[sys.argv[2]](sys.argv[1])))
