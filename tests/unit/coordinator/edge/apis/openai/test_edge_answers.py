"""What a good request gets, to the byte where clients depend on it."""

from __future__ import annotations

import re

import httpx
import orjson
import pytest

from coordinator.cluster.scripted_service import say
from coordinator.cluster.service_api import StreamEvent
from coordinator.edge.app import SamplingDefaults, create_app
from protocol.errors import DeadlineExceeded, Overloaded, TransferError, WorkerLost
from protocol.finish import FinishReason
from protocol.sampling import SampledToken, TokenLogprob

HELLO = [{"role": "user", "content": "Hello"}]


def ids_of(tokenizer, text):
    return tokenizer.encode(text, add_special_tokens=False)


def script(tokenizer, text, finish_reason=FinishReason.LENGTH):
    return say(ids_of(tokenizer, text), finish_reason)


async def chat(client, **fields):
    return await client.post("/v1/chat/completions", json={"messages": HELLO} | fields)


async def complete(client, **fields):
    return await client.post("/v1/completions", json={"prompt": "Hello"} | fields)


def events(response):
    lines = response.text.split("\n\n")
    assert lines.pop() == ""
    assert lines.pop() == "data: [DONE]"
    return [orjson.loads(line.removeprefix("data: ")) for line in lines]


def scrub(text):
    text = re.sub(r'"id":"(chatcmpl|cmpl)-[0-9a-f]{32}"', r'"id":"\1-ID"', text)
    return re.sub(r'"created":\d+', '"created":0', text)


async def test_a_chat_stream_to_the_byte(client, service, tokenizer):
    tokens = [SampledToken(token_id=token_id) for token_id in ids_of(tokenizer, "Hello𝄞")]
    service.default = [
        StreamEvent(tokens=tokens[:1], num_cached_tokens=3),
        *(StreamEvent(tokens=[token]) for token in tokens[1:]),
        StreamEvent(tokens=[SampledToken(token_id=2)], finish_reason=FinishReason.STOP),
    ]
    response = await chat(client, stream=True, stream_options={"include_usage": True})
    head = '{"id":"chatcmpl-ID","object":"chat.completion.chunk","created":0,"model":"tiny",'
    prompt = len(service.generations[0].prompt_token_ids)
    total = prompt + len(tokens) + 1
    assert scrub(response.text) == (
        f'data: {head}"choices":[{{"index":0,"delta":{{"role":"assistant","content":"Hello"}},'
        '"logprobs":null,"finish_reason":null}],"usage":null}\n\n'
        f'data: {head}"choices":[{{"index":0,"delta":{{"content":"𝄞"}},'
        '"logprobs":null,"finish_reason":null}],"usage":null}\n\n'
        f'data: {head}"choices":[{{"index":0,"delta":{{}},'
        '"logprobs":null,"finish_reason":"stop","stop_reason":null}],"usage":null}\n\n'
        f'data: {head}"choices":[],"usage":{{"prompt_tokens":{prompt},"total_tokens":{total},'
        f'"completion_tokens":{len(tokens) + 1},"prompt_tokens_details":{{"cached_tokens":3}}}}}}\n\n'
        "data: [DONE]\n\n"
    )
    assert response.headers["content-type"] == "text/event-stream; charset=utf-8"
    assert response.headers["cache-control"] == "no-cache"
    assert response.headers["x-accel-buffering"] == "no"


async def test_a_completion_stream_to_the_byte(client, service, tokenizer):
    service.default = script(tokenizer, "Hello")
    response = await complete(client, stream=True)
    assert scrub(response.text) == (
        'data: {"id":"cmpl-ID","object":"text_completion","created":0,"model":"tiny","choices":'
        '[{"index":0,"text":"Hello","logprobs":null,"finish_reason":"length","stop_reason":null}]}'
        "\n\ndata: [DONE]\n\n"
    )


async def test_continuous_usage_grows_with_every_chunk(client, service, tokenizer):
    service.default = script(tokenizer, "Hello world!")
    options = {"include_usage": True, "continuous_usage_stats": True}
    told = events(await complete(client, stream=True, stream_options=options))
    counts = [event["usage"]["completion_tokens"] for event in told]
    assert counts == sorted(counts)
    assert counts[0] == 1
    assert told[-1]["choices"] == []


