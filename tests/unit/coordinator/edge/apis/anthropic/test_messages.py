"""Anthropic's messages: what a request means, what its stream says, event by event, and how it is refused."""

from __future__ import annotations

import json

import httpx
import orjson
import pytest
from jsonschema import Draft202012Validator

from coordinator.cluster.scripted_service import say
from coordinator.cluster.service_api import StreamEvent
from coordinator.edge.answers.answer import (
    Delta,
    Ending,
    Part,
    ReasoningDelta,
    TextDelta,
    ToolCallDelta,
    Usage,
)
from coordinator.edge.apis.anthropic.dialect import MessagesDialect
from coordinator.edge.apis.anthropic.requests import parse_messages
from coordinator.edge.app import EdgeLimits, create_app
from protocol.errors import Overloaded, WorkerLost
from protocol.finish import FinishReason
from protocol.sampling import SampledToken
from tests.unit.coordinator.edge.apis.named_events import named_events, prompt_of

MESSAGES, COUNT = "/v1/messages", "/v1/messages/count_tokens"
HELLO = [{"role": "user", "content": "Hello"}]
VERSION = {"anthropic-version": "2023-06-01"}


async def ask(client, **fields):
    return await client.post(MESSAGES, json={"max_tokens": 64, "messages": HELLO} | fields)


THOUGHT = {"type": "thinking", "thinking": "hm"}
CALL = {"type": "tool_use", "id": "t1", "name": "f", "input": {"a": 1}}
RESULT = {"type": "tool_result", "tool_use_id": "t1"}
DOCUMENT = {"type": "document", "source": {"type": "text", "data": "x"}}


def said(*blocks):
    return [{"role": "user", "content": list(blocks)}]


def answered(*blocks):
    return {"role": "assistant", "content": list(blocks)}


def script(tokenizer, text, finish_reason=FinishReason.LENGTH):
    return say(tokenizer.encode(text, add_special_tokens=False), finish_reason)


async def test_a_whole_message(client, service, tokenizer):
    service.default = script(tokenizer, "Hello world")
    told = (await ask(client, model="tiny-alias")).json()
    usage = told.pop("usage")
    assert told.pop("id").startswith("msg_")
    assert told == {
        "type": "message",
        "role": "assistant",
        "model": "tiny-alias",
        "content": [{"type": "text", "text": "Hello world"}],
        "stop_reason": "max_tokens",
        "stop_sequence": None,
    }
    generation = service.generations[0]
    assert usage == {
        "input_tokens": len(generation.prompt_token_ids),
        "cache_creation_input_tokens": 0,
        "cache_read_input_tokens": 0,
        "output_tokens": len(tokenizer.encode("Hello world", add_special_tokens=False)),
    }
    assert generation.sampling.max_tokens == 64


async def test_a_stream_event_by_event(client, service, tokenizer):
    first, *rest = (
        SampledToken(token_id=token_id)
        for token_id in tokenizer.encode("Hello world", add_special_tokens=False)
    )
    service.default = [
        StreamEvent(tokens=[first], num_cached_tokens=3),
        *(StreamEvent(tokens=[token]) for token in rest),
        StreamEvent(tokens=[SampledToken(token_id=2)], finish_reason=FinishReason.STOP),
    ]
    response = await ask(client, stream=True)
    told = named_events(response.text)
    assert [entry["type"] for entry in told[:3]] == ["message_start", "content_block_start", "ping"]
    assert [entry["type"] for entry in told[-3:]] == [
        *("content_block_stop", "message_delta", "message_stop")
    ]
    prompt = len(service.generations[0].prompt_token_ids)
    start = told[0]["message"]
    assert start["content"] == []
    assert (start["stop_reason"], start["role"], start["type"]) == (None, "assistant", "message")
    assert start["usage"]["input_tokens"] == prompt - 3
    assert start["usage"]["cache_read_input_tokens"] == 3
    assert told[1]["content_block"] == {"type": "text", "text": ""}
    deltas = [entry for entry in told if entry["type"] == "content_block_delta"]
    assert "".join(entry["delta"]["text"] for entry in deltas) == "Hello world"
    assert {(entry["index"], entry["delta"]["type"]) for entry in deltas} == {(0, "text_delta")}
    assert told[-2]["delta"] == {"stop_reason": "end_turn", "stop_sequence": None}
    assert told[-2]["usage"] == {
        "input_tokens": prompt - 3,
        "cache_creation_input_tokens": 0,
        "cache_read_input_tokens": 3,
        "output_tokens": len(rest) + 2,
    }
    assert response.headers["content-type"].startswith("text/event-stream")
    assert "[DONE]" not in response.text


