"""What Ollama's own client makes of a server. Prints one JSON object; `text`, `tools` or `embeddings` says what is asked."""

from __future__ import annotations

import asyncio
import json
import sys

import ollama
from pydantic import BaseModel, Field

HELLO = [{"role": "user", "content": "Hello"}]
TOOL = {
    "type": "function",
    "function": {"name": "look", "parameters": {"type": "object", "properties": {}}},
}
KEY = {"Authorization": "Bearer secret"}


class City(BaseModel):
    """A city."""

    name: str = Field(max_length=20)


def text(url: str) -> dict[str, object]:
    client = ollama.Client(host=url, headers=KEY)
    whole = client.chat(model="tiny", messages=HELLO, options={"num_predict": 64})
    streamed = list(client.chat(model="tiny", messages=HELLO, stream=True))
    try:
        client.chat(model="no", messages=HELLO)
    except ollama.ResponseError as error:
        refused = error.status_code
    return {
        "whole": whole.message.content,
        "streamed": "".join(line.message.content for line in streamed),
        "asynchronous": asyncio.run(asynchronous(url)),
        "generated": client.generate(model="tiny", prompt="Hello").response,
        "usage": [whole.prompt_eval_count, streamed[-1].prompt_eval_count],
        "stop": [whole.done_reason, streamed[-1].done_reason],
        "models": [model.model for model in client.list().models],
        "running": [model.model for model in client.ps().models],
        "family": client.show("tiny").details.family,
        "refused": refused,
    }


async def asynchronous(url: str) -> str:
    client = ollama.AsyncClient(host=url, headers=KEY)
    stream = await client.chat(model="tiny", messages=HELLO, stream=True)
    return "".join([line.message.content async for line in stream])


def tools(url: str) -> dict[str, object]:
    client = ollama.Client(host=url, headers=KEY)
    whole = client.chat(model="tiny", messages=HELLO, tools=[TOOL])
    streamed = list(client.chat(model="tiny", messages=HELLO, tools=[TOOL], stream=True))
    return {
        "calls": [
            [call.function.name, dict(call.function.arguments)]
            for line in (whole, *streamed)
            for call in line.message.tool_calls or ()
        ],
    }


def embeddings(url: str) -> dict[str, object]:
    client = ollama.Client(host=url, headers=KEY)
    several = client.embed(model="tiny", input=["Hello", "world"])
    short = client.embed(model="tiny", input="Hello", dimensions=2)
    return {
        "vectors": [list(vector) for vector in several.embeddings],
        "short": list(short.embeddings[0]),
        "usage": several.prompt_eval_count,
        "old": list(client.embeddings(model="tiny", prompt="Hello").embedding),
    }


def schema(url: str) -> dict[str, object]:
    client = ollama.Client(host=url, headers=KEY)
    asked = {
        "model": client.list().models[0].model,
        "messages": HELLO,
        "format": City.model_json_schema(),
        "options": {"temperature": 0, "num_predict": 64},
    }
    whole = client.chat(**asked).message.content
    streamed = "".join(line.message.content for line in client.chat(**asked, stream=True))
    told = [whole, streamed, asyncio.run(formed(url, asked))]
    return {"cities": [City.model_validate_json(text).name for text in told]}


async def formed(url: str, asked: dict[str, object]) -> str:
    return (await ollama.AsyncClient(host=url, headers=KEY).chat(**asked)).message.content


if __name__ == "__main__":
    print(
        json.dumps(
            {"text": text, "tools": tools, "schema": schema, "embeddings": embeddings}[sys.argv[2]](
                sys.argv[1]
            )
        )
    )
