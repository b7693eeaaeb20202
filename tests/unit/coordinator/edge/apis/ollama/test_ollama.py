"""Ollama's dialect: lines, options, what is told of models, and refusals in its shape."""

from __future__ import annotations

import json

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
from coordinator.edge.apis.ollama.dialects import ChatDialect
from coordinator.edge.apis.ollama.requests import parse_chat
from coordinator.edge.app import create_app
from protocol.errors import Overloaded, WorkerLost
from protocol.finish import FinishReason
from protocol.sampling import SampledToken, TokenLogprob
from tests.unit.coordinator.edge.apis.named_events import prompt_of

CHAT, GENERATE = "/api/chat", "/api/generate"
HELLO = [{"role": "user", "content": "Hello"}]


async def chat(client, **fields):
    return await client.post(CHAT, json={"model": "tiny", "messages": HELLO} | fields)


async def generate(client, **fields):
    return await client.post(GENERATE, json={"model": "tiny", "prompt": "Hello"} | fields)


def script(tokenizer, text, finish_reason=FinishReason.STOP):
    return say([*tokenizer.encode(text, add_special_tokens=False), 2], finish_reason)


def lines(response):
    return [orjson.loads(line) for line in response.text.splitlines()]


async def test_a_chat_is_streamed_unless_it_is_told_not_to(client, service, tokenizer):
    service.default = script(tokenizer, "Hello world")
    response = await chat(client)
    *told, last = lines(response)
    assert response.headers["content-type"] == "application/x-ndjson"
    assert "".join(line["message"]["content"] for line in told) == "Hello world"
    assert {(line["message"]["role"], line["done"], line["model"]) for line in told} == {
        ("assistant", False, "tiny")
    }
    assert last["message"] == {"role": "assistant", "content": ""}
    assert (last["done"], last["done_reason"]) == (True, "stop")
    assert last["prompt_eval_count"] == len(service.generations[0].prompt_token_ids)
    assert last["eval_count"] == len(service.default)
    whole = (await chat(client, stream=False)).json()
    assert whole["message"] == {"role": "assistant", "content": "Hello world"}
    assert set(whole) == set(last)
    durations = [whole[name] for name in whole if name.endswith("_duration")]
    assert len(durations) == 4
    assert all(isinstance(duration, int) and duration >= 0 for duration in durations)


async def test_a_text_is_generated_through_the_template_unless_it_is_raw(
    client, service, tokenizer
):
    service.default = script(tokenizer, "Hi", FinishReason.LENGTH)
    told = lines(await generate(client, system="Be brief", keep_alive="5m"))
    assert "".join(line["response"] for line in told) == "Hi"
    assert told[-1]["done_reason"] == "length"
    assert prompt_of(service, tokenizer) == (
        "<|im_start|>system\nBe brief<|im_end|>\n<|im_start|>user\nHello<|im_end|>\n"
        "<|im_start|>assistant\n"
    )
    await generate(client, raw=True)
    assert prompt_of(service, tokenizer) == "Hello"


async def test_options_reach_the_sampling(client, service, tokenizer):
    service.default = script(tokenizer, "Hello END of")
    options = {
        "num_predict": 7,
        "temperature": 0.25,
        "top_k": 5,
        "top_p": 0.5,
        "min_p": 0.1,
        "seed": 3,
        "repeat_penalty": 1.5,
        "presence_penalty": 0.5,
        "frequency_penalty": 0.25,
        "stop": ["END"],
        "num_ctx": 4096,
        "mirostat": 0,
    }
    told = (await chat(client, options=options, stream=False)).json()
    sampling = service.generations[0].sampling
    assert told["message"]["content"] == "Hello "
    assert (sampling.max_tokens, sampling.temperature, sampling.top_k) == (7, 0.25, 5)
    assert (sampling.top_p, sampling.min_p, sampling.seed) == (0.5, 0.1, 3)
    assert sampling.repetition_penalty == 1.5
    assert (sampling.presence_penalty, sampling.frequency_penalty) == (0.5, 0.25)
    await chat(client, options={"num_predict": -1})
    assert service.generations[1].sampling.max_tokens > 7


