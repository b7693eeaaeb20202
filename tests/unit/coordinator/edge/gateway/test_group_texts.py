"""Raw prompts and embeddings for model groups, with real HTTP servers behind the edge."""

from __future__ import annotations

import base64
from array import array
from dataclasses import replace
from typing import Any

import orjson
import pytest

from coordinator.cluster.scripted_service import ScriptedService, say
from coordinator.cluster.service_api import StreamEvent
from coordinator.edge.app import Offer, ServedModel
from protocol.errors import Overloaded
from protocol.finish import FinishReason
from protocol.sampling import Pooling
from tests.unit.coordinator.edge.gateway.scripted_upstream import (
    DONE,
    anthropic_events,
    reply,
    stream,
    upstream,
    usage,
)
from tests.unit.coordinator.edge.gateway.test_model_groups import SECRET, edge, entry, own

COMPLETIONS, EMBEDDINGS = "/v1/completions", "/v1/embeddings"
VECTOR = [0.6, 0.8, 0.0]


def piece(text: str, index: int = 0, finish_reason: str | None = None) -> bytes:
    """A chunk of a completion."""
    choice = {"index": index, "text": text, "finish_reason": finish_reason, "logprobs": None}
    return b"data: " + orjson.dumps({"object": "text_completion", "choices": [choice]}) + b"\n\n"


def completion(*texts: str) -> Any:
    """Each choice says its text in two pieces."""
    said = [piece(half, index) for index, text in enumerate(texts) for half in (text[:2], text[2:])]
    ends = [piece("", index, "length") for index in range(len(texts))]
    return stream(*said, *ends, usage(9, 4), DONE)


def vectors(*told: object, **fields: object) -> Any:
    """An answer with these embeddings, the last first."""
    data = [{"object": "embedding", "index": at, "embedding": it} for at, it in enumerate(told)]
    usage_told = {"prompt_tokens": 5, "total_tokens": 5}
    body = {"object": "list", "data": data[::-1], "usage": usage_told} | fields
    return reply(200, body, content_type="application/json")


def spelled(numbers: list[float]) -> str:
    return base64.b64encode(array("f", numbers).tobytes()).decode()


async def complete(client, **fields):
    return await client.post(COMPLETIONS, json={"model": "g", "prompt": "Once"} | fields)


async def test_a_completion_comes_from_an_openai_server(served_model, tmp_path):
    async with (
        upstream(completion("upon a time")) as server,
        edge(served_model, tmp_path, entry(server)) as client,
    ):
        response = await complete(client, temperature=0.5, stop=["x"], seed=3)
    told = response.json()
    assert response.status_code == 200, response.text
    assert told["object"] == "text_completion"
    assert told["choices"][0]["text"] == "upon a time"
    assert told["choices"][0]["finish_reason"] == "length"
    assert told["usage"]["prompt_tokens"] == 9
    path, headers, body = server.asked[0]
    assert (path, headers["authorization"]) == ("/v1/completions", f"Bearer {SECRET}")
    assert body == {
        "model": "their-model",
        "stream": True,
        "stream_options": {"include_usage": True},
        "prompt": "Once",
        "max_tokens": 16,
        "temperature": 0.5,
        "seed": 3,
        "stop": ["x"],
    }


@pytest.mark.parametrize("is_stream", [False, True])
async def test_several_prompts_have_their_own_choices_and_echoes(served_model, tmp_path, is_stream):
    async with (
        upstream(completion("first", "second", "third", "fourth")) as server,
        edge(served_model, tmp_path, entry(server)) as client,
    ):
        response = await complete(client, prompt=["A ", "B "], n=2, echo=True, stream=is_stream)
    assert response.status_code == 200, response.text
    if not is_stream:
        chunks = [response.json()]
    else:
        lines = [it for it in response.text.split("\n\n") if it.startswith("data: {")]
        chunks = [orjson.loads(it[6:]) for it in lines]
        assert response.text.endswith("data: [DONE]\n\n")
    texts = ["", "", "", ""]
    for choice in (choice for it in chunks for choice in it["choices"]):
        texts[choice["index"]] += choice["text"]
    assert texts == ["A first", "A second", "B third", "B fourth"]
    body = server.asked[0][2]
    assert (body["prompt"], body["n"]) == (["A ", "B "], 2)


async def test_full_pools_spill_completions_over(served_model, tmp_path):
    service = ScriptedService()
    service.refusal = Overloaded("full", 3.0)
    async with upstream(completion("elsewhere")) as server:
        entries = (own(order=1), entry(server, order=2))
        async with edge(served_model, tmp_path, *entries, service=service) as client:
            response = await complete(client)
    assert response.json()["choices"][0]["text"] == "elsewhere"
    assert response.headers["x-baton-attempts"] == "2"