@pytest.mark.parametrize("stream", [False, True])
async def test_stop_sequence_is_told(client, service, tokenizer, stream):
    service.default = script(tokenizer, "Hello END of", None)
    response = await ask(client, stop_sequences=["no", "END"], stream=stream)
    told = named_events(response.text)[-2]["delta"] if stream else response.json()
    assert (told["stop_reason"], told["stop_sequence"]) == ("stop_sequence", "END")


async def test_system_and_blocks_are_turns(client, service, tokenizer):
    service.default = script(tokenizer, "Hello")
    cached = {"cache_control": {"type": "ephemeral"}}
    await ask(
        client,
        system=[{"type": "text", "text": "Be", **cached}, {"type": "text", "text": "brief"}],
        messages=[
            {"role": "user", "content": [{"type": "text", "text": "Hello", **cached}]},
            {"role": "user", "content": "there"},
            {"role": "assistant", "content": [{"type": "text", "text": "Hi"}]},
            {"role": "user", "content": "How?"},
        ],
        metadata={"user_id": "u"},
        service_tier="auto",
    )
    assert prompt_of(service, tokenizer) == (
        "<|im_start|>system\nBe\nbrief<|im_end|>\n<|im_start|>user\nHello\nthere<|im_end|>\n"
        "<|im_start|>assistant\nHi<|im_end|>\n<|im_start|>user\nHow?<|im_end|>\n"
        "<|im_start|>assistant\n"
    )


async def test_an_answer_that_the_client_began_is_gone_on_with(client, service, tokenizer):
    service.default = script(tokenizer, "Hello")
    await ask(client, messages=[*HELLO, {"role": "assistant", "content": "It is"}])
    assert prompt_of(service, tokenizer).endswith("<|im_start|>assistant\nIt is")


async def test_sampling_reaches_the_generation(client, service, tokenizer):
    service.default = script(tokenizer, "Hello")
    await ask(client, temperature=0.25, top_p=0.5, top_k=7, seed=5)
    sampling = service.generations[0].sampling
    assert (sampling.temperature, sampling.top_p, sampling.top_k, sampling.seed) == (
        *(0.25, 0.5, 7, 5),
    )


async def test_count_is_the_prompt_of_the_same_message(client, service, tokenizer):
    service.default = script(tokenizer, "Hello")
    asked = {"system": "Be brief", "messages": HELLO}
    await ask(client, **asked)
    told = (await client.post(COUNT, json=asked)).json()
    assert told == {"input_tokens": len(service.generations[0].prompt_token_ids)}


@pytest.mark.parametrize(
    "fields",
    [
        {"context_management": {"edits": []}, "container": None, "mcp_servers": []},
        {"output_config": {"effort": "low"}, "thinking": {"type": "adaptive"}},
        {"tools": [{"name": "f", "input_examples": [], "allowed_callers": ["direct"]}]},
        {"metadata": {"user_id": "me"}, "service_tier": "auto", "of_tomorrow": {"a": 1}},
    ],
)
def test_fields_that_ask_for_nothing_are_accepted(fields):
    asked, conversation, _ = parse_messages(
        orjson.dumps({"max_tokens": 64, "messages": HELLO} | fields)
    )
    assert (asked.max_tokens, len(conversation.turns)) == (64, len(HELLO))


