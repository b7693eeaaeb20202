"""A tokenizer may have tokens that the embedding has no row for: a prompt with one is refused, whichever way it came."""

from __future__ import annotations

import dataclasses

import httpx
import msgspec
import pytest

from coordinator.cluster.scripted_service import say
from coordinator.edge.app import create_app


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
    service.default = say([3], "length")
    response = await narrow.post("/v1/completions", json={"prompt": [3, tokenizer.size - 2]})
    assert response.status_code == 200
