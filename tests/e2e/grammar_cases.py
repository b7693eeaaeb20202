"""What answers may be kept to, each way once. Owns no assertion."""

from __future__ import annotations

import json
from typing import Any

PERSON = {
    "type": "object",
    "properties": {
        "name": {"type": "string", "maxLength": 12},
        "age": {"type": "integer", "minimum": 0, "maximum": 130},
        "tags": {"type": "array", "items": {"enum": ["a", "b"]}, "maxItems": 2},
    },
    "required": ["name", "age", "tags"],
    "additionalProperties": False,
}
CALL = {
    "type": "structural_tag",
    "format": {
        "type": "triggered_tags",
        "triggers": ["<call>"],
        "tags": [
            {
                "type": "tag",
                "begin": "<call>",
                "content": {"type": "json_schema", "json_schema": PERSON},
                "end": "</call>",
            }
        ],
        "at_least_one": True,
        "stop_after_first": True,
    },
}
TOOLS = [
    {"type": "function", "function": {"name": name, "parameters": PERSON}}
    for name in ("add", "drop")
]
ASKED: dict[str, dict[str, Any]] = {
    "json_schema": {
        "response_format": {
            "type": "json_schema",
            "json_schema": {"name": "p", "strict": True, "schema": PERSON},
        }
    },
    "tgi": {"response_format": {"type": "json_object", "value": PERSON}},
    "guided_json": {"guided_json": json.dumps(PERSON)},
    "regex": {"structured_outputs": {"regex": r"[A-Z][a-z]{2,8} is \d{1,3} years old\."}},
    "choice": {"guided_choice": ["positive", "negative", "neutral"]},
    "gbnf": {"guided_grammar": 'root ::= "<" [a-z]{1,9} ">" [0-9]{2}'},
    "tags": {"response_format": CALL},
    "required": {"tools": TOOLS, "tool_choice": "required"},
    "named": {
        "tools": TOOLS,
        "tool_choice": {"type": "function", "function": {"name": "drop"}},
        "parallel_tool_calls": False,
    },
    "auto": {"tools": TOOLS},
    "auto_or_schema": {
        "tools": TOOLS,
        "response_format": {"type": "json_object", "value": PERSON},
    },
}
SAMPLED = {"temperature": 1.0, "top_p": 0.95, "max_tokens": 64, "return_token_ids": True}
MESSAGES = [{"role": "user", "content": "Describe a person named Ada."}]
HABIT = [
    turn
    for name in ("Bob", "Eve", "Tim")
    for turn in (
        {"role": "user", "content": f"Add {name}, who is 7."},
        {
            "role": "assistant",
            "content": None,
            "tool_calls": [
                {
                    "id": f"call_{name}",
                    "type": "function",
                    "function": {
                        "name": "add",
                        "arguments": json.dumps({"name": name, "age": 7, "tags": ["a"]}),
                    },
                }
            ],
        },
    )
]
"""What a small model needs to have seen before it calls a tool of its own accord."""
PENALTIES = {"frequency_penalty": 0.4, "presence_penalty": 0.2, "repetition_penalty": 1.1}