@pytest.mark.parametrize(
    ("fields", "named"),
    [
        ({"max_tokens": None}, "max_tokens"),
        ({"max_tokens": 0}, "max_tokens"),
        ({"max_tokens": 9999}, "max_tokens"),
        ({"messages": []}, "messages"),
        ({"messages": [{"role": "tool", "content": "x"}]}, "messages[0].role"),
        ({"messages": [{"role": "user", "content": [{"type": "text"}]}]}, ".content[0].text"),
        ({"messages": [{"role": "user", "content": [{"type": "image"}]}]}, "type 'image'"),
        ({"system": [{"type": "image"}]}, "system[0]"),
        ({"stop_sequences": [""]}, "stop_sequences[0]"),
        ({"temperature": "hot"}, "temperature"),
        ({"tool_choice": {"type": "any"}}, "tool_choice"),
        ({"tool_choice": {"type": "tool"}}, "tool_choice.name"),
        ({"tool_choice": {"type": "tool", "name": "f"}}, "tool_choice"),
        ({"tools": [{"name": "f"}, {"name": "f"}]}, "tools"),
        ({"tools": [{"name": ""}]}, "tools[0].name"),
        ({"tools": [{"name": "web_search", "type": "web_search_20250305"}]}, "tools[0].type"),
        ({"tools": [{"name": "f"}, {"name": "bash", "type": "bash_20250124"}]}, "tools[1].type"),
        ({"mcp_servers": [{"type": "url", "url": "https://x", "name": "x"}]}, "mcp_servers"),
        ({"container": "c"}, "container"),
        ({"context_management": {"edits": [{"type": "clear_tool_uses"}]}}, "context_management"),
        ({"output_format": {"type": "json_schema", "schema": {}}}, "output_format"),
        ({"messages": said({"type": "redacted_thinking", "data": "x"})}, "messages[0].content[0]"),
        (
            {"messages": [*HELLO, answered({"type": "redacted_thinking", "data": "x"}), *HELLO]},
            "messages[1].content[0]",
        ),
        ({"tools": [{"name": "f", "input_examples": [{"a": 1}]}]}, "tools[0].input_examples"),
        ({"tools": [{"name": "f", "defer_loading": True}]}, "tools[0].defer_loading"),
        (
            {"tools": [{"name": "f", "allowed_callers": ["code_execution_20250825"]}]},
            "tools[0].allowed_callers",
        ),
        ({"output_config": {"task_budget": {"total": 5}}}, "output_config.task_budget"),
        ({"output_config": {"effort": "a\nb"}}, "output_config.effort"),
        ({"thinking": {"type": "sometimes"}}, "thinking.type"),
        ({"messages": said(THOUGHT)}, "messages[0].content[0]"),
        ({"messages": said(CALL)}, "messages[0].content[0]"),
        ({"messages": [*HELLO, answered(RESULT)]}, "messages[1].content[0]"),
        ({"messages": said({**RESULT, "content": [CALL]})}, "type 'tool_use'"),
        ({"messages": said({**RESULT, "content": [RESULT]})}, "type 'tool_result'"),
        ({"system": [{"type": "text", "text": "x"}, THOUGHT]}, "system[1]"),
        ({"messages": said({**DOCUMENT, "citations": {"enabled": True}})}, "content[0].citations"),
        (
            {"output_config": {"format": {"type": "json_schema", "schema": {}}}},
            "output_config.format",
        ),
    ],
)
async def test_wrong_field_is_named_in_anthropics_shape(client, fields, named):
    response = await ask(client, **fields)
    assert response.status_code == 400
    told = response.json()
    assert (told["type"], told["error"]["type"]) == ("error", "invalid_request_error")
    assert named in told["error"]["message"]


