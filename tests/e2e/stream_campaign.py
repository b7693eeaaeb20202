"""What a stream says, put together, is what the whole answer says: random prompts, with each feature, in every dialect.

usage: python -m tests.e2e.stream_campaign [--url URL | --embedded] [--prompts N] [--seed S] [FEATURE …]

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

from tests.e2e.schema_campaign import served

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    import httpx

    Fields = dict[str, Any]
    Folded = dict[str, Any]

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
CHAT, COMPLETION = "/v1/chat/completions", "/v1/completions"
PERSON = {
    "type": "object",
    "properties": {"name": {"type": "string", "maxLength": 8}, "age": {"type": "integer"}},
    "required": ["name", "age"],
    "additionalProperties": False,
}
FUNCTION = {"name": "add", "parameters": PERSON}
TOOLS = [{"type": "function", "function": FUNCTION}]
SCHEMA = {"type": "json_schema", "json_schema": {"name": "p", "schema": PERSON}}


def openai(events: list[Fields]) -> Folded:
    """Chunks, or the one answer: a choice's texts, logprobs, ids and calls."""
    found: Folded = {}
    for choice in (choice for event in events for choice in event["choices"]):
        own = found.setdefault(choice["index"], {"text": "", "ids": [], "calls": {}, "end": None})
        said = choice.get("delta") or choice.get("message") or {}
        own["text"] += choice.get("text") or said.get("content") or ""
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
    parts = [part for item in final["output"] for part in item.get("content", [])]
    text = "".join(part["text"] for part in parts)
    arguments = "".join(item.get("arguments", "") for item in final["output"])
    if len(events) > 1:
        for kind, expected in (
            ("response.output_text.delta", text),
            ("response.function_call_arguments.delta", arguments),
        ):
            told = "".join(event["delta"] for event in events if event["type"] == kind)
            assert told == expected, (told, expected)
    usage = final["usage"]
    return {"text": text, "arguments": arguments, "status": final["status"], "usage": usage}


def anthropic(events: list[Fields]) -> Folded:
    """Blocks by their places."""
    blocks: dict[int, Any] = {}
    if len(events) == 1:
        (message,) = events
        for place, block in enumerate(message["content"]):
            blocks[place] = block.get("text", "") if block["type"] == "text" else block["input"]
        output = message["usage"]["output_tokens"]
        return {"blocks": blocks, "stop": message["stop_reason"], "output": output}
    for event in events:
        if event["type"] == "content_block_start":
            blocks[event["index"]] = event["content_block"].get("text", "")
        elif event["type"] == "content_block_delta":
            delta = event["delta"]
            blocks[event["index"]] += delta.get("text", "") + delta.get("partial_json", "")
    last = next(event for event in events if event["type"] == "message_delta")
    starts = [event for event in events if event["type"] == "content_block_start"]
    for event in starts:
        if (
            event["content_block"]["type"] == "tool_use"
            and last["delta"]["stop_reason"] == "tool_use"
        ):
            blocks[event["index"]] = json.loads(blocks[event["index"]])
    output = last["usage"]["output_tokens"]
    return {"blocks": blocks, "stop": last["delta"]["stop_reason"], "output": output}


def ollama(events: list[Fields]) -> Folded:
    """Lines."""
    messages = [event.get("message", {}) for event in events]
    text = "".join(event.get("response", "") for event in events)
    text += "".join(message.get("content", "") for message in messages)
    calls = [call["function"] for message in messages for call in message.get("tool_calls", [])]
    last = {key: events[-1].get(key) for key in ("done_reason", "eval_count", "prompt_eval_count")}
    return {"text": text, "calls": calls} | last


def completion(
    prompt: str | list[Any], **fields: Any
) -> tuple[str, Fields, Callable[[list[Fields]], Folded]]:
    return COMPLETION, {"prompt": prompt, "return_token_ids": True} | fields, openai


def chat(prompt: str, **fields: Any) -> tuple[str, Fields, Callable[[list[Fields]], Folded]]:
    says = [{"role": "user", "content": prompt}]
    return CHAT, {"messages": says, "return_token_ids": True} | fields, openai


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
    "response": lambda it: ("/v1/responses", {"input": it}, responses),
    "response tool": lambda it: (
        "/v1/responses",
        {"input": it, "tools": [{"type": "function"} | FUNCTION], "tool_choice": "required"},
        responses,
    ),
    "message": lambda it: (
        "/v1/messages",
        {"messages": [{"role": "user", "content": it}], "stop_sequences": ["zz", "e "]},
        anthropic,
    ),
    "message tool": lambda it: (
        "/v1/messages",
        {
            "messages": [{"role": "user", "content": it}],
            "tools": [{"name": "add", "input_schema": PERSON}],
            "tool_choice": {"type": "any"},
        },
        anthropic,
    ),
    "ollama": lambda it: ("/api/chat", {"messages": [{"role": "user", "content": it}]}, ollama),
    "ollama raw": lambda it: ("/api/generate", {"prompt": it, "raw": True}, ollama),
    "ollama schema": lambda it: ("/api/generate", {"prompt": it, "format": PERSON}, ollama),
}


def prompts(count: int, seed: int) -> list[str]:
    """Random words of many scripts."""
    draw = random.Random(seed)
    return [" ".join(draw.choices(WORDS, k=draw.randrange(1, 24))) for _ in range(count)]


def bounded(path: str, fields: Fields, tokens: int, seed: int) -> Fields:
    """As long as that dialect says it, and with its seed where it has one."""
    if path.startswith("/api/"):
        return fields | {"options": {"num_predict": tokens, "seed": seed, "temperature": 1.0}}
    if path == "/v1/responses":
        return fields | {"max_output_tokens": tokens, "temperature": 0}
    if path == "/v1/messages":
        return fields | {"max_tokens": tokens, "temperature": 0}
    return {"max_tokens": tokens, "seed": seed, "temperature": 1.0} | fields


def events_of(text: str) -> Iterator[Fields]:
    """Of server-sent events or of lines."""
    for line in text.split("\n"):
        said = line.removeprefix("data: ")
        if said.startswith("{"):
            yield json.loads(said)


def difference(client: httpx.Client, feature: str, prompt: str, tokens: int, seed: int) -> str:
    """What differs between the stream and the whole answer, "" if nothing does."""
    path, fields, folded = FEATURES[feature](prompt)
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
    parser.add_argument("--prompts", type=int, default=1000)
    parser.add_argument("--seed", type=int, default=1)
    arguments = parser.parse_args()
    features, asked = (
        arguments.features or list(FEATURES),
        prompts(arguments.prompts, arguments.seed),
    )
    with served(arguments.url, "--tool-prompt", "hermes", random=not arguments.embedded) as client:
        differences = run(client, features, asked)
    for (feature, number), found in differences.items():
        print(f"{feature}, prompt {number}: {found[:2000]}")
    print(json.dumps(Counter(feature for feature, _ in differences)))
    print(json.dumps({"compared": len(features) * len(asked), "different": len(differences)}))
    return 1 if differences else 0


if __name__ == "__main__":
    sys.exit(main())
