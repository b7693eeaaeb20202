"""What OpenAI's own client makes of a server, chats and responses. Prints one JSON object; `text`, `tools` or `embeddings` says what is asked."""

from __future__ import annotations

import asyncio
import json
import sys

import openai
from pydantic import BaseModel, Field

HELLO = [{"role": "user", "content": "Hello"}]
TOOL = {"type": "function", "function": {"name": "look", "parameters": {"type": "object"}}}
FLAT = {"type": "function", "name": "look", "parameters": {"type": "object"}, "strict": False}


class City(BaseModel):
    """A city."""

    name: str = Field(max_length=20)


def text(url: str) -> dict[str, object]:
    client = openai.OpenAI(base_url=f"{url}/v1", api_key="secret", max_retries=0)
    whole = client.responses.create(model="tiny", input="Hello", instructions="Be brief")
    with client.responses.stream(model="tiny", input="Hello", instructions="Be brief") as stream:
        events = [event.type for event in stream]
        final = stream.get_final_response()
    second = client.responses.create(
        model="tiny", input="Again", previous_response_id=whole.id, store=False
    )
    return {
        "chat": client.chat.completions.create(model="tiny", messages=HELLO)
        .choices[0]
        .message.content,
        "whole": whole.output_text,
        "streamed": final.output_text,
        "asynchronous": asyncio.run(asynchronous(url)),
        "events": list(dict.fromkeys(events)),
        "usage": [whole.usage.total_tokens, final.usage.total_tokens],
        "grows": second.usage.input_tokens > whole.usage.input_tokens,
        "read": client.responses.retrieve(whole.id).output_text,
    }


async def asynchronous(url: str) -> str:
    client = openai.AsyncOpenAI(base_url=f"{url}/v1", api_key="secret", max_retries=0)
    stream = await client.responses.create(model="tiny", input="Hello", stream=True)
    told = [event.delta async for event in stream if event.type == "response.output_text.delta"]
    return "".join(told)


def tools(url: str) -> dict[str, object]:
    client = openai.OpenAI(base_url=f"{url}/v1", api_key="secret", max_retries=0)
    chat = client.chat.completions.create(model="tiny", messages=HELLO, tools=[TOOL])
    with client.chat.completions.stream(model="tiny", messages=HELLO, tools=[TOOL]) as stream:
        for _ in stream:
            pass
        streamed = stream.get_final_completion()
    response = client.responses.create(model="tiny", input="Hello", tools=[FLAT])
    with client.responses.stream(model="tiny", input="Hello", tools=[FLAT]) as events:
        final = events.get_final_response()
    choices = [chat.choices[0], streamed.choices[0]]
    return {
        "calls": [
            [call.function.name, json.loads(call.function.arguments)]
            for choice in choices
            for call in choice.message.tool_calls
        ],
        "items": [
            [item.name, json.loads(item.arguments)]
            for told in (response, final)
            for item in told.output
        ],
        "stop": [choice.finish_reason for choice in choices],
        "content": [choice.message.content for choice in choices],
    }


def embeddings(url: str) -> dict[str, object]:
    client = openai.OpenAI(base_url=f"{url}/v1", api_key="secret", max_retries=0)
    several = client.embeddings.create(model="tiny", input=["Hello", "world"])
    plain = client.embeddings.create(model="tiny", input="Hello", encoding_format="float")
    short = client.embeddings.create(model="tiny", input=[5, 6], dimensions=2)
    return {
        "vectors": [one.embedding for one in (*several.data, *plain.data)],
        "short": short.data[0].embedding,
        "usage": [several.usage.prompt_tokens, short.usage.total_tokens],
        "asynchronous": asyncio.run(embedded(url)),
    }


async def embedded(url: str) -> list[float]:
    client = openai.AsyncOpenAI(base_url=f"{url}/v1", api_key="secret", max_retries=0)
    return (await client.embeddings.create(model="tiny", input="Hello")).data[0].embedding


def schema(url: str) -> dict[str, object]:
    client = openai.OpenAI(base_url=f"{url}/v1", api_key="secret", max_retries=0)
    asked = {
        "model": client.models.list().data[0].id,
        "messages": HELLO,
        "response_format": City,
        "max_tokens": 64,
        "temperature": 0,
    }
    with client.chat.completions.stream(**asked) as stream:
        for _ in stream:
            pass
        streamed = stream.get_final_completion()
    answers = [client.chat.completions.parse(**asked), streamed, asyncio.run(parsed(url, asked))]
    response = client.responses.parse(
        model=asked["model"], input="Hello", text_format=City, temperature=0
    )
    cities = [*(answer.choices[0].message.parsed for answer in answers), response.output_parsed]
    return {"cities": [city.name for city in cities]}


async def parsed(url: str, asked: dict[str, object]) -> object:
    client = openai.AsyncOpenAI(base_url=f"{url}/v1", api_key="secret", max_retries=0)
    return await client.chat.completions.parse(**asked)


if __name__ == "__main__":
    print(
        json.dumps(
            {"text": text, "tools": tools, "schema": schema, "embeddings": embeddings}[sys.argv[2]](
                sys.argv[1]
            )
        )
    )
