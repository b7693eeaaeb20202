"""What instructor makes of a server, in each mode that a server has to help with. Prints one JSON object."""

from __future__ import annotations

import asyncio
import json
import sys

import instructor
import openai
from pydantic import BaseModel, Field

ASKED = {
    "model": "smollm2-135m",
    "messages": [{"role": "user", "content": "A city in France, with name and country."}],
    "temperature": 0,
    "max_tokens": 96,
    "max_retries": 0,
}


class City(BaseModel):
    """A city."""

    name: str = Field(max_length=20)
    country: str = Field(max_length=20)


def client(url: str) -> openai.OpenAI:
    return openai.OpenAI(base_url=f"{url}/v1", api_key="none", max_retries=0)


def schema(url: str) -> dict[str, object]:
    told = {}
    for mode in (instructor.Mode.TOOLS, instructor.Mode.TOOLS_STRICT, instructor.Mode.JSON_SCHEMA):
        patched = instructor.from_openai(client(url), mode=mode)
        told[mode.name] = type(
            patched.chat.completions.create(response_model=City, **ASKED)
        ).__name__
    patched = instructor.from_openai(client(url), mode=instructor.Mode.TOOLS)
    *_, last = patched.chat.completions.create_partial(response_model=City, **ASKED)
    told["streamed"] = [isinstance(last.name, str), isinstance(last.country, str)]
    told["asynchronous"] = type(asyncio.run(asynchronous(url))).__name__
    return told


async def asynchronous(url: str) -> City:
    raw = openai.AsyncOpenAI(base_url=f"{url}/v1", api_key="none", max_retries=0)
    patched = instructor.from_openai(raw, mode=instructor.Mode.TOOLS)
    return await patched.chat.completions.create(response_model=City, **ASKED)


if __name__ == "__main__":
    print(json.dumps({"schema": schema}[sys.argv[2]](sys.argv[1])))
