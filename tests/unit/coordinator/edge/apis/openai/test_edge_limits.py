"""Every limit is told in one plain sentence that names field and limit, with OpenAI's code."""

from __future__ import annotations

import re
from typing import Any

import pytest

CHAT, COMPLETE = "/v1/chat/completions", "/v1/completions"
HELLO = [{"role": "user", "content": "Hello"}]
LONG_ROLE = [{"role": "r" * 65, "content": "x"}]
Row = tuple[dict[str, Any], str, str, str]
BOTH: list[Row] = [
    ({"stop": ["x"] * 17}, "stop", "at most 16 entries, but has 17", "array_above_max_length"),
    ({"stop": "é" * 129}, "stop", "at most 256 bytes, but has 258", "string_above_max_length"),
    ({"stop": ["a", "b" * 257]}, "stop[1]", "at most 256 bytes", "string_above_max_length"),
    ({"stop": ["a", ""]}, "stop[1]", "cannot be empty", "empty_string"),
    ({"stop": 5}, "stop", "must be a string or an array", "invalid_type"),
    ({"stop_token_ids": [1] * 1025}, "stop_token_ids", "at most 1024", "array_above_max_length"),
    (
        {"logit_bias": {str(index): 1 for index in range(1025)}},
        *("logit_bias", "at most 1024 entries, but has 1025", "object_above_max_properties"),
    ),
    ({"logit_bias": {"1": -101}}, "logit_bias.1", "at least -100", "integer_below_min_value"),
    ({"temperature": 2.5}, "temperature", "at most 2, but is 2.5", "decimal_above_max_value"),
    ({"temperature": -1}, "temperature", "at least 0, but is -1", "integer_below_min_value"),
    ({"temperature": "hot"}, "temperature", "must be a number", "invalid_type"),
    ({"top_p": 0}, "top_p", "more than 0", "integer_below_min_value"),
    ({"n": 9}, "n", "at most 8, but is 9", "integer_above_max_value"),
    ({"prompt_logprobs": 21}, "prompt_logprobs", "at most 20", "integer_above_max_value"),
    ({"max_tokens": 10**30}, "max_tokens", "64 bits", "invalid_value"),
    ({"top_k": 2**40}, "top_k", f"at most {2**31 - 1}", "integer_above_max_value"),
    ({"cache_salt": "x" * 257}, "cache_salt", "256 characters", "string_above_max_length"),
    ({"suffix": "x"}, "suffix", "not supported", "unsupported_parameter"),
]
CHATS: list[Row] = [
    ({"max_tokens": 0}, "max_tokens", "at least 1, but is 0", "integer_below_min_value"),
    ({"messages": []}, "messages", "cannot be empty", "empty_array"),
    ({"messages": HELLO * 1025}, "messages", "at most 1024 entries", "array_above_max_length"),
    ({"messages": LONG_ROLE}, "messages[0].role", "64 characters", "string_above_max_length"),
    ({"messages": [{}]}, "messages[0].role", "is required", "missing_required_parameter"),
    ({"logprobs": True, "top_logprobs": 21}, "top_logprobs", "20", "integer_above_max_value"),
    ({"tools": [{}] * 129}, "tools", "at most 128 entries", "array_above_max_length"),
    ({"tools": [{"x": "y" * 70_000}]}, "tools", "65536 bytes", "array_above_max_length"),
    ({"max_completion_tokens": 0}, "max_completion_tokens", "1", "integer_below_min_value"),
]
COMPLETIONS: list[Row] = [
    ({"logprobs": 21}, "logprobs", "at most 20, but is 21", "integer_above_max_value"),
    ({"prompt": ["x"] * 129}, "prompt", "at most 128", "array_above_max_length"),
    ({"prompt": ["x"] * 17, "n": 8}, "prompt", "at most 128, but is 136", "array_above_max_length"),
    ({"prompt": [1, "a"]}, "prompt[1]", "must be an integer", "invalid_type"),
    ({"prompt": [400]}, "prompt", "size 400", "invalid_value"),
    ({"prompt": None}, "prompt", "must be a string or an array", "invalid_type"),
]
TABLE = [
    *((CHAT, {"messages": HELLO} | row[0], *row[1:]) for row in BOTH + CHATS),
    *((COMPLETE, {"prompt": "Hi"} | row[0], *row[1:]) for row in BOTH + COMPLETIONS),
]


@pytest.mark.parametrize(
    ("path", "fields", "param", "words", "code"),
    TABLE,
    ids=[f"{row[0][4:8]}-{row[2]}-{row[4]}-{index}" for index, row in enumerate(TABLE)],
)
async def test_a_limit_is_named(client, path, fields, param, words, code):
    response = await client.post(path, json=fields)
    error = response.json()["error"]
    assert (response.status_code, error["param"], error["code"]) == (400, param, code)
    assert error["message"].startswith(param.partition("[")[0])
    assert words in error["message"]
    assert not re.search(r"Input should|pydantic|Value error", error["message"])


TOO_LONG = [
    (CHAT, {"messages": [{"role": "user", "content": "東" * 300}]}, "messages"),
    (CHAT, {"messages": HELLO, "max_tokens": 999}, "max_tokens"),
    (COMPLETE, {"prompt": [5] * 256}, "prompt"),
    (COMPLETE, {"prompt": [5] * 300}, "prompt"),
    (COMPLETE, {"prompt": [[5], [5] * 300]}, "prompt"),
    (COMPLETE, {"prompt": [5] * 200, "max_tokens": 57}, "max_tokens"),
    (COMPLETE, {"prompt": "東" * 300}, "prompt"),
    (COMPLETE, {"prompt": ["Hi", "東" * 300]}, "prompt"),
]


@pytest.mark.parametrize(("path", "fields", "param"), TOO_LONG)
async def test_beyond_the_context_is_said_in_the_words_that_clients_act_on(
    client, path, fields, param
):
    error = (await client.post(path, json=fields)).json()["error"]
    assert error["message"].startswith("This model's maximum context length is 256 tokens. However")
    assert (error["code"], error["param"]) == ("context_length_exceeded", param)


async def test_a_number_of_many_digits_is_not_echoed(client):
    digits = "1" + "0" * 300
    body = f'{{"prompt": "Hi", "temperature": {digits}}}'
    assert digits not in (await client.post(COMPLETE, content=body)).text