async def test_our_pools_complete_what_only_they_can(served_model, tmp_path, tokenizer):
    service = ScriptedService()
    service.default = say(tokenizer.encode("Hello", add_special_tokens=False), FinishReason.LENGTH)
    async with upstream(completion("never")) as server:
        entries = (entry(server, order=1), own(order=2))
        async with edge(served_model, tmp_path, *entries, service=service) as client:
            told = [await complete(client, prompt=[5, 6]), await complete(client, logprobs=1)]
    assert [it.json()["choices"][0]["text"] for it in told] == ["Hello", "Hello"]
    assert service.generations[0].prompt_token_ids == [5, 6]
    assert server.asked == []


NOT_OF_GROUPS: dict[str, dict[str, Any]] = {
    "return_token_ids": {"return_token_ids": True},
    "prompt_logprobs": {"prompt_logprobs": 1},
    "echo": {"echo": True, "logprobs": 1},
    "prompt": {"prompt": [5, 6]},
    "logprobs": {"logprobs": 0},
}


@pytest.mark.parametrize("field", NOT_OF_GROUPS)
async def test_what_no_deployment_can_tell_is_refused_by_name(served_model, tmp_path, field):
    async with (
        upstream(completion("x")) as server,
        edge(served_model, tmp_path, entry(server)) as client,
    ):
        response = await complete(client, **NOT_OF_GROUPS[field])
    assert response.status_code == 400
    assert response.json()["error"]["param"] == field
    assert server.asked == []


@pytest.mark.parametrize(
    ("path", "body"), [(COMPLETIONS, {"prompt": "x"}), (EMBEDDINGS, {"input": "x"})]
)
async def test_anthropics_dialect_has_no_raw_prompts(served_model, tmp_path, path, body):
    async with (
        upstream(stream(*anthropic_events([], "end_turn"))) as server,
        edge(served_model, tmp_path, entry(server, provider="anthropic")) as client,
    ):
        response = await client.post(path, json={"model": "g"} | body)
    assert response.status_code == 400
    assert "Anthropic's dialect" in response.json()["error"]["message"]
    assert server.asked == []


@pytest.mark.parametrize("raw", [False, True])
async def test_ollamas_generate_asks_a_group(served_model, tmp_path, raw):
    chat = b"".join(
        b"data: "
        + orjson.dumps({"choices": [{"index": 0, "delta": d, "finish_reason": r}]})
        + b"\n\n"
        for d, r in (({"content": "there"}, None), ({}, "stop"))
    )
    answer = completion("there") if raw else stream(chat, DONE)
    async with (
        upstream(answer) as server,
        edge(served_model, tmp_path, entry(server)) as client,
    ):
        body = {"model": "g", "prompt": "Hi", "stream": False, "raw": raw}
        response = await client.post("/api/generate", json=body)
    assert response.json()["response"] == "there"
    assert server.asked[0][0] == ("/v1/completions" if raw else "/v1/chat/completions")


@pytest.mark.parametrize("told", [VECTOR, spelled(VECTOR)])
async def test_embeddings_come_from_an_openai_server(served_model, tmp_path, told):
    other = [0.0, 0.0, 1.0]
    async with (
        upstream(vectors(told, spelled(other))) as server,
        edge(served_model, tmp_path, entry(server)) as client,
    ):
        body = {"model": "g", "input": ["a", "b"], "dimensions": 3}
        response = await client.post(EMBEDDINGS, json=body)
        ollama = await client.post("/api/embed", json={"model": "g", "input": ["a", "b"]})
    assert response.status_code == 200, response.text
    data = response.json()["data"]
    assert [one["embedding"] for one in data] == [pytest.approx(VECTOR), other]
    assert response.json()["usage"] == {"prompt_tokens": 5, "total_tokens": 5}
    assert ollama.json()["embeddings"] == [pytest.approx(VECTOR), other]
    path, headers, asked = server.asked[0]
    assert (path, headers["accept"]) == ("/v1/embeddings", "application/json")
    assert asked == {
        "model": "their-model",
        "input": ["a", "b"],
        "encoding_format": "base64",
        "dimensions": 3,
    }


