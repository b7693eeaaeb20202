"""Fields that change nothing are accepted, and an envelope of hints is checked for its form."""

from __future__ import annotations

import pytest

from coordinator.cluster.scripted_service import say
from protocol.finish import FinishReason

PLACES = [
    ("/v1/chat/completions", {"messages": [{"role": "user", "content": "x"}]}),
    ("/v1/completions", {"prompt": "x"}),
]
HINT = {
    "action_id": "1",
    "action_type": "kv.retain",
    "action_version": "1.0",
    "payload": {"x": [1]},
}
ENVELOPE = {"protocol_version": "0.1", "message_id": "m", "actions": [HINT]}
HARMLESS = [
    {"user": "me"},
    {"metadata": {"a": "b"}},
    {"store": True},
    {"service_tier": "flex"},
    {
        "mirostat": 0,
        "typical_p": 1.0,
        "repeat_penalty": 1,
        "dry_multiplier": 0.0,
        "watermark": False,
    },
    {"include_reasoning": True, "separate_reasoning": True, "verbosity": "medium", "n_predict": -1},
    {"prediction": {"type": "content", "content": "x"}, "prompt_cache_key": "x", "ignored": [5]},
    {"grammar": "", "regex": None, "ebnf": "", "json_schema": {}},
    {"logit_bias": {"5": 1, "006": 1.5}},
    {"stop_token_ids": [7.0, 8]},
    {"kv_hints": None},
    {"kv_hints": ENVELOPE},
    {"kv_hints": ENVELOPE | {"actions": []}},
    {"kv_hints": {"protocol_version": "9", "message_id": "m"}},
    {"kv_hints": ENVELOPE | {"actions": [HINT | {"action_type": "nobody.knows"}], "more": 1}},
]
WRONG = [
    ({"kv_hints": 5}, "kv_hints"),
    ({"kv_hints": []}, "kv_hints"),
    ({"kv_hints": {}}, "kv_hints.protocol_version"),
    ({"kv_hints": {"protocol_version": 1, "message_id": "m"}}, "kv_hints.protocol_version"),
    ({"kv_hints": {"protocol_version": "0.1"}}, "kv_hints.message_id"),
    ({"kv_hints": ENVELOPE | {"message_id": "m" * 129}}, "kv_hints.message_id"),
    ({"kv_hints": ENVELOPE | {"actions": {}}}, "kv_hints.actions"),
    ({"kv_hints": ENVELOPE | {"actions": [{}]}}, "kv_hints.actions[0].action_id"),
    ({"kv_hints": ENVELOPE | {"actions": [HINT | {"payload": 5}]}}, "kv_hints.actions[0].payload"),
    ({"kv_hints": ENVELOPE | {"actions": [HINT] * 65}}, "kv_hints.actions"),
    *(
        ({name: value}, name)
        for name in ("stream", "ignore_eos")
        for value in (0, "yes", 1.0, "off")
    ),
    *(
        ({"logit_bias": {name: 1}}, f"logit_bias.{name}")
        for name in ("5.0", "+5", " 5", "5_0", "\u0665", "")
    ),
    ({"stop_token_ids": [7.5]}, "stop_token_ids[0]"),
    ({"stop_token_ids": [True]}, "stop_token_ids[0]"),
    ({"stop_token_ids": ["7"]}, "stop_token_ids[0]"),
    ({"json_schema": 5}, "json_schema"),
    ({"regex": "a", "grammar": "b"}, "regex"),
    ({"best_of": 2}, "best_of"),
    ({"suffix": "x"}, "suffix"),
    *(({name: 2}, name) for name in ("mirostat", "typical_p", "tfs_z", "repeat_penalty", "top_a")),
    *(({name: "x"}, name) for name in ("guided_whitespace_pattern", "stop_regex", "lora_path")),
    ({"include_reasoning": False}, "include_reasoning"),
    ({"separate_reasoning": False}, "separate_reasoning"),
    ({"verbosity": "low"}, "verbosity"),
    ({"web_search_options": {}}, "web_search_options"),
    ({"xtc_probability": 0.5}, "xtc_probability"),
    ({"n_predict": 5}, "n_predict"),
]


@pytest.mark.parametrize(("path", "asked"), PLACES)
@pytest.mark.parametrize("fields", HARMLESS)
async def test_what_changes_nothing_is_accepted(client, service, path, asked, fields):
    service.default = say([5], FinishReason.STOP)
    assert (await client.post(path, json=asked | fields)).status_code == 200
    assert (await client.post(path, json=asked | fields | {"stream": True})).status_code == 200
    first, second = service.generations
    assert first.prompt_token_ids == second.prompt_token_ids


@pytest.mark.parametrize(("path", "asked"), PLACES)
@pytest.mark.parametrize(("fields", "param"), WRONG)
async def test_what_is_wrong_is_named(client, path, asked, fields, param):
    response = await client.post(path, json=asked | fields)
    assert (response.status_code, response.json()["error"]["param"]) == (400, param)