async def test_a_whole_chat_answer(client, service, tokenizer):
    service.default = [
        *script(tokenizer, "Hello there", None),
        StreamEvent(tokens=[SampledToken(token_id=2)], finish_reason=FinishReason.STOP),
    ]
    body = (await chat(client, max_tokens=9, temperature=0, seed=5)).json()
    assert body["choices"] == [
        {
            "index": 0,
            "message": {"role": "assistant", "content": "Hello there"},
            "logprobs": None,
            "finish_reason": "stop",
            "stop_reason": None,
        }
    ]
    asked = service.generations[0]
    assert (asked.sampling.max_tokens, asked.sampling.temperature) == (9, 0.0)
    assert (asked.sampling.seed, asked.sampling.eos_token_ids) == (5, (2,))
    assert body["usage"]["prompt_tokens"] == len(asked.prompt_token_ids)


async def test_the_template_writes_the_prompt(client, service, tokenizer):
    service.default = say([2], FinishReason.STOP)
    parts = [{"type": "text", "text": "Hello"}, {"type": "text", "text": "there"}]
    messages = [
        {"role": "user", "content": parts},
        {"role": "assistant", "content": None},
        {"role": "user", "content": "END"},
    ]
    tools = [{"type": "function", "function": {"name": "f", "strict": True}}]
    await chat(client, messages=messages, tools=tools, tool_choice="auto")
    ids = service.generations[0].prompt_token_ids
    assert tokenizer.decode(ids, skip_special_tokens=False) == (
        "<|im_start|>user\nHello\nthere<|im_end|>\n<|im_start|>assistant\n<|im_end|>\n"
        "<|im_start|>user\nEND<|im_end|>\n"
        'TOOLS [{"type": "function", "function": {"name": "f", "strict": true}}]\n'
        "<|im_start|>assistant\n"
    )


ECHOED: dict[str, object] = {
    "role": "assistant",
    "content": None,
    "refusal": "I will not.",
    "annotations": [],
    "audio": None,
    "function_call": None,
    "tool_calls": None,
    "reasoning_content": None,
}


async def test_a_refusal_is_what_an_assistant_said(client, service, tokenizer):
    service.default = say([2], FinishReason.STOP)
    parts = [{"type": "refusal", "refusal": "Nor now."}]
    both = {"role": "assistant", "content": "Well.", "refusal": "Not that."}
    messages = [*HELLO, ECHOED, *HELLO, {"role": "assistant", "content": parts}, *HELLO, both]
    await chat(client, messages=[*messages, *HELLO])
    ids = service.generations[0].prompt_token_ids
    text = tokenizer.decode(ids, skip_special_tokens=False)
    assert "assistant\nI will not.<|im_end|>" in text
    assert "assistant\nNor now.<|im_end|>" in text
    assert "assistant\nWell.\nNot that.<|im_end|>" in text


async def test_continue_final_message_ends_with_its_words(client, service, tokenizer):
    service.default = say([2], FinishReason.STOP)
    messages = [*HELLO, {"role": "assistant", "content": "Hello wor"}]
    await chat(client, messages=messages, continue_final_message=True)
    ids = service.generations[0].prompt_token_ids
    text = tokenizer.decode(ids, skip_special_tokens=False)
    assert text.endswith("<|im_start|>assistant\nHello wor")


@pytest.mark.parametrize("stream", [False, True])
async def test_a_stop_string_across_tokens_ends_the_text_and_the_work(
    client, service, tokenizer, stream
):
    service.default = script(tokenizer, "Hello END of the story", None)
    response = await complete(client, stop=["D o", "zzz"], stream=stream, max_tokens=50)
    choices = [event["choices"][0] for event in events(response)] if stream else []
    choices = choices or [response.json()["choices"][0]]
    assert "".join(choice["text"] for choice in choices) == "Hello EN"
    assert choices[-1]["finish_reason"] == "stop"
    assert choices[-1]["stop_reason"] == "D o"
    assert service.streams[0].is_finished
    assert service.streams[0].cancel_reason is None


async def test_include_stop_str_in_output_keeps_the_stop(client, service, tokenizer):
    service.default = script(tokenizer, "Hello END of", None)
    response = await complete(client, stop="END", include_stop_str_in_output=True)
    assert response.json()["choices"][0]["text"] == "Hello END"