async def test_refusals_keep_status_headers_and_shape(client, service, served_model):
    service.refusal = Overloaded("full", 2.2)
    for stream in (False, True):
        response = await ask(client, stream=stream)
        assert (response.status_code, response.headers["retry-after"]) == (429, "3")
        assert response.json()["error"] == {"type": "rate_limit_error", "message": "full"}
    for response, status, kind in (
        (await ask(client, model="no"), 404, "not_found_error"),
        (await client.get(MESSAGES), 405, "invalid_request_error"),
        (await client.post(MESSAGES + "/no"), 404, "not_found_error"),
        (await client.get("/v1/models/no", headers=VERSION), 404, "not_found_error"),
        (await client.get("/v1/nowhere", headers=VERSION), 404, "not_found_error"),
    ):
        assert (response.status_code, response.json()["error"]["type"]) == (status, kind)
    app = create_app(service=service, model=served_model, limits=EdgeLimits(max_body_bytes=99))
    transport = httpx.ASGITransport(app=app)
    async with httpx.AsyncClient(transport=transport, base_url="http://edge") as small:
        response = await ask(small, system="x" * 99)
    assert (response.status_code, response.json()["error"]["type"]) == (413, "request_too_large")


async def test_other_clients_are_told_of_models_openais_way(client):
    assert (await client.get("/v1/models")).json()["object"] == "list"
    told = (await client.get("/v1/models/no")).json()
    assert told["error"]["param"] == "model"


async def test_models_have_cards_in_its_form(client):
    told = (await client.get("/v1/models", headers=VERSION)).json()
    assert [card["id"] for card in told["data"]] == ["tiny", "tiny-alias"]
    assert (told["first_id"], told["last_id"], told["has_more"]) == ("tiny", "tiny-alias", False)
    card = (await client.get("/v1/models/tiny", headers=VERSION)).json()
    assert card == told["data"][0]
    assert (card["type"], card["display_name"]) == ("model", "tiny")
    assert card["created_at"].endswith("Z")


async def test_models_come_page_by_page(client):
    async def page(**asked):
        told = (await client.get("/v1/models", headers=VERSION, params=asked)).json()
        return [card["id"] for card in told["data"]], told["has_more"], told["last_id"]

    assert await page(limit=1) == (["tiny"], True, "tiny")
    assert await page(limit=1, after_id="tiny") == (["tiny-alias"], False, "tiny-alias")
    assert await page(limit=1, before_id="tiny-alias") == (["tiny"], False, "tiny")
    assert await page(limit=2) == (["tiny", "tiny-alias"], False, "tiny-alias")
    assert await page(after_id="tiny-alias") == ([], False, None)


@pytest.mark.parametrize(
    ("asked", "named"),
    [
        ({"limit": 0}, "limit must be at least 1"),
        ({"limit": 1001}, "limit must be at most 1000"),
        ({"limit": "few"}, "limit must be an integer"),
        ({"after_id": "gone"}, "after_id names no entry"),
        ({"before_id": "gone"}, "before_id names no entry"),
        ({"after_id": "tiny", "before_id": "tiny"}, "exclude each other"),
    ],
)
async def test_a_page_that_there_is_not_is_refused_by_name(client, asked, named):
    response = await client.get("/v1/models", headers=VERSION, params=asked)
    assert response.status_code == 400
    error = response.json()["error"]
    assert error["type"] == "invalid_request_error"
    assert named in error["message"]


async def test_what_a_result_holds_is_refused_where_it_stands(client):
    image = {"type": "image", "source": {}}
    messages = said({"type": "text", "text": "x"}, RESULT | {"content": [image]})
    message = (await ask(client, messages=messages)).json()["error"]["message"]
    assert message.startswith("messages[0].content[1].content[0]: blocks of type 'image'")


async def test_its_clients_find_the_request_by_their_own_header(client, service, tokenizer):
    """`message._request_id` of the anthropic SDK, and `request_id` of its errors, are that header's."""
    service.default = script(tokenizer, "Hello")
    client.headers.update(VERSION)
    for asked, status in (({}, 200), ({"stream": True}, 200), ({"model": "no"}, 404)):
        response = await ask(client, **asked)
        assert response.status_code == status
        assert response.headers["request-id"] == response.headers["x-request-id"]
    del client.headers["anthropic-version"]
    assert "request-id" not in (await ask(client)).headers


