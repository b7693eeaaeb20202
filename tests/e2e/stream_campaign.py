"""What a stream says, put together, is what the whole answer says: random prompts, with each feature, in every dialect.

usage: python -m tests.e2e.stream_campaign [--url URL | --embedded] [--thinks] [--prompts N] [--seed S] [FEATURE …]

Without `--url` a server is started here, of a model with random weights, which says what no model would, or of the embedded
one. Each prompt is asked with one feature after the other. Prints one line for each difference, and then the counts.
"""

from __future__ import annotations

import argparse
import json
import random
import sys
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any

from tests.e2e.grammar_cases import HABIT, PENALTIES
from tests.e2e.schema_campaign import served

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    import httpx

    Fields = dict[str, Any]
    Folded = dict[Any, Any]

AT_ONCE = 8
WORDS = [
    "The",
    "of",
    "and",
    "🙂",
    "東京",
    "é",
    "naïve",
    "{\n\t42",
    "-1.5e3",
    "<b>",
    "[1,",
    "def",
    "f(x):",
    "∑",
    "﷽",
    '"quoted"',
    "'it'",
    "x́",
    "...",
]
THINKING = ("--reasoning-parser", "think")
CHAT, COMPLETION = "/v1/chat/completions", "/v1/completions"
PERSON = {
    "type": "object",
    "properties": {"name": {"type": "string", "maxLength": 8}, "age": {"type": "integer"}},
    "required": ["name", "age"],
    "additionalProperties": False,
}
FUNCTION = {"name": "add", "parameters": PERSON}
TOOLS = [{"type": "function", "function": FUNCTION}]
FLAT_TOOLS = [{"type": "function"} | FUNCTION]
BLOCK_TOOLS = [{"name": "add", "input_schema": PERSON}]
ENDS_THOUGHTS: Fields = {
    "logit_bias": {"9617": 9, "17400": 9, "46": 9, "104": 7, "198": 5},
    "frequency_penalty": 1.5,
}
"""Makes `</think>` and what only resembles it likely: `</`, `think`, `>`, `x`, a newline."""
SCHEMA = {"type": "json_schema", "json_schema": {"name": "p", "schema": PERSON}}


def openai(events: list[Fields]) -> Folded:
    """Chunks, or the one answer: a choice's texts, logprobs, ids and calls."""
    found: Folded = {}
    for choice in (choice for event in events for choice in event["choices"]):
        own = found.setdefault(
            choice["index"], {"text": "", "thought": "", "ids": [], "calls": {}, "end": None}
        )
        said = choice.get("delta") or choice.get("message") or {}
        own["text"] += choice.get("text") or said.get("content") or ""
        own["thought"] += said.get("reasoning_content") or ""
        own["ids"] += choice.get("token_ids", [])
        for call in said.get("tool_calls", []):
            name, arguments = own["calls"].get(
                place := call.get("index", len(own["calls"])), ("", "")
            )
            function = call["function"]
            own["calls"][place] = (
                name + function.get("name", ""),
                arguments + function["arguments"],
            )
        for key, value in (choice.get("logprobs") or {}).items():
            own.setdefault(key, []).extend(value)
        for key in ("finish_reason", "stop_reason"):
            own[key] = choice.get(key) or own.get(key)
    return found | {"usage": [event["usage"] for event in events if event.get("usage")][-1]}


def responses(events: list[Fields]) -> Folded:
    """Deltas against the items of the final object, which both have."""
    final = events[-1].get("response", events[-1])
    texts = {
        kind: "".join(
            part["text"]
            for item in final["output"]
            if item["type"] == kind
            for part in item["content"]
        )
        for kind in ("message", "reasoning")
    }
    logprobs = [
        entry
        for item in final["output"]
        for part in item.get("content", ())
        for entry in part.get("logprobs", ())
    ]
    arguments = "".join(item.get("arguments", "") for item in final["output"])
    if len(events) > 1:
        for kind, expected in (
            ("response.output_text.delta", texts["message"]),
            ("response.reasoning_text.delta", texts["reasoning"]),
            ("response.function_call_arguments.delta", arguments),
        ):
            told = "".join(event["delta"] for event in events if event["type"] == kind)
            assert told == expected, (told, expected)
    ended = {"status": final["status"], "usage": final["usage"]}
    return {"texts": texts, "arguments": arguments, "logprobs": logprobs} | ended


