"""Which model a request is, for its key, its price and the ledger, whatever its client calls it."""

from __future__ import annotations

import dataclasses

import pytest

from coordinator.accounts.terms import KeyTerms
from tests.unit.coordinator.edge.http.test_keys import bearer, edge

GENERATE = {"prompt": "Hello", "stream": False}
CHAT = {"messages": [{"role": "user", "content": "Hello"}], "stream": False}


@pytest.mark.parametrize(("path", "body"), [("/api/generate", GENERATE), ("/api/chat", CHAT)])
async def test_a_name_with_ollamas_tag_has_the_price_and_the_terms_of_the_served_one(
    served_model, tmp_path, path, body
):
    prices = ("tiny=1000/1000", "tiny-alias=0/0")
    async with edge(served_model, tmp_path, prices=prices) as (client, accounts, _):
        made = await accounts.create(KeyTerms(models=("tiny",), budget=1000))
        headers = bearer(made.secret)
        reply = await client.post(path, json=body | {"model": "tiny:latest"}, headers=headers)
        assert reply.json()["model"] == "tiny:latest"
        (row,) = (await client.get("/usage?group_by=request", headers=headers)).json()["data"]
        assert row["model"] == "tiny"
        assert row["cost"] == f"0.{(row['input_tokens'] + row['output_tokens']) * 1_000_000:09d}"
        asked = body | {"model": "tiny-alias:latest"}
        assert (await client.post(path, json=asked, headers=headers)).status_code == 403


async def test_a_served_name_that_ends_in_the_tag_is_itself(served_model, tmp_path):
    model = dataclasses.replace(served_model, served_names=("small:latest",))
    async with edge(model, tmp_path) as (client, accounts, _):
        headers = bearer((await accounts.create(KeyTerms(models=("small:latest",)))).secret)
        body = GENERATE | {"model": "small:latest"}
        reply = await client.post("/api/generate", json=body, headers=headers)
        assert reply.status_code == 200
