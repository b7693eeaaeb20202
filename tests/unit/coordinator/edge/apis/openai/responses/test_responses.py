"""OpenAI's responses: what items mean, what a stream says event by event, and what is kept to be gone on with."""

from __future__ import annotations

import httpx
import orjson
import pytest

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
from coordinator.edge.apis.openai.responses.dialect import ResponseOptions, ResponsesDialect
from coordinator.edge.apis.openai.responses.requests import parse_response, turns_of
from coordinator.edge.apis.openai.responses.types import ResponsesRequest
from coordinator.edge.app import create_app
from coordinator.edge.text.conversation import ToolCall, Turn
from protocol.errors import InvalidRequest, Overloaded, WorkerLost
from protocol.finish import FinishReason
from protocol.sampling import SampledToken, TokenLogprob
from tests.unit.coordinator.edge.apis.named_events import named_events, prompt_of

PATH = "/v1/responses"


async def ask(client, **fields):
    return await client.post(PATH, json={"input": "Hello"} | fields)


def script(tokenizer, text, finish_reason=FinishReason.STOP):
    return say([*tokenizer.encode(text, add_special_tokens=False), 2], finish_reason)


def events_of(text):
    found = named_events(text)
    assert [entry["sequence_number"] for entry in found] == list(range(len(found)))
    return found


async def test_a_whole_response(client, service, tokenizer):
    service.default = script(tokenizer, "Hello world")
    told = (await ask(client, instructions="Be brief", metadata={"a": "b"}, user="u")).json()
    (item,) = told["output"]
    assert item.pop("id").startswith("msg_")
    content = [{"type": "output_text", "annotations": [], "logprobs": [], "text": "Hello world"}]
    assert item == {
        "type": "message",
        "status": "completed",
        "role": "assistant",
        "content": content,
    }
    assert told["id"].startswith("resp_")
    assert (told["object"], told["status"], told["model"]) == ("response", "completed", "tiny")
    assert (told["error"], told["incomplete_details"]) == (None, None)
    assert (told["metadata"], told["user"], told["instructions"]) == ({"a": "b"}, "u", "Be brief")
    assert (told["tool_choice"], told["tools"], told["parallel_tool_calls"]) == ("auto", [], True)
    assert (told["text"], told["temperature"], told["top_p"]) == (
        *({"format": {"type": "text"}}, 1.0, 1.0),
    )
    prompt = len(service.generations[0].prompt_token_ids)
    size = len(tokenizer.encode("Hello world", add_special_tokens=False)) + 1
    assert told["usage"] == {
        "input_tokens": prompt,
        "input_tokens_details": {"cached_tokens": 0, "cache_write_tokens": 0},
        "output_tokens": size,
        "output_tokens_details": {"reasoning_tokens": 0},
        "total_tokens": prompt + size,
    }
    assert prompt_of(service, tokenizer) == (
        "<|im_start|>system\nBe brief<|im_end|>\n<|im_start|>user\nHello<|im_end|>\n"
        "<|im_start|>assistant\n"
    )


async def test_a_stream_event_by_event(client, service, tokenizer):
    service.default = script(tokenizer, "Hello world")
    response = await ask(client, stream=True)
    told = events_of(response.text)
    kinds = [entry["type"].removeprefix("response.") for entry in told]
    deltas = [entry for entry in told if entry["type"] == "response.output_text.delta"]
    assert kinds == [
        *("created", "in_progress", "output_item.added", "content_part.added"),
        *["output_text.delta"] * len(deltas),
        *("output_text.done", "content_part.done", "output_item.done", "completed"),
    ]
    assert told[0]["response"]["status"] == "in_progress"
    assert (told[0]["response"]["output"], told[0]["response"]["usage"]) == ([], None)
    assert told[2]["item"]["content"] == []
    assert told[2]["item"]["status"] == "in_progress"
    assert "".join(entry["delta"] for entry in deltas) == "Hello world"
    where = {(entry["item_id"], entry["output_index"], entry["content_index"]) for entry in deltas}
    assert where == {(told[2]["item"]["id"], 0, 0)}
    assert told[-4]["text"] == told[-3]["part"]["text"] == "Hello world"
    assert told[-1]["response"]["output"] == [told[-2]["item"]]
    assert told[-1]["response"]["id"] == told[0]["response"]["id"]
    assert told[-1]["response"]["usage"]["output_tokens"] == len(service.default)
    assert "[DONE]" not in response.text
    assert response.headers["content-type"].startswith("text/event-stream")