async def test_failure_after_the_first_token_is_an_event(client, service, tokenizer):
    service.default = [*script(tokenizer, "Hello", None), StreamEvent(error=WorkerLost("gone"))]
    response = await ask(client, stream=True)
    assert response.status_code == 200
    assert named_events(response.text)[-1] == {
        "type": "error",
        "error": {"type": "overloaded_error", "message": "gone"},
    }


async def test_keys_are_asked_for(service, served_model, tokenizer):
    service.default = script(tokenizer, "Hello")
    app = create_app(service=service, model=served_model, api_keys=["k"])
    transport = httpx.ASGITransport(app=app)
    async with httpx.AsyncClient(transport=transport, base_url="http://edge") as asking:
        paths = [("POST", MESSAGES), ("POST", COUNT), ("GET", "/v1/models")]
        for method, path in paths:
            response = await asking.request(method, path, headers=VERSION)
            assert response.status_code == 401
            assert response.json()["error"]["type"] == "authentication_error"
        asking.headers["x-api-key"] = "k"
        assert (await ask(asking)).status_code == 200


async def test_routes_are_documented_with_their_errors(client):
    document = (await client.get("/openapi.json")).json()
    for path in (MESSAGES, COUNT):
        told = document["paths"][path]["post"]
        schema = told["responses"]["default"]["content"]["application/json"]["schema"]
        Draft202012Validator(schema).validate((await client.post(path, json={})).json())
    assert "text/event-stream" in document["paths"][MESSAGES]["post"]["responses"]["200"]["content"]
    assert "anthropic" not in str(document["paths"]["/v1/models"])


CALLING: list[Part] = [
    ReasoningDelta("Let me"),
    ReasoningDelta(" think"),
    TextDelta("I look"),
    TextDelta(" it up."),
    ToolCallDelta(0, "toolu_1", "look"),
    ToolCallDelta(0, arguments='{"at":'),
    ToolCallDelta(0, arguments='"x"}'),
    ToolCallDelta(1, "toolu_2", "go", "{}"),
]
ENDING = Ending(Usage(5, 9))


def test_parts_of_a_stream_are_blocks():
    dialect = MessagesDialect("msg_1", "tiny")
    said = b"".join(dialect.delta(Delta(parts=[part]), ENDING.usage) for part in CALLING)
    said += dialect.end(Delta(finish_reason=FinishReason.TOOL_CALLS), ENDING)
    told = named_events(said.decode())
    starts = [entry for entry in told if entry["type"] == "content_block_start"]
    assert [(entry["index"], entry["content_block"]) for entry in starts] == [
        (0, {"type": "thinking", "thinking": "", "signature": ""}),
        (1, {"type": "text", "text": ""}),
        (2, {"type": "tool_use", "id": "toolu_1", "name": "look", "input": {}}),
        (3, {"type": "tool_use", "id": "toolu_2", "name": "go", "input": {}}),
    ]
    deltas = [entry for entry in told if entry["type"] == "content_block_delta"]
    assert [(entry["index"], *entry["delta"].values()) for entry in deltas] == [
        (0, "thinking_delta", "Let me"),
        (0, "thinking_delta", " think"),
        (1, "text_delta", "I look"),
        (1, "text_delta", " it up."),
        (2, "input_json_delta", '{"at":'),
        (2, "input_json_delta", '"x"}'),
        (3, "input_json_delta", "{}"),
    ]
    stops = [entry["index"] for entry in told if entry["type"] == "content_block_stop"]
    assert stops == [0, 1, 2, 3]
    assert told[-2]["delta"]["stop_reason"] == "tool_use"
    assert sum(entry["type"] == "ping" for entry in told) == 1


LONG_NUMBER = 123456789012345678901234567890