async def test_a_stop_token_is_named_and_not_shown(client, service, tokenizer):
    (newline,) = ids_of(tokenizer, "\n")
    tokens = [
        SampledToken(token_id=token_id) for token_id in [*ids_of(tokenizer, "Hello"), newline]
    ]
    service.default = [
        StreamEvent(tokens=tokens, finish_reason=FinishReason.STOP, stop_token_id=newline)
    ]
    body = (await complete(client, stop_token_ids=[newline], return_token_ids=True)).json()
    choice = body["choices"][0]
    assert (choice["text"], choice["stop_reason"]) == ("Hello", newline)
    assert choice["token_ids"] == [token.token_id for token in tokens]
    assert choice["prompt_token_ids"] == service.generations[0].prompt_token_ids
    assert body["usage"]["completion_tokens"] == len(tokens)


def with_logprobs(tokenizer, text):
    tokens = [
        SampledToken(
            token_id=token_id,
            logprob=TokenLogprob(logprob=-0.5, top=[(token_id, -0.5), (3, float("-inf"))]),
        )
        for token_id in ids_of(tokenizer, text)
    ]
    return [
        *(StreamEvent(tokens=[token]) for token in tokens),
        StreamEvent(finish_reason=FinishReason.LENGTH),
    ]


async def test_chat_logprobs_have_bytes_and_alternatives(client, service, tokenizer):
    service.default = with_logprobs(tokenizer, "𝄞")
    body = (await chat(client, logprobs=True, top_logprobs=2)).json()
    content = body["choices"][0]["logprobs"]["content"]
    assert bytes(byte for token in content for byte in token["bytes"]).decode() == "𝄞"
    assert content[0]["logprob"] == -0.5
    assert [top["logprob"] for top in content[0]["top_logprobs"]] == [-0.5, -9999.0]
    assert service.generations[0].sampling.logprobs == 2


@pytest.mark.parametrize("stream", [False, True])
async def test_completion_logprobs_are_parallel_lists(client, service, tokenizer, stream):
    service.default = with_logprobs(tokenizer, "Hello world")
    response = await complete(client, logprobs=1, stream=stream)
    told = [event["choices"][0] for event in events(response)] if stream else []
    told = told or [response.json()["choices"][0]]
    tokens = [token for choice in told for token in choice["logprobs"]["tokens"]]
    offsets = [offset for choice in told for offset in choice["logprobs"]["text_offset"]]
    assert "".join(tokens) == "Hello world"
    assert offsets == [len("".join(tokens[:index])) for index in range(len(tokens))]


@pytest.mark.parametrize(
    ("prompt", "count"), [("Hello", 1), (["Hello", "END"], 2), ([5, 6], 1), ([[5], [6, 7]], 2)]
)
async def test_every_form_of_prompt(client, service, tokenizer, prompt, count):
    service.default = script(tokenizer, "Hello")
    body = (await complete(client, prompt=prompt, n=2)).json()
    assert [choice["index"] for choice in body["choices"]] == list(range(2 * count))
    seeds = [generation.sampling.seed for generation in service.generations]
    assert seeds[1] == (seeds[0] + 1) % 2**63
    prompts = [generation.prompt_token_ids for generation in service.generations]
    assert body["usage"]["prompt_tokens"] == sum(len(ids) for ids in prompts[::2])


async def test_several_choices_stream_with_a_role_each(client, service, tokenizer):
    service.default = script(tokenizer, "Hello world")
    told = events(await chat(client, n=3, stream=True))
    texts, roles = ["", "", ""], [0, 0, 0]
    for event in told:
        (choice,) = event["choices"]
        texts[choice["index"]] += choice["delta"].get("content", "")
        roles[choice["index"]] += "role" in choice["delta"]
    assert texts == ["Hello world"] * 3
    assert roles == [1, 1, 1]
    assert len({generation.request_id for generation in service.generations}) == 3