async def test_a_response_that_is_cut_off_says_so(client, service, tokenizer):
    service.default = script(tokenizer, "Hello", FinishReason.LENGTH)
    for stream in (False, True):
        response = await ask(client, stream=stream, max_output_tokens=9)
        told = events_of(response.text)[-1]["response"] if stream else response.json()
        assert (told["status"], told["incomplete_details"]) == (
            *("incomplete", {"reason": "max_output_tokens"}),
        )
        assert told["output"][0]["status"] == "incomplete"
        assert told["max_output_tokens"] == 9
    assert service.generations[0].sampling.max_tokens == 9


async def test_failure_after_the_first_token_is_told_in_the_stream(client, service, tokenizer):
    service.default = [*script(tokenizer, "Hello", None), StreamEvent(error=WorkerLost("gone"))]
    told = events_of((await ask(client, stream=True)).text)
    assert (told[-2]["type"], told[-2]["message"]) == ("error", "gone")
    assert told[-1]["type"] == "response.failed"
    response = told[-1]["response"]
    assert response["error"] == {"code": "server_error", "message": "gone"}
    assert (response["status"], response["output"][0]["status"]) == ("failed", "incomplete")


async def test_a_conversation_is_gone_on_with(client, service, tokenizer):
    service.default = script(tokenizer, "Hi")
    first = (await ask(client, instructions="Be brief")).json()
    stream = await ask(client, input="Again", previous_response_id=first["id"], stream=True)
    second = events_of(stream.text)[-1]["response"]
    assert second["previous_response_id"] == first["id"]
    told = await ask(client, input="Thrice", previous_response_id=second["id"], instructions="New")
    assert told.status_code == 200
    assert prompt_of(service, tokenizer) == (
        "<|im_start|>system\nNew<|im_end|>\n<|im_start|>user\nHello<|im_end|>\n"
        "<|im_start|>assistant\nHi<|im_end|>\n<|im_start|>user\nAgain<|im_end|>\n"
        "<|im_start|>assistant\nHi<|im_end|>\n<|im_start|>user\nThrice<|im_end|>\n"
        "<|im_start|>assistant\n"
    )


async def test_a_kept_response_can_be_read_and_forgotten(client, service, tokenizer):
    service.default = script(tokenizer, "Hi")
    first = (await ask(client)).json()
    path = f"{PATH}/{first['id']}"
    assert (await client.get(path)).json() == first
    items = (await client.get(f"{path}/input_items")).json()
    (item,) = items["data"]
    assert item["content"] == [{"type": "input_text", "text": "Hello"}]
    assert (items["first_id"], items["last_id"]) == (item["id"], item["id"])
    assert (await client.post(f"{path}/cancel")).status_code == 400
    assert (await client.delete(path)).json() == {
        "id": first["id"],
        "object": "response",
        "deleted": True,
    }
    for response in (await client.get(path), await client.delete(path)):
        assert (response.status_code, response.json()["error"]["type"]) == (404, "NotFoundError")


async def test_what_is_not_kept_cannot_be_gone_on_with(client, service, tokenizer):
    service.default = script(tokenizer, "Hi")
    first = (await ask(client, store=False)).json()
    assert first["store"] is False
    response = await ask(client, previous_response_id=first["id"])
    error = response.json()["error"]
    assert (response.status_code, error["param"]) == (400, "previous_response_id")
    assert error["code"] == "previous_response_not_found"


async def test_input_items_come_page_by_page_and_in_either_order(client, service, tokenizer):
    service.default = script(tokenizer, "Hi")
    said = [{"role": "user", "id": f"msg_{place}", "content": "x"} for place in range(3)]
    told = (await ask(client, input=said, max_tool_calls=4)).json()
    assert told["max_tool_calls"] == 4

    async def page(**asked):
        response = await client.get(f"{PATH}/{told['id']}/input_items", params=asked)
        found = response.json()
        ids = [item["id"] for item in found["data"]]
        assert [found["first_id"], found["last_id"]] == ([ids[0], ids[-1]] if ids else [None] * 2)
        return ids, found["has_more"]

    assert await page() == (["msg_2", "msg_1", "msg_0"], False)
    assert await page(order="asc") == (["msg_0", "msg_1", "msg_2"], False)
    assert await page(order="asc", limit=2) == (["msg_0", "msg_1"], True)
    assert await page(order="asc", limit=2, after="msg_1") == (["msg_2"], False)
    assert await page(limit=1, after="msg_2") == (["msg_1"], True)
    assert await page(after="msg_0") == ([], False)
    for wrong in ({"order": "up"}, {"limit": 0}, {"limit": 101}, {"after": "gone"}):
        (named,) = wrong
        response = await client.get(f"{PATH}/{told['id']}/input_items", params=wrong)
        error = response.json()["error"]
        assert (response.status_code, error["param"]) == (400, named)