def test_parts_of_a_whole_answer_are_blocks():
    parts: list[Part] = [
        ReasoningDelta("Let me think"),
        TextDelta("I look it up."),
        ToolCallDelta(0, "toolu_1", "look", '{"at":"x"}'),
        ToolCallDelta(1, "toolu_2", "go", '{"cut'),
        ToolCallDelta(2, "toolu_3", "go", f'{{"n": [{LONG_NUMBER},\n1.50]}}'),
    ]
    delta = Delta(parts=parts, finish_reason=FinishReason.TOOL_CALLS)
    said = MessagesDialect("msg_1", "tiny").whole([delta], ENDING)
    assert f'"input":{{"n":[{LONG_NUMBER},1.50]}}'.encode() in said
    told = json.loads(said)
    assert told["content"] == [
        {"type": "thinking", "thinking": "Let me think", "signature": ""},
        {"type": "text", "text": "I look it up."},
        {"type": "tool_use", "id": "toolu_1", "name": "look", "input": {"at": "x"}},
        {"type": "tool_use", "id": "toolu_2", "name": "go", "input": {"arguments": '{"cut'}},
        {"type": "tool_use", "id": "toolu_3", "name": "go", "input": {"n": [LONG_NUMBER, 1.5]}},
    ]
    assert told["stop_reason"] == "tool_use"


async def test_an_answer_without_text_has_no_blocks(client, service):
    service.default = [
        StreamEvent(tokens=[SampledToken(token_id=2)], finish_reason=FinishReason.STOP)
    ]
    assert (await ask(client)).json()["content"] == []
    told = [entry["type"] for entry in named_events((await ask(client, stream=True)).text)]
    assert told == ["message_start", "ping", "message_delta", "message_stop"]


@pytest.fixture
async def telling(service, served_model, tmp_path):
    """A client of a server whose template tells all that it is given."""
    (tmp_path / "t.jinja").write_text(
        "{% for m in messages %}{{ m.role }}|{{ m.content }}|{{ m.reasoning_content }}"
        "|{{ m.tool_calls | tojson if m.tool_calls }}|{{ m.tool_call_id }};{% endfor %}"
    )
    app = create_app(service=service, model=served_model, chat_template=tmp_path / "t.jinja")
    transport = httpx.ASGITransport(app=app)
    async with httpx.AsyncClient(transport=transport, base_url="http://edge") as asking:
        yield asking


async def test_calls_and_results_reach_the_template(telling, service, tokenizer):
    service.default = script(tokenizer, "Hello")
    done = [{"type": "text", "text": "done"}]
    messages = [
        *HELLO,
        answered({**THOUGHT, "signature": ""}, {"type": "text", "text": "so"}, CALL),
        *said(*done, {**RESULT, "content": done}),
    ]
    assert (await ask(telling, messages=messages)).status_code == 200
    written = '[{"id": "t1", "type": "function", "function": {"name": "f", "arguments": {"a": 1}}}]'
    assert prompt_of(service, tokenizer) == (
        f"user|Hello|||;assistant|so|hm|{written}|;tool|done|||t1;user|done|||;"
    )


@pytest.mark.parametrize(
    ("content", "told"),
    [
        (None, "Error"),
        ("no such file", "Error: no such file"),
        ([{"type": "text", "text": "no"}, {"type": "text", "text": "file"}], "Error: no\nfile"),
        ("ERROR 5: no such file", "ERROR 5: no such file"),
    ],
)
async def test_a_result_that_is_an_error_says_so(telling, service, tokenizer, content, told):
    service.default = script(tokenizer, "Hello")
    failed = {**RESULT, "content": content, "is_error": True}
    await ask(telling, messages=[*HELLO, answered(CALL), *said(failed)])
    assert f"tool|{told}|" in prompt_of(service, tokenizer)
    failed["is_error"] = False
    await ask(telling, messages=[*HELLO, answered(CALL), *said(failed)])
    assert "tool|Error" not in prompt_of(service, tokenizer)