def anthropic(events: list[Fields]) -> Folded:
    """Blocks by their places."""
    blocks: dict[int, Any] = {}
    if len(events) == 1:
        (message,) = events
        for place, block in enumerate(message["content"]):
            blocks[place] = block.get(block["type"], block.get("input"))
        output = message["usage"]["output_tokens"]
        return {"blocks": blocks, "stop": message["stop_reason"], "output": output}
    for event in events:
        if event["type"] == "content_block_start":
            block = event["content_block"]
            blocks[event["index"]] = block.get(block["type"], "")
        elif event["type"] == "content_block_delta":
            delta = event["delta"]
            for key in ("text", "thinking", "partial_json"):
                blocks[event["index"]] += delta.get(key, "")
    last = next(event for event in events if event["type"] == "message_delta")
    for event in events:
        if event["type"] == "content_block_start" and event["content_block"]["type"] == "tool_use":
            blocks[event["index"]] = arguments_in(blocks[event["index"]])
    output = last["usage"]["output_tokens"]
    return {"blocks": blocks, "stop": last["delta"]["stop_reason"], "output": output}


def arguments_in(text: str) -> Any:
    """As a whole answer has them: those that were cut off are one text."""
    try:
        return json.loads(text)
    except ValueError:
        return {"arguments": text}


def ollama(events: list[Fields]) -> Folded:
    """Lines."""
    messages = [event.get("message", {}) for event in events]
    text = "".join(event.get("response", "") for event in events)
    text += "".join(message.get("content", "") for message in messages)
    thought = "".join(message.get("thinking", "") for message in messages)
    logprobs = [entry for event in events for entry in event.get("logprobs", ())]
    calls = [call["function"] for message in messages for call in message.get("tool_calls", [])]
    last = {key: events[-1].get(key) for key in ("done_reason", "eval_count", "prompt_eval_count")}
    return {"text": text, "thought": thought, "calls": calls, "logprobs": logprobs} | last


def completion(
    prompt: str | list[Any], **fields: Any
) -> tuple[str, Fields, Callable[[list[Fields]], Folded]]:
    return COMPLETION, {"prompt": prompt, "return_token_ids": True} | fields, openai


def chat(prompt: str, **fields: Any) -> tuple[str, Fields, Callable[[list[Fields]], Folded]]:
    says = [{"role": "user", "content": prompt}]
    return CHAT, {"messages": says, "return_token_ids": True} | fields, openai


def response(prompt: str, **fields: Any) -> tuple[str, Fields, Callable[[list[Fields]], Folded]]:
    return "/v1/responses", {"input": prompt} | fields, responses


def message(prompt: str, **fields: Any) -> tuple[str, Fields, Callable[[list[Fields]], Folded]]:
    return "/v1/messages", {"messages": said(prompt)} | fields, anthropic


def ollama_chat(prompt: str, **fields: Any) -> tuple[str, Fields, Callable[[list[Fields]], Folded]]:
    return "/api/chat", {"messages": said(prompt)} | fields, ollama


def said(prompt: str) -> list[Fields]:
    """By a user."""
    return [{"role": "user", "content": prompt}]