BAD_VECTORS: dict[str, Any] = {
    "too few": vectors(VECTOR),
    "too many": vectors(VECTOR, VECTOR, VECTOR),
    "of two lengths": vectors(VECTOR, [1.0]),
    "empty": vectors([], []),
    "twice the same": vectors(VECTOR, VECTOR, data=[{"index": 0, "embedding": VECTOR}] * 2),
    "no numbers": vectors(VECTOR, ["a"]),
    "not finite": vectors(VECTOR, spelled([float("nan"), 0.0, 0.0])),
    "no base64": vectors(VECTOR, "!"),
    "half a number": vectors(VECTOR, "AAAA"),
    "no data": vectors(VECTOR, VECTOR, data=None),
    "no JSON": reply(200, b"{", content_type="application/json"),
    "a stream": stream(DONE),
    "an error": vectors(error={"message": f"no {SECRET}"}),
    "500": reply(500, {"error": {"message": SECRET}}),
}


@pytest.mark.parametrize("kind", BAD_VECTORS)
async def test_bad_embeddings_are_asked_for_elsewhere(served_model, tmp_path, kind):
    async with upstream(BAD_VECTORS[kind]) as bad, upstream(vectors(VECTOR, VECTOR)) as good:
        entries = (entry(bad, order=1), entry(good, order=2))
        async with edge(served_model, tmp_path, *entries) as client:
            response = await client.post(EMBEDDINGS, json={"model": "g", "input": ["a", "b"]})
            view = (await client.get("/cluster/deployments")).json()["data"]
    assert response.status_code == 200, response.text
    assert [one["embedding"] for one in response.json()["data"]] == [pytest.approx(VECTOR)] * 2
    assert response.headers["x-baton-deployment"] == "g/2"
    assert SECRET not in response.text
    assert [it["failures"] for it in view] == [1, 0]


async def test_our_own_model_embeds_in_a_group(served_model, tmp_path):
    service = ScriptedService()
    states = array("f", [3.0, 4.0, 0, 0, 0, 0, 0, 0]).tobytes()
    service.default = [StreamEvent(finish_reason=FinishReason.LENGTH, embedding=states)]
    model = replace(served_model, pooling=Pooling.MEAN)
    async with upstream(BAD_VECTORS["500"]) as bad:
        entries = (entry(bad, order=1), own(order=2))
        async with edge(model, tmp_path, *entries, service=service) as client:
            response = await client.post(EMBEDDINGS, json={"model": "g", "input": [[5, 6]]})
            texts = await client.post(EMBEDDINGS, json={"model": "g", "input": "Hello"})
    assert response.json()["data"][0]["embedding"][:2] == pytest.approx([0.6, 0.8])
    assert texts.status_code == 200
    assert service.generations[0].prompt_token_ids == [5, 6]
    assert service.generations[0].sampling.pooling is Pooling.MEAN


async def test_a_model_that_does_not_embed_is_passed_over(served_model, tmp_path):
    async with upstream(vectors(VECTOR)) as server:
        entries = (own(order=1), entry(server, order=2))
        async with edge(served_model, tmp_path, *entries) as client:
            response = await client.post(EMBEDDINGS, json={"model": "g", "input": "a"})
        async with edge(served_model, tmp_path, own()) as client:
            refused = await client.post(EMBEDDINGS, json={"model": "g", "input": "a"})
    assert response.headers["x-baton-deployment"] == "g/2"
    assert refused.status_code == 400
    assert "--pooling" in refused.text


async def test_tokens_are_spelled_by_the_model_that_wrote_them(served_model, tmp_path, tokenizer):
    """The group's own deployment is the second model: its ids mean nothing to the first."""
    first, second = ScriptedService(), ScriptedService()
    second.default = say(tokenizer.encode("Hello", add_special_tokens=False), FinishReason.LENGTH)
    other = ServedModel(("first",), served_model.directory, served_model.config, 128)
    others = [Offer(served_model, second)]
    router = {"num_retries": 0, "fallbacks": [{"h": ["g"]}]}
    entries = (own(), own("h", model="baton/first"))
    async with edge(
        other, tmp_path, *entries, service=first, others=others, router=router
    ) as client:
        told = await complete(client, logprobs=0)
        cards = {it["id"]: it for it in (await client.get("/v1/models")).json()["data"]}
        first.refusal = Overloaded("full", 3.0)
        asked = {"model": "h", "messages": [{"role": "user", "content": "x"}]}
        with_ids = await client.post("/v1/chat/completions", json=asked | {"logprobs": True})
        without = await client.post("/v1/chat/completions", json=asked)
    assert told.json()["choices"][0]["text"] == "Hello"
    assert told.json()["choices"][0]["logprobs"] is not None
    assert (cards["g"]["max_model_len"], cards["h"]["max_model_len"]) == (256, 128)
    assert (with_ids.status_code, without.status_code) == (429, 200)
    assert first.generations == []
