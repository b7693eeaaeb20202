"""What pydantic-ai makes of a server, through chats, responses and messages. Prints one JSON object."""

from __future__ import annotations

import asyncio
import json
import sys

from pydantic import BaseModel, Field
from pydantic_ai import Agent, NativeOutput, ToolOutput
from pydantic_ai.models.anthropic import AnthropicModel
from pydantic_ai.models.openai import OpenAIChatModel, OpenAIResponsesModel
from pydantic_ai.providers.anthropic import AnthropicProvider
from pydantic_ai.providers.openai import OpenAIProvider

NAME = "smollm2-135m"
SETTINGS = {"temperature": 0, "max_tokens": 96}


class City(BaseModel):
    """A city."""

    name: str = Field(max_length=20)
    country: str = Field(max_length=20)


def models(url: str) -> dict[str, object]:
    provider = OpenAIProvider(base_url=f"{url}/v1", api_key="none")
    return {
        "chat": OpenAIChatModel(NAME, provider=provider),
        "responses": OpenAIResponsesModel(NAME, provider=provider),
        "messages": AnthropicModel(NAME, provider=AnthropicProvider(base_url=url, api_key="none")),
    }


def text(url: str) -> dict[str, object]:
    told = {}
    for name, model in models(url).items():
        agent = Agent(model, model_settings=SETTINGS)
        told[name] = [agent.run_sync("Say hello.").output, asyncio.run(streamed(agent))]
    return told


async def streamed(agent: Agent) -> str:
    async with agent.run_stream("Say hello.") as run:
        return "".join([piece async for piece in run.stream_text(delta=True)])


def schema(url: str) -> dict[str, object]:
    told = {}
    for name, model in models(url).items():
        if name != "messages":
            agent = Agent(model, output_type=NativeOutput(City), model_settings=SETTINGS)
            told[f"{name} native"] = type(agent.run_sync("A city in France.").output).__name__
        agent = Agent(model, output_type=ToolOutput(City), model_settings=SETTINGS)
        told[f"{name} tool"] = type(agent.run_sync("A city in France.").output).__name__
    return told


if __name__ == "__main__":
    print(json.dumps({"text": text, "schema": schema}[sys.argv[2]](sys.argv[1])))