async def test_tenants_do_not_see_each_others_responses(service, served_model, tokenizer):
    service.default = script(tokenizer, "Hi")
    app = create_app(service=service, model=served_model, api_keys=["k1", "k2"])
    transport = httpx.ASGITransport(app=app)
    async with httpx.AsyncClient(transport=transport, base_url="http://edge") as asking:
        assert (await ask(asking)).status_code == 401
        asking.headers["Authorization"] = "Bearer k1"
        told = (await ask(asking)).json()
        asking.headers["Authorization"] = "Bearer k2"
        assert (await asking.get(f"{PATH}/{told['id']}")).status_code == 404
        assert (await ask(asking, previous_response_id=told["id"])).status_code == 400
        asking.headers["Authorization"] = "Bearer k1"
        assert (await ask(asking, previous_response_id=told["id"])).status_code == 200


async def test_logprobs_come_with_their_text(client, service, tokenizer):
    token_ids = tokenizer.encode("Hi", add_special_tokens=False)
    logprob = TokenLogprob(logprob=-0.5, top=[(token_ids[0], -0.5)])
    tokens = [SampledToken(token_id=token_id, logprob=logprob) for token_id in token_ids]
    service.default = [StreamEvent(tokens=tokens, finish_reason=FinishReason.LENGTH)]
    include = ["message.output_text.logprobs"]
    whole = (await ask(client, include=include, top_logprobs=1)).json()
    (content,) = whole["output"][0]["content"]
    assert [entry["logprob"] for entry in content["logprobs"]] == [-0.5] * len(tokens)
    told = events_of((await ask(client, include=include, stream=True)).text)
    (delta,) = [entry for entry in told if entry["type"] == "response.output_text.delta"]
    assert delta["logprobs"] == content["logprobs"]
    assert told[-1]["response"]["output"][0]["content"][0]["logprobs"] == content["logprobs"]


def turns(*items):
    return turns_of(ResponsesRequest.model_validate({"input": items}))


def test_pieces_of_an_answer_are_one_turn():
    told = turns(
        {"role": "developer", "content": "Be brief"},
        {"role": "user", "content": [{"type": "input_text", "text": "Hi"}]},
        {"type": "reasoning", "id": "rs", "summary": [{"type": "summary_text", "text": "hm"}]},
        {"type": "message", "role": "assistant", "content": "So"},
        {"type": "function_call", "call_id": "c1", "name": "f", "arguments": '{"a":1}'},
        {"type": "function_call", "call_id": "c2", "name": "g", "arguments": ""},
        {"type": "function_call_output", "call_id": "c1", "output": "one"},
        {"type": "function_call_output", "output": [{"type": "input_text", "text": "two"}]},
    )
    calls = (ToolCall("f", '{"a":1}', "c1"), ToolCall("g", "{}", "c2"))
    assert told == [
        Turn("developer", "Be brief", path="input[0]"),
        Turn("user", "Hi", path="input[1]"),
        Turn("assistant", "So", calls=calls, reasoning="hm", path="input[2]"),
        Turn("tool", "one", {"tool_call_id": "c1"}, path="input[6]"),
        Turn("tool", "two", {"tool_call_id": ""}, path="input[7]"),
    ]


def test_a_thought_that_only_its_vendor_can_read_is_refused_and_an_empty_one_is_no_turn():
    empty = {"type": "reasoning", "summary": []}
    hello = {"role": "user", "content": "Hi"}
    with pytest.raises(InvalidRequest) as refused:
        turns(hello, empty | {"encrypted_content": "x"}, hello)
    assert refused.value.param == "input[1].encrypted_content"
    assert turns(hello, empty | {"encrypted_content": None}, hello) == [
        Turn("user", "Hi", path="input[0]"),
        Turn("user", "Hi", path="input[2]"),
    ]


