"""What LlamaIndex makes of a server. Prints one JSON object."""

from __future__ import annotations

import asyncio
import json
import sys

from llama_index.core.llms import ChatMessage
from llama_index.core.tools import FunctionTool
from llama_index.llms.openai_like import OpenAILike
from pydantic import BaseModel, Field


class City(BaseModel):
    """A city."""

    name: str = Field(max_length=20)
    country: str = Field(max_length=20)


def weather(city: str) -> str:
    """The weather in a city."""
    return f"It is sunny in {city}."


def model(url: str) -> OpenAILike:
    return OpenAILike(
        model="smollm2-135m",
        api_base=f"{url}/v1",
        api_key="none",
        is_chat_model=True,
        is_function_calling_model=True,
        temperature=0,
        max_tokens=96,
        max_retries=0,
    )


HELLO = [ChatMessage(role="user", content="Say hello.")]


def text(url: str) -> dict[str, object]:
    llm = model(url)
    return {
        "whole": llm.chat(HELLO).message.content,
        "streamed": "".join(chunk.delta or "" for chunk in llm.stream_chat(HELLO)),
        "asynchronous": asyncio.run(llm.achat(HELLO)).message.content,
    }


def tools(url: str) -> dict[str, object]:
    llm, tool = model(url), FunctionTool.from_defaults(weather)
    told = llm.chat_with_tools([tool], user_msg="Weather in Paris?", tool_required=True)
    asked = {"user_msg": "Weather in Paris?", "tool_required": True}
    *_, streamed = llm.stream_chat_with_tools([tool], **asked)
    return {
        name: [
            [call.tool_name, call.tool_kwargs] for call in llm.get_tool_calls_from_response(answer)
        ]
        for name, answer in (("calls", told), ("streamed", streamed))
    }


def schema(url: str) -> dict[str, object]:
    told = model(url).as_structured_llm(City).chat(HELLO)
    return {"parsed": type(told.raw).__name__}


if __name__ == "__main__":
    print(json.dumps({"text": text, "tools": tools, "schema": schema}[sys.argv[2]](sys.argv[1])))
