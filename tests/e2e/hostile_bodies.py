"""Bodies of up to 4 MiB that are made to cost a server more than they cost their sender. Owns the list."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import orjson

LIMIT = 4 * 1024 * 1024 - 4096
CHAT, COMPLETE, TOKENIZE, DETOKENIZE = (
    *("/v1/chat/completions", "/v1/completions"),
    *("/tokenize", "/detokenize"),
)
SAY = {"role": "user", "content": "x"}


def filled(before: bytes, unit: bytes, after: bytes, between: bytes = b",") -> bytes:
    """As many units as fit."""
    count = (LIMIT - len(before) - len(after)) // (len(unit) + len(between))
    return before + between.join([unit] * count) + after


def chat(**fields: Any) -> bytes:
    return orjson.dumps({"messages": [SAY], "max_tokens": 1} | fields)


def text(characters: str, body: Callable[[str], dict[str, Any]]) -> bytes:
    size = len(orjson.dumps(characters)) - 2
    return orjson.dumps(body(characters * (LIMIT // size - 64)))


def prompt(said: str) -> dict[str, Any]:
    return {"prompt": said, "max_tokens": 1}


def talk(said: str) -> dict[str, Any]:
    return {"messages": [{"role": "user", "content": said}], "max_tokens": 1}


HOSTILE: dict[str, tuple[str, Callable[[], bytes]]] = {
    "1,000 messages": (
        CHAT,
        lambda: orjson.dumps(
            {"messages": [{"role": "user", "content": "x " * 1900}] * 1000, "max_tokens": 1}
        ),
    ),
    "one message": (CHAT, lambda: text("x ", talk)),
    "digits": (COMPLETE, lambda: text("1", prompt)),
    "other letters": (COMPLETE, lambda: text("東", prompt)),
    "escapes": (COMPLETE, lambda: filled(b'{"prompt":"', b"\\u6771", b'"}', b"")),
    "quotes": (COMPLETE, lambda: filled(b'{"prompt":"', b'\\"', b'"}', b"")),
    "backslashes": (COMPLETE, lambda: filled(b'{"prompt":"', b"\\\\", b'"}', b"")),
    "spaces in json": (COMPLETE, lambda: filled(b'{"prompt":"x","max_tokens":1', b" ", b"}", b"")),
    "parts": (
        CHAT,
        lambda: filled(
            b'{"messages":[{"role":"user","content":[', b'{"type":"text","text":""}', b"]}]}"
        ),
    ),
    "16,000 parts": (
        CHAT,
        lambda: chat(messages=[{"role": "user", "content": [{"type": "text", "text": ""}] * 8000}]),
    ),
    "empty parts": (
        CHAT,
        lambda: filled(b'{"messages":[{"role":"user","content":[', b"{}", b"]}]}"),
    ),
    "many messages": (
        CHAT,
        lambda: filled(b'{"messages":[', b'{"role":"user","content":"x"}', b"]}"),
    ),
    "empty messages": (CHAT, lambda: filled(b'{"messages":[', b"{}", b"]}")),
    "lists": (COMPLETE, lambda: filled(b'{"prompt":[', b"[]", b"]}")),
    "lists of lists": (COMPLETE, lambda: filled(b'{"prompt":"x","u":[', b"[[[[]]]]", b"]}")),
    "an unknown field of lists": (CHAT, lambda: filled(b'{"messages":[],"u":[', b"[]", b"]}")),
    "an unknown field of objects": (CHAT, lambda: filled(b'{"messages":[],"u":[', b"{}", b"]}")),
    "brackets": (CHAT, lambda: b"[" * LIMIT),
    "keys without end": (CHAT, lambda: b'{"a":' * (LIMIT // 5)),
    "deep, closed": (CHAT, lambda: b'{"u":' + b"[" * 1000 + b"]" * 1000 + b"}"),
    "one-digit ids": (COMPLETE, lambda: filled(b'{"prompt":[', b"1", b"]}")),
    "a million ids": (COMPLETE, lambda: orjson.dumps({"prompt": [7] * 1_000_000})),
    "128 lists of 8,000 ids": (
        COMPLETE,
        lambda: orjson.dumps({"prompt": [[7] * 8000] * 128, "n": 2}),
    ),
    "strings": (COMPLETE, lambda: filled(b'{"prompt":[', b'""', b"]}")),
    "many keys": (
        COMPLETE,
        lambda: b'{"prompt":"x"' + b"".join(b',"k%d":1' % index for index in range(300_000)) + b"}",
    ),
    "60,000 keys": (
        COMPLETE,
        lambda: (
            b'{"prompt":"x","max_tokens":1'
            + b"".join(b',"k%d":1' % index for index in range(60_000))
            + b"}"
        ),
    ),
    "a long key": (COMPLETE, lambda: b'{"' + b"k" * (LIMIT - 30) + b'":1,"prompt":"x"}'),
    "a long number": (COMPLETE, lambda: b'{"seed":' + b"1" * (LIMIT - 30) + b',"prompt":"x"}'),
    "a long fraction": (COMPLETE, lambda: b'{"top_p":0.' + b"1" * (LIMIT - 30) + b',"prompt":"x"}'),
    "stop strings": (CHAT, lambda: filled(b'{"messages":[],"stop":[', b'"ab"', b"]}")),
    "one stop string": (CHAT, lambda: chat(stop="x" * (LIMIT - 100))),
    "stop ids": (CHAT, lambda: filled(b'{"messages":[],"stop_token_ids":[', b"1", b"]}")),
    "logit_bias": (
        CHAT,
        lambda: (
            b'{"messages":[],"logit_bias":{'
            + b",".join(b'"%d":1' % index for index in range(350_000))
            + b"}}"
        ),
    ),
    "logit_bias as a list": (CHAT, lambda: filled(b'{"messages":[],"logit_bias":[', b"1", b"]}")),
    "tools": (CHAT, lambda: filled(b'{"messages":[],"tools":[', b'{"a":1}', b"]}")),
    "one tool": (CHAT, lambda: chat(tools=[{"a": ["b"] * 60_000}])),
    "template arguments": (
        CHAT,
        lambda: chat(chat_template_kwargs={f"k{i}": i for i in range(60_000)}),
    ),
    "arguments of a call": (
        CHAT,
        lambda: (
            b'{"messages":[{"role":"assistant","tool_calls":[{"function":{"name":"f","arguments":'
            + orjson.dumps(filled(b'{"a":[', b"[]", b"]}")[: LIMIT // 2].decode())
            + b"}}]}]}"
        ),
    ),
    "a message's own field": (CHAT, lambda: chat(messages=[SAY | {"u": [1] * 1_000_000}])),
    "a model's name": (CHAT, lambda: chat(model="m" * (LIMIT - 100))),
    "a role": (CHAT, lambda: chat(messages=[{"role": "r" * (LIMIT - 100), "content": "x"}])),
    "a part's type": (
        CHAT,
        lambda: chat(
            messages=[{"role": "user", "content": [{"type": "t" * (LIMIT - 200), "text": "x"}]}]
        ),
    ),
    "NUL at the end of much": (
        CHAT,
        lambda: orjson.dumps(
            {"u": [[1] * 60] * 15_000, "messages": [{"role": "u", "content": "\0"}]}
        ),
    ),
    "tokenize a text": (TOKENIZE, lambda: text("x ", lambda said: {"prompt": said})),
    "tokenize what fits": (
        TOKENIZE,
        lambda: orjson.dumps({"prompt": "x" * (8192 * 16), "return_token_strs": True}),
    ),
    "tokenize messages": (
        TOKENIZE,
        lambda: text("x ", lambda said: {"messages": [SAY | {"content": said}]}),
    ),
    "detokenize": (DETOKENIZE, lambda: orjson.dumps({"tokens": [7] * 1_000_000})),
    "detokenize one-digit ids": (DETOKENIZE, lambda: filled(b'{"tokens":[', b"1", b"]}")),
    "detokenize a bad last id": (
        DETOKENIZE,
        lambda: orjson.dumps({"tokens": [7] * 900_000 + [999]}),
    ),
}
"""Name to (path, what makes the body): who only lists them makes none."""