def tools(**fields):
    _, _, use = parse_response(orjson.dumps({"input": "x"} | fields))
    return use


def test_functions_are_tools_and_allowed_ones_may_be_called():
    function = {"type": "function", "name": "f", "parameters": {"type": "object"}, "strict": True}
    use = tools(tools=[function], tool_choice={**function})
    assert [(tool.name, tool.is_strict) for tool in use.tools] == [("f", True)]
    assert (use.only, use.must_call, use.is_parallel) == ("f", True, True)
    both = [function, {**function, "name": "g"}]
    allowed = {
        "type": "allowed_tools",
        "mode": "auto",
        "tools": [{"type": "function", "name": "g"}],
    }
    use = tools(tools=both, tool_choice=allowed, parallel_tool_calls=False)
    assert ([tool.name for tool in use.tools], use.must_call, use.is_parallel) == (
        ["g"],
        False,
        False,
    )


CUSTOM = {"type": "custom", "name": "f"}


@pytest.mark.parametrize("stream", [False, True])
async def test_tools_of_other_types_are_offered_to_nobody_and_named(
    client, service, tokenizer, stream
):
    service.default = script(tokenizer, "Hi")
    sent = [
        {"type": "web_search", "filters": {"allowed_domains": ["example.org"]}},
        {"type": "function", "name": "look", "parameters": {"type": "object"}},
        {"type": "mcp", "server_label": "m", "server_url": "https://example.org"},
        {"type": "web_search"},
        {"type": "a\r\nSet-Cookie: b"},
        CUSTOM,
    ]
    response = await ask(client, tools=sent, stream=stream)
    assert response.status_code == 200, response.text
    assert response.headers["x-baton-ignored-tools"] == "web_search, mcp, other, custom"
    told = events_of(response.text)[-1]["response"] if stream else response.json()
    assert told["tools"] == [sent[1]]
    prompt = prompt_of(service, tokenizer)
    assert "look" in prompt
    assert "example" not in prompt
    assert "custom" not in prompt


async def test_where_no_tool_is_ignored_no_header_says_so(client, service, tokenizer):
    service.default = script(tokenizer, "Hi")
    response = await ask(client, tools=[{"type": "function", "name": "look"}])
    assert "x-baton-ignored-tools" not in response.headers


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"input": ""}, "input"),
        ({"input": []}, "input"),
        ({"input": [{"type": "reasoning", "summary": []}]}, "input"),
        ({"input": 5}, "input"),
        ({"input": [{"content": "x"}]}, "input[0].role"),
        ({"input": [{"role": "user"}]}, "input[0].content"),
        ({"input": [{"role": "tool", "content": "x"}]}, "input[0].role"),
        (
            {"input": [{"role": "user", "content": [{"type": "input_image"}]}]},
            "input[0].content[0]",
        ),
        ({"input": [{"type": "item_reference", "id": "x"}]}, "input[0]"),
        ({"input": [{"type": "function_call", "call_id": "x"}]}, "input[0].name"),
        ({"input": [{"type": "function_call_output"}]}, "input[0].output"),
        ({"tools": [{"type": "function"}]}, "tools[0].name"),
        ({"tool_choice": "required"}, "tool_choice"),
        ({"tool_choice": {"type": "function", "name": "f"}}, "tool_choice"),
        ({"tool_choice": {"type": "mcp"}}, "tool_choice"),
        ({"tools": [{"type": "web_search"}], "tool_choice": {"type": "web_search"}}, "tool_choice"),
        ({"tools": [{"type": "web_search"}], "tool_choice": "required"}, "tool_choice"),
        ({"tools": [CUSTOM], "tool_choice": {"type": "custom", "name": "f"}}, "tool_choice"),
        ({"tools": [CUSTOM], "tool_choice": {"type": "function", "name": "f"}}, "tool_choice"),
        (
            {
                "tools": [CUSTOM, {"type": "function", "name": "f"}],
                "tool_choice": {"type": "allowed_tools", "mode": "auto", "tools": [CUSTOM]},
            },
            "tool_choice.tools[0].type",
        ),
        ({"background": True}, "background"),
        ({"background": True, "stream": True, "store": False}, "store"),
        ({"conversation": "c"}, "conversation"),
        ({"context_management": [{"type": "compaction"}]}, "context_management"),
        ({"text": {"verbosity": "low"}}, "text.verbosity"),
        ({"reasoning": {"effort": "a lot"}}, "reasoning.effort"),
        (
            {"input": [{"type": "reasoning", "summary": [], "encrypted_content": "x"}]},
            "input[0].encrypted_content",
        ),
        ({"text": {"format": {"type": "json_object"}}}, "text.format"),
        ({"max_output_tokens": 0}, "max_output_tokens"),
        ({"max_output_tokens": 9999}, "max_output_tokens"),
        ({"truncation": "x"}, "truncation"),
        ({"top_logprobs": 21}, "top_logprobs"),
    ],
)
async def test_wrong_field_is_named(client, fields, param):
    response = await ask(client, **fields)
    assert (response.status_code, response.json()["error"]["param"]) == (400, param)