async def test_prompt_of_several_choices_counts_as_cached_only_as_far_as_it_was_before(
    client, service, tokenizer
):
    ids = ids_of(tokenizer, "Hello")
    for cached in (0, 96):
        tokens = [SampledToken(token_id=token_id) for token_id in ids]
        service.scripts.append(
            [
                StreamEvent(tokens=tokens, num_cached_tokens=cached),
                StreamEvent(finish_reason=FinishReason.LENGTH, num_cached_tokens=cached),
            ]
        )
    response = await complete(client, prompt=[7] * 100, n=2, max_tokens=9)
    usage = response.json()["usage"]
    assert usage["prompt_tokens"] == 100
    assert usage["prompt_tokens_details"]["cached_tokens"] == 0
    metrics = (await client.get("/metrics")).text
    assert "vllm:prefix_cache_queries_total 100.0" in re.sub(r"\{[^}]*\}", "", metrics)
    assert "vllm:prompt_tokens_cached_total 0.0" in re.sub(r"\{[^}]*\}", "", metrics)
    assert "vllm:prefix_cache_hits_total 0.0" in re.sub(r"\{[^}]*\}", "", metrics)


async def test_echo_gives_the_prompt_first(client, service, tokenizer):
    service.default = script(tokenizer, " world")
    assert (await complete(client, echo=True)).json()["choices"][0]["text"] == "Hello world"


async def test_defaults_come_from_request_then_operator_then_model(served_model, service, client):
    service.default = say([2], FinishReason.STOP)
    await complete(client)
    sampling = service.generations[-1].sampling
    assert (sampling.temperature, sampling.top_p, sampling.max_tokens) == (1.0, 1.0, 16)
    path = served_model.directory / "generation_config.json"
    config = {"temperature": 0.6, "top_k": 20, "eos_token_id": [2, 0], "do_sample": True}
    path.write_bytes(orjson.dumps(config))
    defaults = SamplingDefaults.from_directory(served_model.directory, lambda: 7)
    path.write_bytes(orjson.dumps(config | {"do_sample": False}))
    greedy = SamplingDefaults.from_directory(served_model.directory, lambda: 7)
    path.unlink()
    assert (greedy.temperature, greedy.top_k) == (0.0, 20)
    assert (defaults.temperature, defaults.top_k, defaults.eos_token_ids) == (0.6, 20, (2, 0))


async def test_a_silent_chat_gets_what_the_context_has_left(client, service):
    service.default = say([2], FinishReason.STOP)
    await chat(client)
    asked = service.generations[0]
    assert asked.sampling.max_tokens == 256 - len(asked.prompt_token_ids)


LENIENT = [
    {"tools": None, "tool_choice": None},
    {"tool_choice": "none"},
    {"tools": [], "tool_choice": "auto"},
    {"user": "u", "store": True, "metadata": {"a": "b"}, "service_tier": "auto"},
    {"response_format": {"type": "text"}},
    {"stop": None, "seed": None, "logit_bias": None, "stream_options": None, "n": None},
    {"stop": []},
    {"top_k": -1, "parallel_tool_calls": True, "reasoning_effort": "low"},
    {"best_of": 1, "suffix": None, "use_beam_search": False, "prompt_logprobs": None},
    {"max_tokens": 5.0, "unheard_of": {"x": [1]}},
    {"chat_template_kwargs": {"enable_thinking": False}},
    {"messages": [*HELLO, {"role": "assistant", "content": ""}, *HELLO]},
    {"messages": [*HELLO, ECHOED, *HELLO]},
    {"documents": []},
]


@pytest.mark.parametrize("fields", LENIENT, ids=str)
async def test_what_real_clients_send_is_accepted(client, service, fields):
    service.default = say([2], FinishReason.STOP)
    response = await chat(client, **fields)
    assert response.status_code == 200, response.text


REFUSALS = [
    (Overloaded("full", 2.2), 429, "3"),
    (WorkerLost("gone"), 503, "1"),
    (DeadlineExceeded("late"), 504, None),
    (TransferError("lost"), 502, None),
]


@pytest.mark.parametrize(("error", "status", "retry_after"), REFUSALS, ids=str)
@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("at_once", [False, True])
async def test_a_failure_before_the_first_token_has_its_status(
    client, service, error, status, retry_after, stream, at_once
):
    service.refusal = error if at_once else None
    service.default = [StreamEvent(error=error)]
    response = await chat(client, stream=stream)
    assert response.status_code == status
    assert response.headers.get("retry-after") == retry_after
    assert response.json()["error"]["code"] == error.code


