"""Embeddings in both dialects: what is asked of the pools, what is told, and what is refused before anything is computed."""

from __future__ import annotations

import base64
import math
from array import array
from dataclasses import replace

import httpx
import pytest

from coordinator.cluster.service_api import StreamEvent
from coordinator.edge.app import create_app
from coordinator.edge.http import limits
from protocol.finish import FinishReason
from protocol.sampling import Pooling

STATES = [3.0, 4.0, 0.0, 0.0, 0.0, 0.0, 0.0, 12.0]
LENGTH = 13.0
UNIT = [value / LENGTH for value in STATES]
OPENAI, EMBED, OLD = "/v1/embeddings", "/api/embed", "/api/embeddings"


def embedded(states=STATES):
    return [StreamEvent(finish_reason=FinishReason.LENGTH, embedding=array("f", states).tobytes())]


@pytest.fixture
def app(service, served_model, clock):
    return create_app(
        service=service, model=replace(served_model, pooling=Pooling.MEAN), clock=clock
    )


@pytest.fixture
async def generating(service, served_model, clock):
    transport = httpx.ASGITransport(
        app=create_app(service=service, model=served_model, clock=clock),
        raise_app_exceptions=False,
    )
    async with httpx.AsyncClient(transport=transport, base_url="http://edge") as connected:
        yield connected


async def test_openai_gets_vectors_of_unit_length(client, service, tokenizer):
    service.default = embedded()
    reply = await client.post(OPENAI, json={"model": "tiny", "input": ["Hello", "hello there"]})
    assert reply.status_code == 200, reply.text
    told = reply.json()
    assert (told["object"], told["model"]) == ("list", "tiny")
    assert [(one["object"], one["index"]) for one in told["data"]] == [
        ("embedding", 0),
        ("embedding", 1),
    ]
    assert told["data"][0]["embedding"] == pytest.approx(UNIT)
    prompts = [generation.prompt_token_ids for generation in service.generations]
    assert prompts == [
        tokenizer.encode(text, add_special_tokens=True) for text in ("Hello", "hello there")
    ]
    count = sum(map(len, prompts))
    assert told["usage"] == {"prompt_tokens": count, "total_tokens": count}
    sampling = service.generations[0].sampling
    assert (sampling.pooling, sampling.max_tokens) == (Pooling.MEAN, 0)


@pytest.mark.parametrize(("said", "prompts"), [([5, 6], [[5, 6]]), ([[5], [6, 7]], [[5], [6, 7]])])
async def test_token_ids_are_taken_as_they_are(client, service, said, prompts):
    service.default = embedded()
    reply = await client.post(OPENAI, json={"input": said})
    assert reply.status_code == 200, reply.text
    assert [generation.prompt_token_ids for generation in service.generations] == prompts


async def test_base64_is_the_same_numbers(client, service):
    service.default = embedded()
    reply = await client.post(OPENAI, json={"input": "Hello", "encoding_format": "base64"})
    numbers = array("f")
    numbers.frombytes(base64.b64decode(reply.json()["data"][0]["embedding"]))
    assert list(numbers) == pytest.approx(UNIT)


@pytest.mark.parametrize(("path", "field"), [(OPENAI, "data"), (EMBED, "embeddings")])
async def test_fewer_dimensions_are_of_unit_length_again(client, service, path, field):
    service.default = embedded()
    reply = await client.post(path, json={"model": "tiny", "input": "Hello", "dimensions": 2})
    [told] = reply.json()[field]
    assert (told["embedding"] if field == "data" else told) == pytest.approx([0.6, 0.8])


async def test_nothing_but_zeros_stays(client, service):
    service.default = embedded([0.0] * 8)
    reply = await client.post(OPENAI, json={"input": "Hello"})
    assert reply.json()["data"][0]["embedding"] == [0.0] * 8


