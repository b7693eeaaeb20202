"""What the `llm` command's library makes of a server. Prints one JSON object."""

from __future__ import annotations

import json
import os
import sys
import tempfile
from pathlib import Path

SETTINGS = """- model_id: baton
  model_name: smollm2-135m
  api_base: {url}/v1
  supports_schema: true
  supports_tools: true
"""
CITY = {
    "type": "object",
    "properties": {"name": {"type": "string", "maxLength": 20}},
    "required": ["name"],
    "additionalProperties": False,
}


def weather(city: str) -> str:
    """The weather in a city."""
    return f"It is sunny in {city}."


def text(model: object) -> dict[str, object]:
    asked = {"temperature": 0, "max_tokens": 64}
    return {
        "whole": model.prompt("Say hello.", stream=False, **asked).text(),
        "streamed": "".join(model.prompt("Say hello.", **asked)),
    }


def tools(model: object) -> dict[str, object]:
    chain = model.chain("Say hello.", tools=[weather], options={"temperature": 0, "max_tokens": 64})
    return {"said": isinstance(chain.text(), str)}


def schema(model: object) -> dict[str, object]:
    told = model.prompt("A city.", schema=CITY, temperature=0, max_tokens=64).text()
    return {"keys": sorted(json.loads(told))}


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as directory:
        os.environ |= {"LLM_USER_PATH": directory, "OPENAI_API_KEY": "none"}
        told = SETTINGS.format(url=sys.argv[1])
        Path(directory, "extra-openai-models.yaml").write_text(told)
        import llm

        asked = {"text": text, "tools": tools, "schema": schema}[sys.argv[2]]
        print(json.dumps(asked(llm.get_model("baton"))))