HARMLESS = [
    {"mirostat": 0, "mirostat_tau": 5.0, "mirostat_eta": 0.1},
    {"typical_p": 1.0, "tfs_z": 1, "penalize_newline": True},
    {"repeat_last_n": 64},
    {"repeat_last_n": -1, "repeat_penalty": 1.1},
    {"repeat_last_n": 64, "repeat_penalty": 1.0, "penalize_newline": False},
    {"num_ctx": 4096, "num_gpu": 1, "num_thread": 8, "use_mmap": True, "num_keep": 4},
    {"of_tomorrow": {"a": [1]}},
]


@pytest.mark.parametrize("options", HARMLESS)
async def test_options_that_ask_for_nothing_are_accepted(client, service, tokenizer, options):
    service.default = script(tokenizer, "x")
    assert (await chat(client, options=options)).status_code == 200


async def test_penalties_that_look_back_at_nothing_are_none(client, service, tokenizer):
    service.default = script(tokenizer, "x")
    penalties = {"repeat_penalty": 1.5, "presence_penalty": 1, "frequency_penalty": 1}
    await chat(client, options={"repeat_last_n": 0, **penalties})
    sampling = service.generations[0].sampling
    told = (
        sampling.repetition_penalty,
        sampling.presence_penalty,
        sampling.frequency_penalty,
    )
    assert told == (1.0, 0.0, 0.0)


async def test_logprobs_come_with_their_words(client, service, tokenizer):
    token_ids = tokenizer.encode("Hi", add_special_tokens=False)
    logprob = TokenLogprob(logprob=-0.5, top=[(token_ids[0], -0.5)])
    tokens = [SampledToken(token_id=token_id, logprob=logprob) for token_id in token_ids]
    service.default = [StreamEvent(tokens=tokens, finish_reason=FinishReason.LENGTH)]
    told = (await chat(client, logprobs=True, top_logprobs=1, stream=False)).json()
    assert [entry["logprob"] for entry in told["logprobs"]] == [-0.5] * len(tokens)
    assert told["logprobs"][0]["top_logprobs"][0]["token"] == tokenizer.token_text(token_ids[0])
    first, *_ = lines(await generate(client, logprobs=True))
    assert len(first["logprobs"]) == len(tokens)


@pytest.mark.parametrize(
    ("path", "fields", "words"),
    [
        (CHAT, {}, "message"),
        (CHAT, {"messages": []}, "message"),
        (GENERATE, {"prompt": ""}, "response"),
    ],
)
async def test_a_request_without_words_loads_the_model(client, service, path, fields, words):
    told = (await client.post(path, json={"model": "tiny"} | fields)).json()
    assert (told["done"], told["done_reason"], words in told) == (True, "load", True)
    assert service.generations == []


async def test_models_are_told_of(client):
    tags = (await client.get("/api/tags")).json()["models"]
    assert [card["name"] for card in tags] == ["tiny", "tiny-alias"]
    assert {len(card["digest"]) for card in tags} == {64}
    assert all(card["size"] > 0 and card["details"]["family"] == "llama" for card in tags)
    running = (await client.get("/api/ps")).json()["models"]
    assert [card["context_length"] for card in running] == [256, 256]
    shown = (await client.post("/api/show", json={"model": "tiny:latest"})).json()
    assert shown["model_info"]["llama.context_length"] == 256
    assert shown["capabilities"] == ["completion"]
    document = (await client.get("/openapi.json")).json()
    assert (await client.get("/api/version")).json()["version"] == document["info"]["version"]
    for path in ("chat", "generate", "tags", "ps", "version", "show", "embed", "embeddings"):
        assert f"/api/{path}" in document["paths"]