async def test_ollama_embeds_several(client, service):
    service.default = embedded()
    reply = await client.post(EMBED, json={"model": "tiny:latest", "input": ["Hello", "there"]})
    told = reply.json()
    assert told["model"] == "tiny:latest"
    assert [math.hypot(*vector) for vector in told["embeddings"]] == pytest.approx([1.0, 1.0])
    count = sum(len(generation.prompt_token_ids) for generation in service.generations)
    assert (told["prompt_eval_count"], told["load_duration"]) == (count, 0)
    assert told["total_duration"] >= 0


async def test_older_clients_of_ollama_get_one_as_long_as_it_is(client, service):
    service.default = embedded()
    reply = await client.post(OLD, json={"model": "tiny", "prompt": "Hello"})
    assert reply.json() == {"embedding": STATES}


@pytest.mark.parametrize(
    ("path", "body", "told"),
    [(EMBED, {"input": []}, {"embeddings": []}), (OLD, {"prompt": ""}, {"embedding": []})],
)
async def test_ollama_loads_the_model_for_nothing(client, service, path, body, told):
    reply = await client.post(path, json={"model": "tiny", **body})
    assert reply.status_code == 200
    assert told.items() <= reply.json().items()
    assert not service.generations


@pytest.mark.parametrize("truncate", [None, True, False])
async def test_ollama_cuts_what_is_too_long_unless_it_must_not(client, service, truncate):
    service.default = embedded()
    body = {"model": "tiny", "input": "Hello world! " * 100, "truncate": truncate}
    reply = await client.post(EMBED, json=body)
    assert reply.status_code == (400 if truncate is False else 200), reply.text
    assert [len(one.prompt_token_ids) for one in service.generations] == [256] * (
        truncate is not False
    )


@pytest.mark.parametrize(
    ("body", "param"),
    [
        ({"input": []}, "input"),
        ({"input": ""}, "input"),
        ({"input": ["a", ""]}, "input"),
        ({}, "input"),
        ({"input": [[]]}, "input"),
        ({"input": [400]}, "input"),
        ({"input": list(range(257))}, "input"),
        ({"input": ["a"] * (limits.MAX_EMBEDDED + 1)}, "input"),
        ({"input": "a", "dimensions": 9}, "dimensions"),
        ({"input": "a", "dimensions": 0}, "dimensions"),
        ({"input": "a", "encoding_format": "hex"}, "encoding_format"),
        ({"input": "a", "model": "other"}, "model"),
    ],
)
async def test_what_cannot_be_embedded_is_refused_by_name(client, service, body, param):
    service.default = embedded()
    reply = await client.post(OPENAI, json=body)
    assert reply.status_code in (400, 404), reply.text
    assert reply.json()["error"]["param"].startswith(param)
    assert not service.generations


async def test_more_numbers_than_one_answer_may_have_are_refused(client, service, monkeypatch):
    monkeypatch.setattr("coordinator.edge.answers.embeddings.MAX_EMBEDDED_BYTES", 4 * 8 * 2)
    service.default = embedded()
    assert (await client.post(OPENAI, json={"input": ["a", "b"]})).status_code == 200
    reply = await client.post(OPENAI, json={"input": ["a", "b", "c"]})
    assert reply.status_code == 400
    assert "at most 2" in reply.json()["error"]["message"]


@pytest.mark.parametrize("path", [OPENAI, EMBED, OLD])
async def test_a_model_that_is_for_generating_says_how_it_would_embed(generating, service, path):
    body = {"model": "tiny", "input": "Hello", "prompt": "Hello"}
    reply = await generating.post(path, json=body)
    assert reply.status_code == 400
    assert "--pooling" in reply.text
    assert not service.generations


async def test_prompts_are_counted_and_nothing_else(client, service, app):
    service.default = embedded()
    await client.post(OPENAI, json={"input": "Hello"})
    count = len(service.generations[0].prompt_token_ids)
    told = (await client.get("/metrics")).text
    lines = [line for line in told.splitlines() if line.startswith("vllm:")]
    assert any(
        line.startswith("vllm:prompt_tokens_total") and float(line.split()[-1]) == count
        for line in lines
    )
    assert all(
        float(line.split()[-1]) == 0
        for line in lines
        if line.startswith("vllm:generation_tokens_total")
    )