async def test_a_failure_after_the_first_token_is_an_event(client, service, tokenizer):
    service.default = [*script(tokenizer, "Hello", None), StreamEvent(error=WorkerLost("gone"))]
    response = await chat(client, stream=True)
    assert response.status_code == 200
    *_, last = events(response)
    assert last["error"] == {
        "message": "gone",
        "type": "ServiceUnavailableError",
        "param": None,
        "code": None,
    }


async def test_a_bug_in_the_service_is_told_without_its_details(client, service, caplog):
    service.refusal = RuntimeError("secret /path")
    response = await chat(client)
    assert response.status_code == 500
    assert "secret" not in response.text
    assert "secret" in caplog.text


async def test_several_choices_are_refused_as_one(client, service):
    service.refusal = Overloaded("full", 1.5)
    response = await chat(client, n=2)
    assert response.status_code == 429
    assert response.headers["retry-after-ms"] == "1500"
    assert service.streams == []


async def test_operations(client, service, app):
    assert (await client.get("/health")).status_code == 200
    service.ready = False
    assert (await client.get("/health")).status_code == 503
    assert (await client.get("/live")).status_code == 200
    assert "version" in (await client.get("/version")).json()
    assert (await client.get("/cluster/audit")).json() == {"balanced": True}
    schema = (await client.get("/openapi.json")).json()
    assert "/v1/chat/completions" in schema["paths"]
    assert "messages" in schema["components"]["schemas"]["ChatRequest"]["properties"]
    assert (await client.get("/docs")).status_code == 200


async def test_model_cards(client):
    cards = (await client.get("/v1/models")).json()["data"]
    assert [card["id"] for card in cards] == ["tiny", "tiny-alias"]
    card = (await client.get("/v1/models/tiny-alias")).json()
    assert (card["max_model_len"], card["object"]) == (256, "model")


async def test_a_raw_prompt_may_have_any_character(client, tokenizer):
    """`vllm bench serve` draws its prompts from all tokens of the vocabulary, and some spell a NUL."""
    text = "a\0b"
    told = (await client.post("/tokenize", json={"prompt": text})).json()
    assert told["tokens"] == ids_of(tokenizer, text)


TOLD = "a\0b\0"
SAID = [{"role": "user", "content": TOLD}]


@pytest.mark.parametrize(
    ("path", "body"),
    [
        ("/v1/chat/completions", {"messages": SAID}),
        (
            "/v1/chat/completions",
            {"messages": [{"role": "user", "content": [{"type": "text", "text": TOLD}]}]},
        ),
        ("/v1/messages", {"messages": SAID, "max_tokens": 4}),
        ("/v1/responses", {"input": TOLD}),
        ("/v1/responses", {"input": SAID}),
        ("/api/chat", {"messages": SAID, "stream": False}),
        ("/api/generate", {"prompt": TOLD, "stream": False}),
    ],
)
async def test_what_is_said_may_have_any_character(client, service, tokenizer, path, body):
    """Text of files and tools is sent as it is; the ids are those of the same text anywhere."""
    service.default = say([5], FinishReason.STOP)
    answer = await client.post(path, json=body | {"model": "tiny"})
    assert answer.status_code == 200, answer.text
    told = (await client.post("/tokenize", json={"messages": SAID})).json()
    ids, said = service.generations[0].prompt_token_ids, ids_of(tokenizer, TOLD)
    assert list(ids) == told["tokens"]
    assert any(list(ids[at : at + len(said)]) == said for at in range(len(ids)))


async def test_a_name_has_no_nul(client):
    for field in ("user", "cache_salt", "tools"):
        value = [{"type": "function", "function": {"name": "a\0"}}] if field == "tools" else "a\0"
        refused = (await chat(client, **{field: value})).json()["error"]
        assert refused["param"].startswith(field)
        assert refused["message"].endswith("contains a NUL character")


async def test_tokenize_and_back(client, tokenizer):
    told = (
        await client.post("/tokenize", json={"prompt": "Hello", "return_token_strs": True})
    ).json()
    assert told["tokens"] == ids_of(tokenizer, "Hello")
    assert told["count"] == len(told["tokens"]) == len(told["token_strs"])
    back = await client.post("/detokenize", json={"tokens": told["tokens"]})
    assert back.json() == {"prompt": "Hello"}
    told = (await client.post("/tokenize", json={"messages": HELLO})).json()
    assert told["tokens"][0] == 1


