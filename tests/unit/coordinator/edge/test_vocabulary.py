"""A tokenizer may have tokens that the embedding has no row for: a prompt with one is refused, whichever way it came."""

from __future__ import annotations

import dataclasses

import httpx
import msgspec
import pytest

from coordinator.cluster.scripted_service import say
from coordinator.edge.app import create_app
from protocol.finish import FinishReason


@pytest.fixture
async def narrow(service, served_model, clock, tokenizer):
    """A client of a model whose embedding lacks a row for the tokenizer's last token, `plain`."""
    config = msgspec.structs.replace(served_model.config, vocab_size=tokenizer.size - 1)
    model = dataclasses.replace(served_model, config=config)
    app = create_app(service=service, model=model, clock=clock)
    transport = httpx.ASGITransport(app=app, raise_app_exceptions=False)
    async with httpx.AsyncClient(transport=transport, base_url="http://edge") as connected:
        yield connected


@pytest.mark.parametrize(
    ("path", "body"),
    [
        ("/v1/chat/completions", {"messages": [{"role": "user", "content": "say plain"}]}),
        ("/v1/completions", {"prompt": "say plain"}),
        ("/v1/completions", {"prompt": ["fine", "plain"]}),
    ],
)
async def test_the_token_is_named(narrow, service, tokenizer, path, body):
    response = await narrow.post(path, json=body)
    assert response.status_code == 400
    assert f"{tokenizer.size - 1} ('plain')" in response.json()["error"]["message"]
    assert service.generations == []


async def test_ids_are_checked_like_words(narrow, service, tokenizer):
    response = await narrow.post("/v1/completions", json={"prompt": [3, tokenizer.size - 1]})
    assert response.status_code == 400
    service.default = say([3], FinishReason.LENGTH)
    response = await narrow.post("/v1/completions", json={"prompt": [3, tokenizer.size - 2]})
    assert response.status_code == 200


SAY = [{"role": "user", "content": "say plain"}]


@pytest.mark.parametrize(
    ("path", "body"),
    [
        ("/v1/messages", {"messages": SAY, "max_tokens": 5}),
        ("/v1/responses", {"input": "say plain"}),
        ("/v1/responses", {"input": SAY}),
        ("/api/chat", {"messages": SAY}),
        ("/api/generate", {"prompt": "say plain"}),
        ("/api/generate", {"prompt": "say plain", "raw": True}),
    ],
)
async def test_every_dialect_names_the_token(narrow, service, tokenizer, path, body):
    response = await narrow.post(path, json=body)
    assert response.status_code == 400
    assert f"{tokenizer.size - 1} ('plain')" in response.text
    assert service.generations == []


@pytest.mark.parametrize("beyond", [0, 1, 10**6, 2**31 - 1, 2**31, 2**63, 2**70])
@pytest.mark.parametrize(
    ("path", "field"),
    [
        ("/v1/completions", "prompt"),
        ("/v1/completions", "stop_token_ids"),
        ("/v1/completions", "logit_bias"),
        ("/v1/chat/completions", "stop_token_ids"),
        ("/v1/chat/completions", "logit_bias"),
        ("/detokenize", "tokens"),
    ],
)
async def test_an_id_is_refused_wherever_it_stands(narrow, service, tokenizer, path, field, beyond):
    token_id = tokenizer.size - 1 + beyond
    value = {str(token_id): 1.0} if field == "logit_bias" else [3, token_id]
    hello = [{"role": "user", "content": "fine"}]
    said = {"messages": hello} if "chat" in path else {"prompt": "fine"}
    response = await narrow.post(path, json={**said, field: value})
    assert response.status_code == 400
    assert field in response.json()["error"]["message"]
    assert service.generations == []


async def test_nested_prompts_of_ids_are_checked_each(narrow, service, tokenizer):
    prompts = [[3, 4], [5, tokenizer.size - 1]]
    response = await narrow.post("/v1/completions", json={"prompt": prompts})
    assert response.status_code == 400
    assert service.generations == []
