"""What openai-agents makes of a server, through responses and chats. Prints one JSON object."""

from __future__ import annotations

import asyncio
import json
import sys

from agents import (
    Agent,
    ModelSettings,
    OpenAIChatCompletionsModel,
    OpenAIResponsesModel,
    Runner,
    function_tool,
    set_tracing_disabled,
)
from openai import AsyncOpenAI
from pydantic import BaseModel, Field

NAME = "smollm2-135m"
CALLED: list[str] = []


class City(BaseModel):
    """A city."""

    name: str = Field(max_length=20)
    country: str = Field(max_length=20)


@function_tool
def weather(city: str) -> str:
    """The weather in a city."""
    CALLED.append(city)
    return "It is sunny."


def models(url: str) -> dict[str, object]:
    client = AsyncOpenAI(base_url=f"{url}/v1", api_key="none", max_retries=0)
    return {
        "responses": OpenAIResponsesModel(model=NAME, openai_client=client),
        "chat": OpenAIChatCompletionsModel(model=NAME, openai_client=client),
    }


def agent(model: object, settings: dict[str, object], **more: object) -> Agent:
    known = ModelSettings(temperature=0, max_tokens=96, **settings)
    return Agent(name="A", instructions="Be brief.", model=model, model_settings=known, **more)


async def text(url: str) -> dict[str, object]:
    told = {}
    for name, model in models(url).items():
        whole = await Runner.run(agent(model, {}), "Say hello.")
        run = Runner.run_streamed(agent(model, {}), "Say hello.")
        deltas = [
            event.data.delta
            async for event in run.stream_events()
            if event.type == "raw_response_event"
            and event.data.type == "response.output_text.delta"
        ]
        told[name] = [whole.final_output, "".join(deltas)]
    return told


async def tools(url: str) -> dict[str, object]:
    told = {}
    for name, model in models(url).items():
        CALLED.clear()
        settings = {"tool_choice": "required", "parallel_tool_calls": False}
        run = await Runner.run(agent(model, settings, tools=[weather]), "Weather in Paris?")
        told[name] = [len(CALLED), isinstance(run.final_output, str)]
    return told


async def schema(url: str) -> dict[str, object]:
    told = {}
    for name, model in models(url).items():
        run = await Runner.run(agent(model, {}, output_type=City), "A city in France.")
        told[name] = type(run.final_output).__name__
    return told


if __name__ == "__main__":
    set_tracing_disabled(disabled=True)
    asked = {"text": text, "tools": tools, "schema": schema}[sys.argv[2]]
    print(json.dumps(asyncio.run(asked(sys.argv[1]))))
