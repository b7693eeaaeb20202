"""What LangChain makes of a server: answers, schemas in its three methods, and an agent. Prints one JSON object."""

from __future__ import annotations

import asyncio
import json
import sys

from langchain.agents import create_agent
from langchain_core.tools import tool
from langchain_openai import ChatOpenAI
from pydantic import BaseModel, Field

MODEL = "smollm2-135m"


class City(BaseModel):
    """A city."""

    name: str = Field(max_length=20)
    country: str = Field(max_length=20)


@tool
def weather(city: str) -> str:
    """The weather in a city."""
    return f"It is sunny in {city}."


def model(url: str, **more: object) -> ChatOpenAI:
    return ChatOpenAI(
        model=MODEL,
        base_url=f"{url}/v1",
        api_key="none",
        temperature=0,
        max_tokens=96,
        max_retries=0,
        **more,
    )


def text(url: str) -> dict[str, object]:
    chat = model(url)
    whole = chat.invoke("Say hello.")
    return {
        "whole": whole.content,
        "streamed": "".join(chunk.content for chunk in chat.stream("Say hello.")),
        "asynchronous": asyncio.run(chat.ainvoke("Say hello.")).content,
        "responses": model(url, use_responses_api=True).invoke("Say hello.").text,
        "usage": whole.usage_metadata["output_tokens"] > 0,
    }


def tools(url: str) -> dict[str, object]:
    forced = model(url).bind_tools([weather], tool_choice="weather")
    required = model(url).bind_tools([weather], tool_choice="any", parallel_tool_calls=False)
    calls = [bound.invoke("Weather in Paris?").tool_calls for bound in (forced, required)]
    streamed = None
    for chunk in forced.stream("Weather in Paris?"):
        streamed = chunk if streamed is None else streamed + chunk
    told = create_agent(model(url), [weather]).invoke(
        {"messages": [{"role": "user", "content": "Say hello."}]}
    )
    return {
        "calls": [[call["name"], call["args"]] for some in calls for call in some],
        "streamed": [[call["name"], call["args"]] for call in streamed.tool_calls],
        "agent": [message.type for message in told["messages"]],
    }


def schema(url: str) -> dict[str, object]:
    told = {}
    for method in ("json_schema", "function_calling", "json_mode"):
        bound = model(url).with_structured_output(City, method=method, include_raw=True)
        answer = bound.invoke("A city in France, as JSON with name and country.")
        told[method] = [type(answer["parsed"]).__name__, answer["raw"].content]
    return told


if __name__ == "__main__":
    print(json.dumps({"text": text, "tools": tools, "schema": schema}[sys.argv[2]](sys.argv[1])))