FEATURES: dict[str, Callable[[str], tuple[str, Fields, Callable[[list[Fields]], Folded]]]] = {
    "plain": completion,
    "greedy": lambda it: completion(it, temperature=0),
    "logprobs": lambda it: completion(it, logprobs=3),
    "echo": lambda it: completion(it, echo=True, logprobs=2),
    "echo of ids": lambda it: completion([ord(c) % 900 + 17 for c in it], echo=True),
    "several": lambda it: completion([it, it + " x"], n=2, logprobs=1),
    "stops": lambda it: completion(it, stop=["e", "the ", "\n", " a"], logprobs=1),
    "stops shown": lambda it: completion(it, stop=["s", "on"], include_stop_str_in_output=True),
    "stop ids": lambda it: completion(it, stop_token_ids=list(range(300, 1300))),
    "least": lambda it: completion(it, min_tokens=9, stop=["e"]),
    "penalties": lambda it: completion(
        it, frequency_penalty=1.5, presence_penalty=-1, repetition_penalty=1.2
    ),
    "bias": lambda it: completion(it, logit_bias={"28": 8, "2": 6, "198": -100}),
    "special": lambda it: completion(it, skip_special_tokens=False, logit_bias={"1": 12, "2": 9}),
    "broken": lambda it: completion(it, logit_bias={str(one): 9 for one in range(100, 250)}),
    "regex": lambda it: completion(it, structured_outputs={"regex": "[a-zé🙂]{3,9}( [0-9]+){1,3}"}),
    "chat": chat,
    "chat logprobs": lambda it: chat(it, logprobs=True, top_logprobs=2, n=2),
    "chat schema": lambda it: chat(it, response_format=SCHEMA),
    "chat tool": lambda it: chat(it, tools=TOOLS, tool_choice="required"),
    "chat tools": lambda it: chat(it, tools=TOOLS, logit_bias={"1": 4}),
    "chat penalties": lambda it: chat(it, tools=TOOLS, tool_choice="required", n=2, **PENALTIES),
    "chat schemas": lambda it: chat(
        it, response_format=SCHEMA, n=3, logprobs=True, logit_bias={"28": 2}, **PENALTIES
    ),
    "chat prompt logprobs": lambda it: chat(it, prompt_logprobs=1, n=2),
    "chat habit": lambda it: chat(it, tools=TOOLS, messages=[*HABIT, *said(it)], logprobs=True),
    "response": response,
    "response logprobs": lambda it: response(
        it, include=["message.output_text.logprobs"], top_logprobs=2
    ),
    "response schema": lambda it: response(
        it, text={"format": {"type": "json_schema", "name": "p", "schema": PERSON}}
    ),
    "response tool": lambda it: response(it, tools=FLAT_TOOLS, tool_choice="required"),
    "response tools": lambda it: response(it, tools=FLAT_TOOLS),
    "message": lambda it: message(it, stop_sequences=["zz", "e "]),
    "message schema": lambda it: message(
        it, output_config={"format": {"type": "json_schema", "schema": PERSON}}
    ),
    "message tool": lambda it: message(it, tools=BLOCK_TOOLS, tool_choice={"type": "any"}),
    "message tools": lambda it: message(it, tools=BLOCK_TOOLS),
    "ollama": ollama_chat,
    "ollama logprobs": lambda it: ollama_chat(it, logprobs=True, top_logprobs=2),
    "ollama tools": lambda it: ollama_chat(it, tools=TOOLS),
    "ollama options": lambda it: ollama_chat(
        it, options={"frequency_penalty": 1.5, "presence_penalty": -1.0, "stop": ["e", "zz"]}
    ),
    "ollama raw": lambda it: ("/api/generate", {"prompt": it, "raw": True}, ollama),
    "ollama schema": lambda it: ("/api/generate", {"prompt": it, "format": PERSON}, ollama),
}
THINKS: dict[str, Callable[[str], tuple[str, Fields, Callable[[list[Fields]], Folded]]]] = {
    "thought": lambda it: chat(it + " <think>", **ENDS_THOUGHTS),
    "thoughts": lambda it: chat(it + " <think>", n=3, logprobs=True, **ENDS_THOUGHTS),
    "thought and schema": lambda it: chat(it + "<think>", response_format=SCHEMA, **ENDS_THOUGHTS),
    "thought and tool": lambda it: chat(
        it + "<think>", tools=TOOLS, tool_choice="required", **ENDS_THOUGHTS
    ),
    "thought and tools": lambda it: chat(it + "<think>", tools=TOOLS, n=2, **ENDS_THOUGHTS),
    "no thought": lambda it: chat(it, logit_bias={"44": 7, "17400": 7, "46": 7}),
    "thought of a response": lambda it: response(
        it + " <think>", logit_bias=ENDS_THOUGHTS["logit_bias"]
    ),
    "thought of a message": lambda it: message(it + " <think>"),
    "thought of ollama": lambda it: ollama_chat(it + " <think>", think=True),
}
"""For a server that looks for thoughts: `--reasoning-parser think`."""