@pytest.mark.parametrize(
    ("path", "fields", "named"),
    [
        (CHAT, {"format": "json"}, "format"),
        (CHAT, {"format": {"type": "object"}}, "format"),
        (CHAT, {"format": "xml"}, 'format must be "json" or a JSON schema'),
        (CHAT, {"messages": [{"role": "user", "images": ["x"]}]}, "messages[0].images"),
        (CHAT, {"messages": [{"content": "x"}]}, "messages[0].role"),
        (CHAT, {"options": {"temperature": "hot"}}, "options.temperature"),
        (CHAT, {"options": {"num_predict": 9999}}, "options.num_predict"),
        (CHAT, {"options": {"num_predict": 0}}, "options.num_predict"),
        (CHAT, {"options": {"stop": [""]}}, "options.stop[0]"),
        (CHAT, {"options": {"mirostat": 2}}, "options.mirostat"),
        (CHAT, {"options": {"typical_p": 0.7}}, "options.typical_p"),
        (CHAT, {"options": {"tfs_z": 0.5}}, "options.tfs_z"),
        (CHAT, {"options": {"repeat_last_n": 64, "repeat_penalty": 1.1}}, "options.repeat_last_n"),
        (
            GENERATE,
            {"options": {"penalize_newline": False, "presence_penalty": 1}},
            "options.penalize_newline",
        ),
        (CHAT, {"options": {"mirostat": "on"}}, "options.mirostat"),
        (CHAT, {"think": "very hard"}, "think"),
        (CHAT, {"tools": [{"type": "function"}]}, "tools[0].function"),
        (CHAT, {"tools": [{"function": {"name": ""}}]}, "tools[0].function.name"),
        (
            CHAT,
            {"tools": [{"function": {"name": "f", "parameters": 5}}]},
            "tools[0].function.parameters",
        ),
        (GENERATE, {"suffix": "x"}, "suffix"),
        (GENERATE, {"images": ["x"]}, "images"),
        (GENERATE, {"context": [1]}, "context"),
        (GENERATE, {"template": "x"}, "template"),
        (GENERATE, {"raw": True, "system": "x"}, "system"),
        ("/api/embed", {"input": "x"}, "--pooling"),
        ("/api/embeddings", {"prompt": "x"}, "--pooling"),
    ],
)
async def test_refusals_are_told_in_its_shape(client, path, fields, named):
    response = await client.post(
        path, json={"model": "tiny", "messages": HELLO, "prompt": "x"} | fields
    )
    assert response.status_code == 400
    assert list(response.json()) == ["error"]
    assert named in response.json()["error"]


async def test_statuses_and_headers_are_kept(client, service, tokenizer):
    assert (await chat(client, model="no")).status_code == 404
    assert (await client.post("/api/show", json={"model": "no"})).status_code == 404
    assert isinstance((await client.get("/api/nowhere")).json()["error"], str)
    service.refusal = Overloaded("full", 2.2)
    for stream in (False, True):
        response = await chat(client, stream=stream)
        assert (response.status_code, response.headers["retry-after"]) == (429, "3")
        assert response.json() == {"error": "full"}


async def test_failure_after_the_first_token_is_a_line(client, service, tokenizer):
    service.default = [*script(tokenizer, "Hello", None), StreamEvent(error=WorkerLost("gone"))]
    assert lines(await chat(client))[-1] == {"error": "gone"}


async def test_keys_are_asked_for(service, served_model):
    app = create_app(service=service, model=served_model, api_keys=["k"])
    async with httpx.AsyncClient(
        transport=httpx.ASGITransport(app=app), base_url="http://edge"
    ) as asking:
        for method, path in (("POST", CHAT), ("POST", GENERATE), ("GET", "/api/tags")):
            response = await asking.request(method, path)
            assert (response.status_code, list(response.json())) == (401, ["error"])