async def test_request_ids_are_echoed_or_made(client):
    own = await client.get("/live", headers={"x-request-id": "trace-7"})
    assert own.headers["x-request-id"] == "trace-7"
    bad = await client.get("/live", headers={"x-request-id": "x" * 500})
    assert re.fullmatch("[0-9a-f]{32}", bad.headers["x-request-id"])


async def test_metrics_add_up(client, service, tokenizer, clock):
    service.default = script(tokenizer, "Hello world")
    service.view = {
        "workers": [
            {
                "id": "decode-0",
                "role": "decode",
                "state": "ready",
                "blocks": {"total": 10, "free": 4, "cached": 1, "held": 5},
                "requests": {"waiting": 1, "running": 2, "transferring": 0},
                "totals": {"transfers": 7},
            }
        ],
        "requests": {"live": 4, "queued": 1},
    }
    await chat(client)
    await chat(client, temperature="hot")
    text = (await client.get("/metrics")).text
    size = len(ids_of(tokenizer, "Hello world"))
    label = '{engine="0",model_name="tiny"}'
    for line in (
        f"vllm:generation_tokens_total{label} {size}.0",
        f"vllm:time_to_first_token_seconds_count{label} 1.0",
        f"vllm:inter_token_latency_seconds_count{label} {size - 1}.0",
        f"vllm:e2e_request_latency_seconds_count{label} 1.0",
        'vllm:request_success_total{engine="0",finished_reason="length",model_name="tiny"} 1.0',
        f"vllm:num_requests_running{label} 2.0",
        f"vllm:num_requests_waiting{label} 2.0",
        f"vllm:kv_cache_usage_perc{label} 0.5",
        'baton_worker_transfers_total{role="decode",worker="decode-0"} 7.0',
        'baton_requests_rejected_total{model_name="tiny",status="400",type="BadRequestError"} 1.0',
    ):
        assert (
            line in text
            or line.replace('{engine="0",model_name="tiny"}', '{model_name="tiny",engine="0"}')
            in text
        )


async def test_an_operators_template_wins(served_model, service, clock, tmp_path, tokenizer):
    file = tmp_path / "own.jinja"
    file.write_text("{{ messages[0].content }}{% generation %}!{% endgeneration %}")
    app = create_app(service=service, model=served_model, clock=clock, chat_template=file)
    service.default = say([2], FinishReason.STOP)
    transport = httpx.ASGITransport(app=app)
    async with httpx.AsyncClient(transport=transport, base_url="http://edge") as client:
        await chat(client)
    ids = service.generations[0].prompt_token_ids
    assert tokenizer.decode(ids, skip_special_tokens=False) == "Hello!"


async def test_timings_are_told_to_who_asks_in_the_body(client, service, tokenizer, clock):
    service.default = script(tokenizer, "Hello")
    body = (await chat(client, return_timings=True)).json()
    assert sum(body["baton"]["spans_ms"].values()) == pytest.approx(body["baton"]["e2e_ms"])


async def test_timings_are_told_to_who_asks_by_a_header(client, service, tokenizer):
    service.default = script(tokenizer, "Hello")
    headers = {"X-Baton-Timings": "1"}
    reply = await client.post("/v1/completions", json={"prompt": "Hello"}, headers=headers)
    assert reply.json()["baton"]["replays"] == 0


async def test_timings_are_not_told_unasked(client, service, tokenizer):
    service.default = script(tokenizer, "Hello")
    assert "baton" not in (await chat(client)).json()


@pytest.mark.parametrize("usage", [True, False])
async def test_timings_of_a_stream_are_in_its_last_chunk_only(client, service, tokenizer, usage):
    service.default = script(tokenizer, "Hello there")
    options = {"include_usage": True} if usage else None
    told = events(await chat(client, stream=True, stream_options=options, return_timings=True))
    assert ["baton" in event for event in told] == [False] * (len(told) - 1) + [True]
    assert told[-1]["choices"] == [] if usage else told[-1]["choices"][0]["finish_reason"]


async def test_timings_of_several_choices_are_those_of_the_last(client, service, tokenizer):
    short, long = script(tokenizer, "Hello"), script(tokenizer, "Hello there world")
    service.scripts.extend([short, long])
    body = (await chat(client, n=2, return_timings=True)).json()
    assert body["baton"]["choice"] == 1