async def test_refusal_keeps_status_and_headers(client, service):
    service.refusal = Overloaded("full", 2.2)
    for stream in (False, True):
        response = await ask(client, stream=stream)
        assert (response.status_code, response.headers["retry-after"]) == (429, "3")


CALLING: list[Part] = [
    ReasoningDelta("Let me"),
    ReasoningDelta(" think"),
    TextDelta("I look."),
    ToolCallDelta(0, "call_1", "look"),
    ToolCallDelta(0, arguments='{"at":'),
    ToolCallDelta(0, arguments='"x"}'),
    ToolCallDelta(1, "call_2", "go", "{}"),
]


def dialect_of(tokenizer, kept):
    options = ResponseOptions("resp_1", 0, "tiny", {})
    return ResponsesDialect(options, tokenizer, lambda told, output: kept.append((told, output)))


def test_parts_are_items_in_a_stream_as_in_a_whole_response(tokenizer):
    kept: list[tuple[bytes, object]] = []
    usage = Usage(5, 9)
    dialect = dialect_of(tokenizer, kept)
    said = b"".join(dialect.delta(Delta(parts=[part]), usage) for part in CALLING)
    said += dialect.end(Delta(finish_reason=FinishReason.TOOL_CALLS), Ending(usage))
    told = events_of(said.decode())
    assert [entry["type"].removeprefix("response.") for entry in told] == [
        *("output_item.added", "content_part.added"),
        *("reasoning_text.delta", "reasoning_text.delta"),
        *("reasoning_text.done", "content_part.done", "output_item.done"),
        *("output_item.added", "content_part.added", "output_text.delta"),
        *("output_text.done", "content_part.done", "output_item.done"),
        *("output_item.added", "function_call_arguments.delta", "function_call_arguments.delta"),
        *("function_call_arguments.done", "output_item.done"),
        *("output_item.added", "function_call_arguments.delta"),
        *("function_call_arguments.done", "output_item.done", "completed"),
    ]
    indices = [entry["output_index"] for entry in told if "output_index" in entry]
    assert indices == [0] * 7 + [1] * 6 + [2] * 5 + [3] * 4
    streamed = told[-1]["response"]["output"]
    whole = orjson.loads(dialect_of(tokenizer, kept).whole([Delta(parts=CALLING)], Ending(usage)))
    for item in (*streamed, *whole["output"]):
        item.pop("id")
    assert streamed == whole["output"]
    call = {"type": "function_call", "status": "completed", "call_id": "call_1", "name": "look"}
    assert streamed[2] == call | {"arguments": '{"at":"x"}'}
    assert [orjson.loads(told)["status"] for told, _ in kept] == ["completed", "completed"]


def test_a_call_with_deep_arguments_is_refused():
    call = {"type": "function_call", "name": "f", "arguments": "[" * 99999}
    with pytest.raises(InvalidRequest):
        turns(call)


async def test_thoughts_that_a_client_sends_back_are_no_reason_to_refuse(
    client, service, tokenizer
):
    service.default = script(tokenizer, "Hi")
    thought = {"type": "reasoning", "summary": [], "content": [{"type": "text", "text": "hm"}]}
    said = [{"role": "user", "content": "Hello"}, thought, {"role": "assistant", "content": "Hi"}]
    assert (await ask(client, input=said)).status_code == 200
    assert "hm" not in prompt_of(service, tokenizer)
