"""What Anthropic's own client makes of a server. Prints one JSON object; `text` or `tools` says what is asked."""

from __future__ import annotations

import asyncio
import json
import sys

import anthropic
from pydantic import BaseModel, Field

HELLO = [{"role": "user", "content": "Hello"}]
TOOL = {"name": "look", "description": "Look.", "input_schema": {"type": "object"}}


class City(BaseModel):
    """A city."""

    name: str = Field(max_length=20)


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


def schema(url: str) -> dict[str, object]:
    client = anthropic.Anthropic(base_url=url, api_key="secret", max_retries=0)
    asked = {
        "model": client.models.list().data[0].id,
        "max_tokens": 64,
        "messages": HELLO,
        "output_format": City,
    }
    with client.messages.stream(**asked) as stream:
        streamed = stream.get_final_message()
    told = [client.messages.parse(**asked), streamed, asyncio.run(parsed(url, asked))]
    return {"cities": [message.parsed_output.name for message in told]}


async def parsed(url: str, asked: dict[str, object]) -> object:
    client = anthropic.AsyncAnthropic(base_url=url, api_key="secret", max_retries=0)
    return await client.messages.parse(**asked)


if __name__ == "__main__":
    print(json.dumps({"text": text, "tools": tools, "schema": schema}[sys.argv[2]](sys.argv[1])))