def prompts(count: int, seed: int) -> list[str]:
    """Random words of many scripts."""
    draw = random.Random(seed)
    return [" ".join(draw.choices(WORDS, k=draw.randrange(1, 24))) for _ in range(count)]


def bounded(path: str, fields: Fields, tokens: int, seed: int) -> Fields:
    """As long as that dialect says it, and with its seed where it has one."""
    if path.startswith("/api/"):
        options = {"num_predict": tokens, "seed": seed, "temperature": 1.0}
        return fields | {"options": options | fields.get("options", {})}
    if path == "/v1/responses":
        return fields | {"max_output_tokens": tokens, "seed": seed, "temperature": 1.0}
    return {"max_tokens": tokens, "seed": seed, "temperature": 1.0} | fields


def events_of(text: str) -> Iterator[Fields]:
    """Of server-sent events or of lines."""
    for line in text.split("\n"):
        said = line.removeprefix("data: ")
        if said.startswith("{"):
            yield json.loads(said)


def difference(client: httpx.Client, feature: str, prompt: str, tokens: int, seed: int) -> str:
    """What differs between the stream and the whole answer, "" if nothing does."""
    path, fields, folded = (FEATURES | THINKS)[feature](prompt)
    body = bounded(path, fields, tokens, seed)
    more = {"stream_options": {"include_usage": True}} if folded is openai else {}
    whole = client.post(path, json=body | {"stream": False})
    stream = client.post(path, json=body | {"stream": True} | more)
    if (whole.status_code, stream.status_code) != (200, 200):
        return f"{whole.status_code} {whole.text[:200]} | {stream.status_code} {stream.text[:200]}"
    one, many = folded([whole.json()]), folded(list(events_of(stream.text)))
    for told in (one, many):  # the second time more of the prompt is cached
        for usage in (told.get("usage", {}), told.get("prompt_eval_count")):
            if isinstance(usage, dict):
                usage.pop("prompt_tokens_details", None)
                usage.pop("input_tokens_details", None)
    return "" if one == many else f"whole {one!r} | stream {many!r}"


def run(
    client: httpx.Client, features: Sequence[str], asked: Sequence[str], tokens: int = 24
) -> dict[tuple[str, int], str]:
    """Every difference, by the feature and the number of its prompt."""
    pairs = [(feature, number) for number in range(len(asked)) for feature in features]

    def tried(pair: tuple[str, int]) -> str:
        try:
            return difference(client, pair[0], asked[pair[1]], tokens, pair[1])
        except Exception as error:  # noqa: BLE001 - what cannot be read is a difference
            return f"{type(error).__name__}: {error}"

    with ThreadPoolExecutor(AT_ONCE) as pool:
        told = dict(zip(pairs, pool.map(tried, pairs), strict=True))
    return {pair: found for pair, found in told.items() if found}


def main() -> int:
    """Exit status 1 for any difference."""
    parser = argparse.ArgumentParser()
    parser.add_argument("features", nargs="*", metavar="FEATURE")
    parser.add_argument("--url")
    parser.add_argument("--embedded", action="store_true")
    parser.add_argument("--thinks", action="store_true", help="the features of thoughts")
    parser.add_argument("--prompts", type=int, default=1000)
    parser.add_argument("--seed", type=int, default=1)
    arguments = parser.parse_args()
    features, asked = (
        arguments.features or list(THINKS if arguments.thinks else FEATURES),
        prompts(arguments.prompts, arguments.seed),
    )
    options = ["--tool-prompt", "hermes", *(THINKING if arguments.thinks else ())]
    with served(arguments.url, *options, random=not arguments.embedded) as client:
        differences = run(client, features, asked)
    for (feature, number), found in differences.items():
        print(f"{feature}, prompt {number}: {found[:2000]}")
    print(json.dumps(Counter(feature for feature, _ in differences)))
    print(json.dumps({"compared": len(features) * len(asked), "different": len(differences)}))
    return 1 if differences else 0


if __name__ == "__main__":
    sys.exit(main())