def test_calls_are_told_whole(tokenizer):
    usage, dialect = Usage(5, 9), ChatDialect("tiny", tokenizer)
    parts: list[Part] = [
        ReasoningDelta("hm"),
        TextDelta("I look."),
        ToolCallDelta(0, "call_1", "look"),
        ToolCallDelta(0, arguments='{"at":'),
        ToolCallDelta(0, arguments='"x"}'),
        ToolCallDelta(1, "call_2", "go"),
        ToolCallDelta(1, arguments='{"n":\n 123456789012345678901234567890}'),
    ]
    deltas = [
        Delta(text=part.text if isinstance(part, TextDelta) else "", parts=[part]) for part in parts
    ]
    said = b"".join(dialect.delta(delta, usage) for delta in deltas)
    said += dialect.end(Delta(finish_reason=FinishReason.TOOL_CALLS), Ending(usage))
    told = [json.loads(line) for line in said.splitlines()]
    messages = [line["message"] for line in told]
    assert messages[0]["thinking"] == "hm"
    assert messages[1]["content"] == "I look."
    calls = [call for message in messages for call in message.get("tool_calls", ())]
    assert [call["function"] for call in calls] == [
        {"index": 0, "name": "look", "arguments": {"at": "x"}},
        {"index": 1, "name": "go", "arguments": {"n": 123456789012345678901234567890}},
    ]
    assert (told[-1]["done_reason"], told[-1]["done"]) == ("stop", True)


def linked(*messages):
    body = orjson.dumps({"messages": list(messages)})
    return parse_chat(body)[1]


def test_calls_and_results_get_ids_by_name_or_place():
    functions = [{"name": name} for name in ("a", "b", "a")]
    calls = [{"function": function} for function in functions]
    results = [{"role": "tool", "content": "x", "tool_name": name} for name in ("b", "a")]
    results.append({"role": "tool", "content": "x"})
    own = {"role": "assistant", "tool_calls": [{"id": "own", "function": {"name": "c"}}]}
    answer = {"role": "tool", "content": "y", "tool_call_id": "own", "tool_name": "c"}
    conversation = linked(*HELLO, {"role": "assistant", "tool_calls": calls}, *results, own, answer)
    made = [call.call_id for turn in conversation.turns for call in turn.calls]
    assert made == ["call_1", "call_2", "call_3", "own"]
    told = [turn.others["tool_call_id"] for turn in conversation.turns if turn.role == "tool"]
    assert told == ["call_2", "call_1", "call_3", "own"]


def test_arguments_may_be_text():
    call = {"function": {"name": "a", "arguments": '{"x": 1}'}}
    conversation = linked({"role": "assistant", "tool_calls": [call]})
    assert conversation.turns[0].calls[0].parsed() == {"x": 1}


@pytest.mark.parametrize(
    ("last", "is_continued"),
    [
        ({"role": "assistant", "content": "Well"}, True),
        ({"role": "assistant", "content": " "}, True),
        ({"role": "assistant", "content": ""}, False),
        ({"role": "assistant", "tool_calls": [{"function": {"name": "a"}}]}, False),
        ({"role": "user", "content": "x"}, False),
    ],
)
def test_an_answer_that_was_begun_is_gone_on_with(last, is_continued):
    assert linked(*HELLO, last).continue_final_turn == is_continued


@pytest.mark.parametrize("path", [CHAT, GENERATE, "/api/embed"])
@pytest.mark.parametrize(
    ("value", "told"),
    [
        (True, "keep_alive must be a number of seconds, or a string such as 5m"),
        ([5], "keep_alive must be a number of seconds, or a string such as 5m"),
        ({"for": 5}, "keep_alive must be a number of seconds, or a string such as 5m"),
        ("5" * 65, "keep_alive must have at most 64 characters, such as 5m"),
    ],
)
async def test_a_keep_alive_of_another_kind_hears_all_that_it_may_be(client, path, value, told):
    body = {"model": "tiny", "messages": HELLO, "prompt": "Hello", "input": "Hello"}
    response = await client.post(path, json=body | {"keep_alive": value})
    assert response.status_code == 400
    assert response.json()["error"] == told
